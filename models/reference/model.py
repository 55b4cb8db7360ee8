"""The whole model."""

from __future__ import annotations

from typing import NamedTuple

from models.inputs import IGNORED
from models.reference.block import Weights, block
from models.reference.embedding import embedding
from models.reference.experts import Routing
from models.reference.head import logits as head_logits
from models.reference.head import read
from models.reference.layout import Layout, layout_of
from models.reference.loss import Mix, Tally, scored, tally
from models.reference.norm import norm
from models.reference.random import Array, Draw
from models.spec import ModelSpec


class Hidden(NamedTuple):
    """What the layers make of a batch.

    Attributes:
        trunk: residual stream after the last layer, before the final norm, (B, T, D).
        layout: where each position stands.
        routings: of the layers with experts, in order.
    """

    trunk: Array
    layout: Layout
    routings: tuple[Routing, ...]


class Judged(NamedTuple):
    """What a model says of a batch, and what that costs.

    Attributes:
        tally: what training minimises, as sums.
        logits: (B, T, V) or (B, classes).
        scored: which targets count, in their shape.
    """

    tally: Tally
    logits: Array
    scored: Array


def hidden(
    spec: ModelSpec,
    weights: Weights,
    inputs: Array,
    *,
    draw: Draw | None = None,
    lengths: Array | None = None,
    shift: Array | None = None,
) -> Hidden:
    """The residual stream after the last layer."""
    layout = layout_of(spec, inputs, lengths=lengths)
    x = embedding(spec, weights, "embedding", inputs, layout, draw, lengths=lengths, shift=shift)
    routings = []
    for layer in range(spec.layers):
        x, routing = block(spec, weights, f"layers.{layer}", x, layout, draw, layer=layer)
        routings += [routing] if routing is not None else []
    return Hidden(x, layout, tuple(routings))


def logits(
    spec: ModelSpec,
    weights: Weights,
    inputs: Array,
    *,
    draw: Draw | None = None,
    lengths: Array | None = None,
    shift: Array | None = None,
) -> Array:
    """Logits, (B, T, V) or (B, classes).

    Args:
        inputs: (B, T) integer tokens; (B, height, width, channels) pixels; or
            (B, frames, features).
        draw: keys what training drops; None switches that off.
        lengths: tokens or frames of each row that count, (B,); None: all.
        shift: a disturbance, as for the targets' cost; None: nothing.
    """
    passed = hidden(spec, weights, inputs, draw=draw, lengths=lengths, shift=shift)
    return _answer(spec, weights, passed.trunk, passed.layout, draw)


def objective(
    spec: ModelSpec,
    weights: Weights,
    inputs: Array,
    targets: Array,
    draw: Draw | None = None,
    *,
    lengths: Array | None = None,
    mix: Mix | None = None,
    shift: Array | None = None,
) -> Tally:
    """What training minimises, as sums over the batch.

    Args:
        targets: (B, T) next tokens or (B,) classes; `IGNORED` ones are not scored.
        lengths: tokens or frames of each row that count, (B,); None: all. Targets behind them are
            to be `IGNORED`.
        mix: second targets; None: each sample is one.
        shift: a disturbance that is added to pixels or frames, in their shape, or to the
            embeddings of tokens, (B, T, D); None: nothing.
    """
    return judged(spec, weights, inputs, targets, draw, lengths=lengths, mix=mix, shift=shift).tally


def judged(
    spec: ModelSpec,
    weights: Weights,
    inputs: Array,
    targets: Array,
    draw: Draw | None = None,
    *,
    lengths: Array | None = None,
    mix: Mix | None = None,
    shift: Array | None = None,
) -> Judged:
    """The same with the logits that it is made of."""
    passed = hidden(spec, weights, inputs, draw=draw, lengths=lengths, shift=shift)
    ahead, routings = [], list(passed.routings)
    for index in range(spec.ahead):
        name, layer = f"ahead.{index}", spec.layers + index
        x, routing = block(spec, weights, name, passed.trunk, passed.layout, draw, layer=layer)
        ahead.append(_answer(spec, weights, x, passed.layout, draw))
        routings += [routing] if routing is not None else []
    answer = _answer(spec, weights, passed.trunk, passed.layout, draw)
    sums = tally(
        spec, answer, targets, layout=passed.layout, ahead=ahead, routings=routings, mix=mix
    )
    return Judged(sums, answer, scored(targets, passed.layout) != IGNORED)


def _answer(
    spec: ModelSpec, weights: Weights, x: Array, layout: Layout, draw: Draw | None
) -> Array:
    if spec.block.arrangement != "post":
        x = norm(spec.norm, weights, "norm", x)
    return head_logits(spec, weights, "head", read(spec, weights, "head", x, layout, draw))
