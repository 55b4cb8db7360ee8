"""From tokens, patches or frames to the residual stream, (B, T, D)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from models.dropout import drop_of
from models.flax.activation import activation
from models.flax.layout import Layout
from models.flax.linear import Linear
from models.flax.norm import norm
from models.flax.random import Draw, dropout, kept, kept_share
from models.positions import sinusoids
from models.random import Site
from models.spec import ModelSpec, Policy
from models.weights import Table


class Rows(nnx.Module):
    """Trained vectors, (count, D)."""

    def __init__(self, table: Table, name: str, policy: Policy) -> None:
        shape = table[f"{name}.weight"].shape
        self.weight = nnx.Param(jnp.zeros(shape, policy.parameters))

    def __call__(self, index: Array) -> Array:
        """Look (...) up, (..., D)."""
        return self.weight[...][index]


class Embedding(nnx.Module):
    """The first residual stream: what the model reads, the extra positions, and where they are.

    Vectors are added in the policy's `reduce` type and rounded to `compute` once.
    """

    def __init__(self, spec: ModelSpec, table: Table, name: str, policy: Policy) -> None:
        def rows(part: str) -> Rows | None:
            asked = f"{name}.{part}.weight" in table
            return Rows(table, f"{name}.{part}", policy) if asked else None

        inputs = spec.inputs
        if inputs.kind == "tokens":
            self.table = Rows(table, f"{name}.table", policy)
        else:
            self.stem = Linear(table, f"{name}.stem", policy)
        self.class_token = rows("class_token")
        self.registers = rows("registers")
        self.positions = rows("positions")
        own = inputs.norm if inputs.kind == "tokens" else None
        self.norm = norm(own, table, f"{name}.norm", policy) if own is not None else None
        self.spec = spec
        self.compute, self.reduce = policy.compute, policy.reduce
        self.drop = drop_of(spec, Site.EMBEDDING_DROPOUT)
        self.token_drop = drop_of(spec, Site.TOKEN_DROPOUT)
        self.temporal_drop = drop_of(spec, Site.TEMPORAL_DROPOUT)

    def __call__(
        self,
        inputs: Array,
        layout: Layout,
        draw: Draw | None,
        *,
        lengths: Array | None = None,
        shift: Array | None = None,
    ) -> Array:
        """Map a batch to (B, T, D).

        Args:
            inputs: (B, T) integer tokens; (B, height, width, channels) pixels; or
                (B, frames, features).
            lengths: frames of each row that count, (B,); a convolution reads zeros behind them.
            shift: added to pixels or frames, in their shape; of tokens, (B, T, D), to what is read
                of them, before positions, norm and dropout.
        """
        tokens = self.spec.inputs.kind == "tokens"
        x = self._read(inputs if shift is None or tokens else inputs + shift, lengths)
        if shift is not None and tokens:
            x = x + shift.astype(self.reduce)
        for rows in (self.registers, self.class_token):
            if rows is not None:
                weight = rows.weight[...].astype(self.reduce)
                x = jnp.concatenate([jnp.broadcast_to(weight, (len(x), *weight.shape)), x], axis=1)
        if self.positions is not None:
            x = x + self.positions(layout.index).astype(self.reduce)
        if self.spec.positions.kind == "sinusoidal":
            fixed = sinusoids(self.spec.positions, self.spec.width, self.spec.inputs)
            x = x + jnp.asarray(fixed, self.reduce)[layout.index]
        if self.norm is not None:
            x = self.norm(x)
        x = dropout(x.astype(self.compute), draw, self.drop)
        x = dropout(x, draw, self.token_drop, over=(x.shape[1], 1))
        return self._temporal(x, draw)

    def _read(self, inputs: Array, lengths: Array | None) -> Array:
        """Each token, patch or window of frames as a vector, (B, T, D) without extra positions."""
        read = self.spec.inputs
        match read.kind:
            case "tokens":
                found = self.table(inputs).astype(self.reduce)
                return found if read.scale == 1.0 else found * read.scale
            case "patches":
                x = self.stem(patches(inputs, side=read.patch).astype(self.compute))
            case "frames" if read.stem.kind == "linear":
                x = self.stem(inputs.astype(self.compute))
            case "frames":
                cut = windows(self.spec, inputs, lengths)
                x = activation("gelu", self.stem(cut.astype(self.compute)))
        return x.astype(self.reduce)

    def _temporal(self, x: Array, draw: Draw | None) -> Array:
        """Drop whole blocks of `span` positions; position t belongs to block t // span."""
        drop, temporal = self.temporal_drop, self.spec.dropout.temporal
        if draw is None or temporal is None or not drop:
            return x
        block = jnp.arange(x.shape[1]) // temporal.span
        blocks = -(-x.shape[1] // temporal.span)
        keep = kept(draw, drop, (len(x), blocks))[:, block, None]
        share = jnp.asarray(kept_share(draw, drop, layer=0), x.dtype)
        return jnp.where(keep, x / share, 0.0)


def patches(images: Array, *, side: int) -> Array:
    """Pixels of each patch, (B, T, side * side * channels), patches in row-major order.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // side, width // side
    cut = images.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
    return cut.reshape(batch, rows * columns, side * side * channels)


def windows(spec: ModelSpec, frames: Array, lengths: Array | None) -> Array:
    """The frames that each output of a convolution reads, (B, T, kernel * features).

    Args:
        frames: (B, frames, features).
        lengths: frames of each row that count, (B,); zeros are read in front and behind.
    """
    assert spec.inputs.kind == "frames" and spec.inputs.stem.kind == "convolution"
    batch, count, features = frames.shape
    kernel, stride = spec.inputs.stem.kernel, spec.inputs.stem.stride
    before = kernel - stride if spec.causal else (kernel - 1) // 2
    first = jnp.arange(spec.inputs.steps(count)) * stride - before
    frame = first[:, None] + jnp.arange(kernel)
    ends = jnp.asarray([count]) if lengths is None else lengths
    inside = (frame >= 0) & (frame < ends[:, None, None])
    read = frames[:, frame.clip(0, count - 1)]
    return jnp.where(inside[..., None], read, 0.0).reshape(batch, -1, kernel * features)
