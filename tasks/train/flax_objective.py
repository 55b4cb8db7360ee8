"""What training minimises with regularisers, in JAX; `torch_objective.py` is its translation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from models.flax.loss import Mix, Tally
from models.flax.model import Judged, Model
from models.flax.random import Draw, uniform
from models.random import SECOND_VIEW, Site
from tasks.train.regularise import Strengths
from tasks.train.regularise_spec import (
    Adversarial,
    Ball,
    Consistency,
    Fgm,
    MeanTeacher,
    Pgd,
    RDrop,
    RegulariseSpec,
    TwoView,
    Vat,
)


class Rows(NamedTuple):
    """A batch on the device; the fields are those of `tasks.prepare.dataset.Batch`.

    Attributes:
        inputs: what the model reads, with the batch first.
        targets: (B, T) next tokens or (B,) classes; `IGNORED` ones are not scored.
        lengths: tokens or frames of each row that count, (B,); None: all.
        mix: second targets; None: each sample is one.
        again: the inputs as a second view shows them; None: they are the same.
    """

    inputs: Array
    targets: Array
    lengths: Array | None = None
    mix: Mix | None = None
    again: Array | None = None


def tally_of(
    spec: RegulariseSpec,
    model: Model,
    rows: Rows,
    *,
    draw: Draw,
    strengths: Strengths = Strengths(),
    teacher: Model | None = None,
) -> Tally:
    """The sums of a batch whose `objective` has what regularisers add, sample by sample.

    All else is of the first and undisturbed pass: nats, count, and the load of experts. Everything
    added is a sum over samples or over scored targets, so that it adds up over workers.

    Args:
        draw: keys dropout, and disturbances that begin at random.
        strengths: of this step; `tasks.train.regularise.strengths_at`.
        teacher: the model with averaged weights, for a mean teacher.
    """
    plain = model.judged(rows.inputs, rows.targets, draw=draw, lengths=rows.lengths, mix=rows.mix)
    cost, apart = plain.tally.objective, jnp.zeros((), plain.logits.dtype)
    if spec.consistency is not None:
        cost, apart = _compared(spec.consistency, model, rows, draw, plain, teacher)
        apart = spec.consistency.weight * strengths.consistency * apart
    if spec.adversarial is not None:
        cost = _attacked(spec.adversarial, model, rows, draw, plain, cost, strengths.adversarial)
    return plain.tally._replace(objective=cost + apart)


def divergence(one: Array, other: Array, scored: Array) -> Array:
    """``KL(softmax(one) || softmax(other))``, summed over scored targets, ().

    Args:
        one: logits, (B, T, V) or (B, classes).
        other: likewise.
        scored: which targets count, (B, T) or (B,).
    """
    first, second = jax.nn.log_softmax(one), jax.nn.log_softmax(other)
    each = (jnp.exp(first) * (first - second)).sum(axis=-1)
    return jnp.where(scored, each, 0.0).sum()


def squared(one: Array, other: Array, scored: Array) -> Array:
    """Mean over classes of the squared difference of chances, summed over scored targets, ()."""
    each = jnp.square(jax.nn.softmax(one) - jax.nn.softmax(other)).mean(axis=-1)
    return jnp.where(scored, each, 0.0).sum()


def second_view(draw: Draw) -> Draw:
    """The draw of another look at the same samples in the same step."""
    return replace(draw, step=draw.step ^ np.uint32(SECOND_VIEW))


def _compared(
    spec: Consistency,
    model: Model,
    rows: Rows,
    draw: Draw,
    plain: Judged,
    teacher: Model | None,
) -> tuple[Array, Array]:
    """The cost of the targets, and how far two answers are apart."""
    cost, other = plain.tally.objective, second_view(draw)
    again = rows.inputs if rows.again is None else rows.again
    match spec:
        case RDrop():
            second = model.judged(
                rows.inputs, rows.targets, draw=other, lengths=rows.lengths, mix=rows.mix
            )
            there = divergence(plain.logits, second.logits, plain.scored)
            back = divergence(second.logits, plain.logits, plain.scored)
            return (cost + second.tally.objective) / 2, (there + back) / 2
        case TwoView():
            answer = model.logits(again, draw=other, lengths=rows.lengths)
            return cost, divergence(lax.stop_gradient(plain.logits), answer, plain.scored)
        case MeanTeacher():
            if teacher is None:
                raise ValueError("regularise.consistency.kind=mean_teacher needs a teacher.")
            answer = lax.stop_gradient(teacher.logits(again, draw=other, lengths=rows.lengths))
            distance = squared if spec.distance == "squared" else divergence
            return cost, distance(answer, plain.logits, plain.scored)


def _attacked(
    spec: Adversarial,
    model: Model,
    rows: Rows,
    draw: Draw,
    plain: Judged,
    cost: Array,
    strength: Array | float,
) -> Array:
    """A cost with that of disturbed samples; a disturbance is a constant to the weights."""
    still = _still(model)

    def costs(model: Model, shift: Array) -> Array:
        tally = model(
            rows.inputs, rows.targets, draw=draw, lengths=rows.lengths, mix=rows.mix, shift=shift
        )
        return tally.objective

    def moved(model: Model, shift: Array) -> Array:
        answer = model.logits(rows.inputs, draw=draw, lengths=rows.lengths, shift=shift)
        return divergence(lax.stop_gradient(plain.logits), answer, plain.scored)

    match spec:
        case Fgm():
            uphill = jax.grad(costs, argnums=1)(still, _nothing(model, rows))
            shift = _along(uphill, spec.radius, spec.ball)
            return cost + spec.weight * strength * costs(model, shift)
        case Pgd():
            shift = _climbed(spec, lambda shift: costs(still, shift), model, rows, draw)
            share = spec.share * strength
            return (1.0 - share) * cost + share * costs(model, shift)
        case Vat():
            shift = _steepest(spec, lambda shift: moved(still, shift), model, rows, draw)
            return cost + spec.weight * strength * moved(model, shift)


def _climbed(
    spec: Pgd, cost: Callable[[Array], Array], model: Model, rows: Rows, draw: Draw
) -> Array:
    """Steps up the cost inside the ball."""
    shift = _nothing(model, rows)
    if spec.start == "random":
        shift = _within(spec.radius * _random(model, rows, draw), spec.radius, spec.ball)

    def climb(_: int, shift: Array) -> Array:
        step = _along(jax.grad(cost)(shift), spec.step, spec.ball)
        return _within(shift + step, spec.radius, spec.ball)

    reached: Array = lax.fori_loop(0, spec.steps, climb, shift)
    return lax.stop_gradient(reached)


def _steepest(
    spec: Vat, moved: Callable[[Array], Array], model: Model, rows: Rows, draw: Draw
) -> Array:
    """The direction in which the answer moves most, by power iteration."""

    def turn(_: int, direction: Array) -> Array:
        return _unit(jax.grad(moved)(spec.probe * direction))

    first = _unit(_random(model, rows, draw))
    direction: Array = lax.fori_loop(0, spec.steps, turn, first)
    return lax.stop_gradient(spec.radius * direction)


def _nothing(model: Model, rows: Rows) -> Array:
    """A disturbance of zero: of pixels or frames, or of embeddings, (B, T, D)."""
    tokens = model.spec.inputs.kind == "tokens"
    shape = (*rows.inputs.shape, model.spec.width) if tokens else rows.inputs.shape
    return jnp.zeros(shape, model.policy.reduce)


def _random(model: Model, rows: Rows, draw: Draw) -> Array:
    """Numbers in -1..1 for a disturbance; zero in padding."""
    nothing = _nothing(model, rows)
    drawn = uniform(draw, Site.DISTURBANCE, nothing.shape, layer=0, dtype=nothing.dtype)
    if rows.lengths is None:
        return 2.0 * drawn - 1.0
    counted = jnp.arange(nothing.shape[1]) < rows.lengths[:, None]
    return jnp.where(counted[..., None], 2.0 * drawn - 1.0, 0.0)


def _along(gradient: Array, size: float, ball: Ball) -> Array:
    """As far along each sample's gradient as `size` lets it."""
    return size * (jnp.sign(gradient) if ball == "maximum" else _unit(gradient))


def _within(shift: Array, radius: float, ball: Ball) -> Array:
    """The nearest disturbance inside the ball, sample by sample."""
    if ball == "maximum":
        return shift.clip(-radius, radius)
    return shift * (radius / jnp.maximum(_length(shift), radius))


def _unit(values: Array) -> Array:
    """Each sample's values at length 1; zeros stay."""
    length = _length(values)
    return jnp.where(length > 0, values / jnp.where(length > 0, length, 1.0), 0.0)


def _length(values: Array) -> Array:
    """Length of each sample's values, (B, 1, ...)."""
    axes = tuple(range(1, values.ndim))
    return jnp.sqrt(jnp.square(values).sum(axis=axes, keepdims=True))


def _still(model: Model) -> Model:
    """The same model, whose weights are constants."""
    graph, state = nnx.split(model)
    still: Model = nnx.merge(graph, lax.stop_gradient(state))
    return still
