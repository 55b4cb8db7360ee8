"""From tokens, patches or frames to the residual stream, (B, T, D)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.dropout import drop_of
from models.positions import sinusoids
from models.random import Site
from models.reference.activation import activation
from models.reference.layout import Layout
from models.reference.norm import norm
from models.reference.random import Array, Draw, dropout, kept, kept_share
from models.spec import ModelSpec

Weights = Mapping[str, Array]


def embedding(
    spec: ModelSpec,
    weights: Weights,
    name: str,
    inputs: Array,
    layout: Layout,
    draw: Draw | None,
    *,
    lengths: Array | None = None,
    shift: Array | None = None,
) -> Array:
    """The first residual stream, (B, T, D).

    Args:
        inputs: (B, T) integer tokens; (B, height, width, channels) pixels; or
            (B, frames, features).
        lengths: frames of each row that count, (B,); a convolution reads zeros behind them.
        shift: added to pixels or frames, in their shape; of tokens, (B, T, D), to what is read of
            them, before positions, norm and dropout.
    """
    tokens = spec.inputs.kind == "tokens"
    x = _read(spec, weights, name, inputs if shift is None or tokens else inputs + shift, lengths)
    if shift is not None and tokens:
        x = x + shift
    for extra in ("registers", "class_token"):
        if f"{name}.{extra}.weight" in weights:
            rows = weights[f"{name}.{extra}.weight"]
            x = np.concatenate([np.broadcast_to(rows, (len(x), *rows.shape)), x], axis=1)
    if spec.positions.kind == "learned":
        x = x + weights[f"{name}.positions.weight"][layout.index]
    if spec.positions.kind == "sinusoidal":
        x = x + sinusoids(spec.positions, spec.width, spec.inputs)[layout.index]
    if spec.inputs.kind == "tokens" and spec.inputs.norm is not None:
        x = norm(spec.inputs.norm, weights, f"{name}.norm", x)
    x = dropout(x, draw, drop_of(spec, Site.EMBEDDING_DROPOUT))
    x = dropout(x, draw, drop_of(spec, Site.TOKEN_DROPOUT), over=(x.shape[1], 1))
    return _temporal(spec, x, draw)


def _read(
    spec: ModelSpec, weights: Weights, name: str, inputs: Array, lengths: Array | None
) -> Array:
    """Each token, patch or window of frames as a vector, (B, T, D) without the extra positions."""
    if spec.inputs.kind == "tokens":
        found: Array = spec.inputs.scale * weights[f"{name}.table.weight"][inputs]
        return found
    parts = _patches(spec, inputs) if spec.inputs.kind == "patches" else inputs
    convolved = spec.inputs.kind == "frames" and spec.inputs.stem.kind == "convolution"
    if convolved:
        parts = _windows(spec, inputs, lengths)
    x: Array = parts @ weights[f"{name}.stem.weight"].T + weights[f"{name}.stem.bias"]
    return activation("gelu", x) if convolved else x


def _patches(spec: ModelSpec, images: Array) -> Array:
    """Pixels of each patch (Dosovitskiy et al. 2021, arXiv:2010.11929, eq. 1)."""
    assert spec.inputs.kind == "patches"
    side = spec.inputs.patch
    patches = [
        images[:, row : row + side, column : column + side].reshape(len(images), -1)
        for row in range(0, spec.inputs.height, side)
        for column in range(0, spec.inputs.width, side)
    ]
    return np.stack(patches, axis=1)


def _windows(spec: ModelSpec, frames: Array, lengths: Array | None) -> Array:
    """The `kernel` frames that each output of a convolution reads, one behind the other."""
    assert spec.inputs.kind == "frames" and spec.inputs.stem.kind == "convolution"
    batch, count, features = frames.shape
    kernel, stride = spec.inputs.stem.kernel, spec.inputs.stem.stride
    shape = (batch, spec.inputs.steps(count), kernel, features)
    windows = np.zeros(shape, np.result_type(frames, float))
    before = kernel - stride if spec.causal else (kernel - 1) // 2
    for row, step, place in np.ndindex(*windows.shape[:3]):
        frame = step * stride - before + place
        if 0 <= frame < (count if lengths is None else lengths[row]):
            windows[row, step, place] = frames[row, frame]
    return windows.reshape(batch, -1, kernel * features)


def _temporal(spec: ModelSpec, x: Array, draw: Draw | None) -> Array:
    """Drop whole blocks of `span` positions; position t belongs to block t // span."""
    drop, temporal = drop_of(spec, Site.TEMPORAL_DROPOUT), spec.dropout.temporal
    if draw is None or temporal is None or not drop:
        return x
    block = np.arange(x.shape[1]) // temporal.span
    keep = kept(draw, drop, (len(x), block[-1] + 1))[:, block, None]
    return np.where(keep, x / kept_share(draw, drop, layer=0), 0.0)
