"""Regularised training by definition, and the same through both twins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import jax
import numpy as np
import torch
from numpy.typing import NDArray

from models.dropout import strength_at
from models.flax import loss as flax_loss
from models.flax import model as flax_model
from models.flax import random as flax_random
from models.flax import weights as flax_weights
from models.random import SECOND_VIEW, Site
from models.reference import loss as reference_loss
from models.reference import model as reference
from models.reference.random import Draw, uniform
from models.spec import ModelSpec
from models.torch import loss as torch_loss
from models.torch import model as torch_model
from models.torch import random as torch_random
from models.torch import weights as torch_weights
from models.weights import initial_weights
from tasks.prepare.batch import Batch
from tasks.train import flax_objective, torch_objective
from tasks.train.regularise import Strengths, strengths_at
from tasks.train.regularise_spec import Ball, RegulariseSpec, Vat

Array = NDArray[Any]
Weights = dict[str, Array]
Twin = Literal["flax", "torch"]
TWINS: tuple[Twin, ...] = ("flax", "torch")
STEP, SEED, TOTAL, RATE, KEPT = 1e-30, 3, 50, 0.3, 0.9


@dataclass(frozen=True)
class Case:
    """A model, its regularisers, and the batch of each step."""

    spec: ModelSpec
    regularise: RegulariseSpec
    batches: Callable[[int], Batch]


@dataclass(frozen=True)
class Moment:
    """One step of a case, at given weights."""

    case: Case
    step: int
    weights: Weights
    teacher: Weights

    @property
    def batch(self) -> Batch:
        """The samples of the step."""
        return self.case.batches(self.step)

    @property
    def key(self) -> dict[str, Any]:
        """What dropout is keyed by."""
        strength = strength_at(self.case.spec, step=self.step, total_steps=TOTAL)
        samples = self.batch.samples
        return {"seed": SEED, "step": self.step, "samples": samples, "strength": strength}

    @property
    def strengths(self) -> Strengths:
        """Of the regularisers."""
        return strengths_at(self.case.regularise, step=self.step, total_steps=TOTAL)


@dataclass(frozen=True)
class Found:
    """The sums of a step, and the gradient of the objective."""

    objective: float
    nats: float
    count: int
    gradients: Weights


def start(case: Case, *, step: int = 3) -> Moment:
    """The first weights with an earlier average; no weight is zero or one."""
    generator = np.random.default_rng(0)
    first = initial_weights(case.spec, seed=0)
    weights, teacher = (
        {
            name: 0.5 * values + 0.3 * generator.standard_normal(values.shape)
            for name, values in first.items()
        }
        for _ in range(2)
    )
    teacher = {name: 0.8 * weights[name] + 0.2 * values for name, values in teacher.items()}
    return Moment(case, step, weights, teacher)


# By definition: NumPy in float64, a disturbance's gradient value by value.


@dataclass(frozen=True)
class Constants:
    """What no gradient passes through: the disturbance, the clean answer, the teacher's."""

    shift: Array | None
    clean: Array
    teacher: Array | None


def objective(moment: Moment, constants: Constants, weights: Weights) -> Any:
    """What is minimised; complex where weights are."""
    spec, strengths = moment.case.regularise, moment.strengths
    plain = _judged(moment, weights)
    cost, apart, weight = plain.tally.objective, 0.0, 0.0
    if spec.consistency is not None:
        other = _second(moment)
        weight = spec.consistency.weight * strengths.consistency
        match spec.consistency.kind:
            case "r_drop":
                second = _judged(other, weights)
                cost = 0.5 * (cost + second.tally.objective)
                there = _divergence(plain.logits, second.logits, plain.scored)
                apart = 0.5 * (there + _divergence(second.logits, plain.logits, plain.scored))
            case "two_view":
                answer = _judged(other, weights, again=True).logits
                apart = _divergence(constants.clean, answer, plain.scored)
            case "mean_teacher":
                assert constants.teacher is not None
                squared = spec.consistency.distance == "squared"
                distance = _squared if squared else _divergence
                apart = distance(constants.teacher, plain.logits, plain.scored)
    if spec.adversarial is not None:
        hit = _judged(moment, weights, shift=constants.shift)
        match spec.adversarial.kind:
            case "fgm":
                more = spec.adversarial.weight * strengths.adversarial
                cost = cost + more * hit.tally.objective
            case "pgd":
                share = spec.adversarial.share * strengths.adversarial
                cost = cost + share * (hit.tally.objective - cost)
            case "vat":
                more = spec.adversarial.weight * strengths.adversarial
                cost = cost + more * _divergence(constants.clean, hit.logits, plain.scored)
    return cost + weight * apart


def constants_of(moment: Moment) -> Constants:
    """What a step holds fast."""
    clean = _judged(moment, moment.weights).logits
    consistency, teacher = moment.case.regularise.consistency, None
    if consistency is not None and consistency.kind == "mean_teacher":
        teacher = _judged(_second(moment), moment.teacher, again=True).logits
    return Constants(_shift(moment, clean), clean, teacher)


def _shift(moment: Moment, clean: Array) -> Array | None:
    attack = moment.case.regularise.adversarial
    if attack is None:
        return None
    inputs, tokens = moment.batch.inputs, moment.case.spec.inputs.kind == "tokens"
    shape = (*inputs.shape, moment.case.spec.width) if tokens else inputs.shape
    drawn = 2.0 * uniform(Draw(**moment.key), Site.DISTURBANCE, shape, layer=0) - 1.0
    if moment.batch.lengths is not None:
        for row, length in enumerate(moment.batch.lengths):
            drawn[row, length:] = 0.0
    nothing, radius = np.zeros(shape), attack.radius
    match attack.kind:
        case "fgm":
            return _along(_uphill(moment, nothing, None), radius, attack.ball)
        case "pgd":
            begun = _back(radius * drawn, radius, attack.ball)
            shift = begun if attack.start == "random" else nothing
            for _ in range(attack.steps):
                gradient = _uphill(moment, shift, None)
                shift = _back(
                    shift + _along(gradient, attack.step, attack.ball), radius, attack.ball
                )
            return shift
        case "vat":
            return radius * _turned(moment, attack, drawn, clean)


def _turned(moment: Moment, attack: Vat, drawn: Array, clean: Array) -> Array:
    direction = _along(drawn, 1.0, "euclidean")
    for _ in range(attack.steps):
        gradient = _uphill(moment, attack.probe * direction, clean)
        direction = _along(gradient, 1.0, "euclidean")
    return direction


def _uphill(moment: Moment, shift: Array, clean: Array | None) -> Array:
    """Gradient of the cost, or of the divergence from the clean answer, by complex steps."""
    gradient = np.zeros(shift.shape)
    for place in np.ndindex(*shift.shape):
        moved = shift.astype(complex)
        moved[place] += 1j * STEP
        judged = _judged(moment, moment.weights, shift=moved)
        value = judged.tally.objective
        if clean is not None:
            value = _divergence(clean, judged.logits, judged.scored)
        gradient[place] = np.imag(value) / STEP
    return gradient


def _along(gradient: Array, size: float, ball: Ball) -> Array:
    if ball == "maximum":
        return size * np.sign(gradient)
    return np.stack([size * row / max(np.sqrt((row**2).sum()), 1e-300) for row in gradient])


def _back(shift: Array, radius: float, ball: Ball) -> Array:
    if ball == "maximum":
        return np.clip(shift, -radius, radius)
    lengths = [np.sqrt((row**2).sum()) for row in shift]
    return np.stack(
        [row if size <= radius else row * radius / size for row, size in zip(shift, lengths)]
    )


def _judged(
    moment: Moment, weights: Weights, *, shift: Array | None = None, again: bool = False
) -> reference.Judged:
    batch, mix = moment.batch, None
    if batch.others is not None and batch.shares is not None:
        mix = reference_loss.Mix(batch.others, batch.shares)
    inputs = batch.again if again and batch.again is not None else batch.inputs
    return reference.judged(
        moment.case.spec,
        weights,
        inputs,
        batch.targets,
        Draw(**moment.key),
        lengths=batch.lengths,
        mix=mix,
        shift=shift,
    )


@dataclass(frozen=True)
class _Later(Moment):
    """A step's second view: other dropout for the same samples."""

    @property
    def key(self) -> dict[str, Any]:
        return {**super().key, "step": self.step + SECOND_VIEW}


def _second(moment: Moment) -> Moment:
    return _Later(moment.case, moment.step, moment.weights, moment.teacher)


def _log_chances(logits: Array) -> Array:
    moved = logits - logits.real.max(axis=-1, keepdims=True)
    chances: Array = moved - np.log(np.exp(moved).sum(axis=-1, keepdims=True))
    return chances


def _divergence(one: Array, other: Array, scored: Array) -> Any:
    first, second = _log_chances(one)[scored], _log_chances(other)[scored]
    return (np.exp(first) * (first - second)).sum()


def _squared(one: Array, other: Array, scored: Array) -> Any:
    first, second = np.exp(_log_chances(one)[scored]), np.exp(_log_chances(other)[scored])
    return ((first - second) ** 2).mean(axis=-1).sum()


# Through the twins.


def found_by(moment: Moment, twin: Twin, objectives: ModuleType | None = None) -> Found:
    """One step's sums and gradients; `objectives` replaces the twin's module."""
    if twin == "torch":
        return _by_torch(moment, objectives or torch_objective)
    return _by_flax(moment, objectives or flax_objective)


def _by_torch(moment: Moment, objectives: ModuleType) -> Found:
    model, teacher = (_torch_model(moment.case.spec, w) for w in (moment.weights, moment.teacher))
    batch = moment.batch
    tensors = {
        name: None if rows is None else torch.from_numpy(rows) for name, rows in vars(batch).items()
    }
    mix = None
    if tensors["others"] is not None and tensors["shares"] is not None:
        mix = torch_loss.Mix(tensors["others"], tensors["shares"])
    rows = objectives.Rows(
        tensors["inputs"], tensors["targets"], tensors["lengths"], mix, tensors["again"]
    )
    draw = torch_random.Draw.of(**moment.key)
    tally = objectives.tally_of(
        moment.case.regularise, model, rows, draw=draw, strengths=moment.strengths, teacher=teacher
    )
    torch.autograd.backward(tally.objective)
    gradients = {}
    for name, weight in torch_weights.named_parameters(model).items():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        gradients[name] = gradient.numpy()
    return Found(tally.objective.item(), tally.nats.item(), int(tally.count), gradients)


def _torch_model(spec: ModelSpec, weights: Weights) -> torch_model.Model:
    model = torch_model.Model(spec, precision="float64")
    torch_weights.load_weights(model, weights)
    return model


def _by_flax(moment: Moment, objectives: ModuleType) -> Found:
    batch = moment.batch
    with jax.enable_x64(True):
        mix = None
        if batch.others is not None and batch.shares is not None:
            mix = flax_loss.Mix(jax.numpy.asarray(batch.others), jax.numpy.asarray(batch.shares))
        inputs, targets, lengths, again = (
            None if rows is None else jax.numpy.asarray(rows)
            for rows in (batch.inputs, batch.targets, batch.lengths, batch.again)
        )
        step = _compiled(moment.case.spec, moment.case.regularise, objectives)
        (objective, tally), gradients = step(
            moment.weights,
            moment.teacher,
            objectives.Rows(inputs, targets, lengths, mix, again),
            flax_random.Draw.of(**moment.key),
            Strengths(*map(np.float64, moment.strengths)),
        )
        named = {name: np.asarray(gradient) for name, gradient in gradients.items()}
        return Found(float(objective), float(tally.nats), int(tally.count), named)


@functools.cache
def _compiled(spec: ModelSpec, regularise: RegulariseSpec, objectives: ModuleType) -> Any:
    graph, _ = flax_weights.split(flax_model.Model(spec, precision="float64"))

    def value(
        weights: Any, averaged: Any, rows: Any, draw: flax_random.Draw, strengths: Strengths
    ) -> tuple[jax.Array, Any]:
        model, teacher = (flax_weights.merge(graph, held) for held in (weights, averaged))
        tally = objectives.tally_of(
            regularise, model, rows, draw=draw, strengths=strengths, teacher=teacher
        )
        return tally.objective, tally

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def trained(case: Case, twin: Twin, *, steps: int) -> NDArray[np.float64]:
    """The objective of each step of plain gradient descent; the teacher follows the weights."""
    moment, values = start(case, step=0), []
    for step in range(steps):
        moment = replace(moment, step=step)
        found = found_by(moment, twin)
        values.append(found.objective / found.count)
        weights = {
            name: weight - RATE / found.count * found.gradients[name]
            for name, weight in moment.weights.items()
        }
        teacher = {
            name: KEPT * held + (1.0 - KEPT) * weights[name]
            for name, held in moment.teacher.items()
        }
        moment = replace(moment, weights=weights, teacher=teacher)
    return np.array(values)
