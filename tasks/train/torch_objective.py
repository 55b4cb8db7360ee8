"""What training minimises with regularisers, in torch; `flax_objective.py` is its translation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from models.random import SECOND_VIEW, Site
from models.torch.linear import DTYPES
from models.torch.loss import Mix, Tally
from models.torch.model import Judged, Model
from models.torch.random import Draw, uniform
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

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None = None
    mix: Mix | None = None
    again: Tensor | None = None


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
    cost, apart = plain.tally.objective, plain.logits.new_zeros(())
    if spec.consistency is not None:
        cost, apart = _compared(spec.consistency, model, rows, draw, plain, teacher)
        apart = spec.consistency.weight * strengths.consistency * apart
    if spec.adversarial is not None:
        cost = _attacked(spec.adversarial, model, rows, draw, plain, cost, strengths.adversarial)
    return plain.tally._replace(objective=cost + apart)


def divergence(one: Tensor, other: Tensor, scored: Tensor) -> Tensor:
    """``KL(softmax(one) || softmax(other))``, summed over scored targets, ().

    Args:
        one: logits, (B, T, V) or (B, classes).
        other: likewise.
        scored: which targets count, (B, T) or (B,).
    """
    first, second = one.log_softmax(dim=-1), other.log_softmax(dim=-1)
    each = (first.exp() * (first - second)).sum(dim=-1)
    return torch.where(scored, each, 0.0).sum()


def squared(one: Tensor, other: Tensor, scored: Tensor) -> Tensor:
    """Mean over classes of the squared difference of chances, summed over scored targets, ()."""
    each = (one.softmax(dim=-1) - other.softmax(dim=-1)).square().mean(dim=-1)
    return torch.where(scored, each, 0.0).sum()


def second_view(draw: Draw) -> Draw:
    """The draw of another look at the same samples in the same step."""
    return replace(draw, step=draw.step ^ SECOND_VIEW)


def _compared(
    spec: Consistency,
    model: Model,
    rows: Rows,
    draw: Draw,
    plain: Judged,
    teacher: Model | None,
) -> tuple[Tensor, Tensor]:
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
            return cost, divergence(plain.logits.detach(), answer, plain.scored)
        case MeanTeacher():
            if teacher is None:
                raise ValueError("regularise.consistency.kind=mean_teacher needs a teacher.")
            with torch.no_grad():
                answer = teacher.logits(again, draw=other, lengths=rows.lengths)
            distance = squared if spec.distance == "squared" else divergence
            return cost, distance(answer, plain.logits, plain.scored)


def _attacked(
    spec: Adversarial,
    model: Model,
    rows: Rows,
    draw: Draw,
    plain: Judged,
    cost: Tensor,
    strength: float,
) -> Tensor:
    """A cost with that of disturbed samples; a disturbance is a constant to the weights."""

    def costs(shift: Tensor) -> Tensor:
        tally: Tally = model(
            rows.inputs, rows.targets, draw=draw, lengths=rows.lengths, mix=rows.mix, shift=shift
        )
        return tally.objective

    def moved(shift: Tensor) -> Tensor:
        answer = model.logits(rows.inputs, draw=draw, lengths=rows.lengths, shift=shift)
        return divergence(plain.logits.detach(), answer, plain.scored)

    match spec:
        case Fgm():
            uphill = _gradient(costs, _nothing(model, rows))
            shift = _along(uphill, spec.radius, spec.ball)
            return cost + spec.weight * strength * costs(shift)
        case Pgd():
            shift = _climbed(spec, costs, model, rows, draw)
            share = spec.share * strength
            return (1.0 - share) * cost + share * costs(shift)
        case Vat():
            shift = _steepest(spec, moved, model, rows, draw)
            return cost + spec.weight * strength * moved(shift)


def _climbed(
    spec: Pgd, cost: Callable[[Tensor], Tensor], model: Model, rows: Rows, draw: Draw
) -> Tensor:
    """Steps up the cost inside the ball."""
    shift = _nothing(model, rows)
    if spec.start == "random":
        shift = _within(spec.radius * _random(model, rows, draw), spec.radius, spec.ball)
    for _ in range(spec.steps):
        step = _along(_gradient(cost, shift), spec.step, spec.ball)
        shift = _within(shift + step, spec.radius, spec.ball)
    return shift


def _steepest(
    spec: Vat, moved: Callable[[Tensor], Tensor], model: Model, rows: Rows, draw: Draw
) -> Tensor:
    """The direction in which the answer moves most, by power iteration."""
    direction = _unit(_random(model, rows, draw))
    for _ in range(spec.steps):
        direction = _unit(_gradient(moved, spec.probe * direction))
    return spec.radius * direction


def _gradient(value: Callable[[Tensor], Tensor], shift: Tensor) -> Tensor:
    """The gradient of a value with respect to a disturbance alone; a constant."""
    leaf = shift.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    return gradient


def _nothing(model: Model, rows: Rows) -> Tensor:
    """A disturbance of zero: of pixels or frames, or of embeddings, (B, T, D)."""
    tokens = model.spec.inputs.kind == "tokens"
    shape = (*rows.inputs.shape, model.spec.width) if tokens else rows.inputs.shape
    return torch.zeros(shape, dtype=DTYPES[model.policy.reduce], device=rows.inputs.device)


def _random(model: Model, rows: Rows, draw: Draw) -> Tensor:
    """Numbers in -1..1 for a disturbance; zero in padding."""
    nothing = _nothing(model, rows)
    shape, dtype, device = tuple(nothing.shape), nothing.dtype, nothing.device
    drawn = uniform(draw, Site.DISTURBANCE, shape, layer=0, dtype=dtype, device=device)
    if rows.lengths is None:
        return 2.0 * drawn - 1.0
    counted = torch.arange(shape[1], device=device) < rows.lengths[:, None]
    return torch.where(counted[..., None], 2.0 * drawn - 1.0, 0.0)


def _along(gradient: Tensor, size: float, ball: Ball) -> Tensor:
    """As far along each sample's gradient as `size` lets it."""
    return size * (gradient.sign() if ball == "maximum" else _unit(gradient))


def _within(shift: Tensor, radius: float, ball: Ball) -> Tensor:
    """The nearest disturbance inside the ball, sample by sample."""
    if ball == "maximum":
        return shift.clamp(-radius, radius)
    return shift * (radius / _length(shift).clamp(min=radius))


def _unit(values: Tensor) -> Tensor:
    """Each sample's values at length 1; zeros stay."""
    length = _length(values)
    return torch.where(length > 0, values / torch.where(length > 0, length, 1.0), 0.0)


def _length(values: Tensor) -> Tensor:
    """Length of each sample's values, (B, 1, ...)."""
    axes = tuple(range(1, values.ndim))
    return values.square().sum(dim=axes, keepdim=True).sqrt()
