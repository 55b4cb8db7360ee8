"""One batch through the reference and both twins, and what must agree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import models.flax.model
import models.flax.random
import models.flax.weights
import models.torch.model
import models.torch.random
import models.torch.weights
from models.dropout import strength_at
from models.inputs import IGNORED
from models.reference import model as reference
from models.reference.random import Draw
from models.spec import ModelSpec, Precision
from models.weights import initial_weights, weight_table
from tests.tolerances import FORWARD_FLOAT64, GRADIENT_FLOAT64

Array = NDArray[Any]
Backend = Literal["flax", "torch"]
STEP = 1e-30


@dataclass(frozen=True)
class Case:
    """A model, a batch and the key of its dropout."""

    spec: ModelSpec
    weights: dict[str, NDArray[np.float64]]
    inputs: Array
    targets: NDArray[np.int64]
    draw: Draw | None


@dataclass(frozen=True)
class Result:
    """Logits, sums over the batch, and the gradient of the objective."""

    logits: Array
    objective: Array
    nats: Array
    count: Array
    load: Array
    gradients: dict[str, Array]


def case_of(spec: ModelSpec, *, training: bool = True) -> Case:
    """A batch of three; no weight is zero or one, so that leaving one out shows."""
    generator = np.random.default_rng(0)
    weights = {
        name: first + 0.3 * generator.standard_normal(first.shape)
        for name, first in initial_weights(spec, seed=0).items()
    }
    inputs: Array
    match spec.inputs.kind:
        case "tokens":
            shape: tuple[int, ...] = (3, spec.inputs.context - 1)
            inputs = generator.integers(0, spec.inputs.vocabulary, shape)
        case "patches":
            shape = (3, spec.inputs.height, spec.inputs.width, spec.inputs.channels)
            inputs = generator.random(shape)
        case "frames":
            inputs = generator.standard_normal((3, spec.inputs.context, spec.inputs.features))
    if spec.head.kind == "classes":
        targets = generator.integers(0, spec.head.classes, 3)
    else:
        targets = generator.integers(0, weights["embedding.table.weight"].shape[0], inputs.shape)
    # One target is not scored; of classes, one sample's.
    targets[(1, 2) if targets.ndim == 2 else 1] = IGNORED
    step = 2**31 + 5
    samples = np.array([0, 7, 2**32 - 1])
    strength = strength_at(spec, step=step, total_steps=2**32)
    draw = Draw(seed=3, step=step, samples=samples, strength=strength)
    return Case(spec, weights, inputs, targets, draw if training else None)


def run(case: Case, backend: Backend, *, precision: Precision = "float64") -> Result:
    """Forward and backward through one twin; Flax is jitted where few variants are asked."""
    if backend == "torch":
        return run_torch(case, precision)
    return run_flax(case, precision, jitted=precision != "float64")


def run_flax(case: Case, precision: Precision, *, jitted: bool = False) -> Result:
    """Forward and backward, operation by operation (compiled once for all variants) or jitted."""
    flax = models.flax
    with jax.enable_x64(precision == "float64"):
        model = flax.model.Model(case.spec, precision=precision)
        flax.weights.load_weights(model, case.weights)
        graph, arrays = flax.weights.split(model)
        draw = flax.random.Draw.of(**vars(case.draw)) if case.draw else None
        inputs, targets = jax.numpy.asarray(case.inputs), jax.numpy.asarray(case.targets)

        def compute(arrays: dict[str, jax.Array]) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            model = flax.weights.merge(graph, arrays)
            tally = model(inputs, targets, draw=draw)
            return tally.objective, (tally, model.logits(inputs, draw=draw))

        both = jax.value_and_grad(compute, has_aux=True)
        (_, (tally, logits)), gradients = (jax.jit(both) if jitted else both)(arrays)
        loads = [np.asarray(load) for load in (*tally.chosen, *tally.taken)]
    named = {name: np.asarray(gradient) for name, gradient in gradients.items()}
    return Result(
        np.asarray(logits),
        np.asarray(tally.objective),
        np.asarray(tally.nats),
        np.asarray(tally.count),
        _joined(loads),
        named,
    )


def run_torch(case: Case, precision: Precision) -> Result:
    """Forward and backward in eager mode."""
    twin = models.torch
    model = twin.model.Model(case.spec, precision=precision)
    twin.weights.load_weights(model, case.weights)
    draw = twin.random.Draw.of(**vars(case.draw)) if case.draw else None
    inputs, targets = torch.tensor(case.inputs), torch.tensor(case.targets)
    logits = model.logits(inputs, draw=draw)
    tally = model(inputs, targets, draw=draw)
    torch.autograd.backward(tally.objective)
    table, gradients = weight_table(case.spec), {}
    for name, parameter in twin.weights.named_parameters(model).items():
        assert (parameter.grad is not None) == table[name].trained, name
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        gradients[name] = gradient.numpy()
    loads = [load.numpy() for load in (*tally.chosen, *tally.taken)]
    return Result(
        logits.detach().numpy(),
        tally.objective.detach().numpy(),
        tally.nats.numpy(),
        tally.count.numpy(),
        _joined(loads),
        gradients,
    )


def check_forward(case: Case, result: Result, *, tolerance: float = FORWARD_FLOAT64) -> None:
    """Hold logits and sums to the reference, relative to the largest of each."""
    logits = reference.logits(case.spec, case.weights, case.inputs, draw=case.draw)
    tally = reference.objective(case.spec, case.weights, case.inputs, case.targets, case.draw)
    assert difference(result.logits, logits) < tolerance
    assert difference(result.objective, np.asarray(tally.objective)) < tolerance
    assert difference(result.nats, np.asarray(tally.nats)) < tolerance
    assert result.count == tally.count
    loads = [np.asarray(load) for load in (*tally.chosen, *tally.taken)]
    assert (result.load == _joined(loads)).all()


def check_gradients(case: Case, result: Result, *, tolerance: float = GRADIENT_FLOAT64) -> None:
    """Hold gradients to exact derivatives of the reference, one random direction a weight."""
    generator = np.random.default_rng(1)
    exact, found = [], []
    for name, weight in case.weights.items():
        direction = generator.standard_normal(weight.shape)
        moved: dict[str, Array] = {**case.weights, name: weight + 1j * STEP * direction}
        tally = reference.objective(case.spec, moved, case.inputs, case.targets, case.draw)
        exact.append(np.imag(tally.objective) / STEP)
        found.append(np.sum(result.gradients[name] * direction))
    assert difference(np.array(found), np.array(exact)) < tolerance


def check_twins(first: Result, second: Result, *, tolerance: float) -> None:
    """Hold every single gradient of one twin to the other's, relative to the largest of all."""
    assert list(sorted(first.gradients)) == list(sorted(second.gradients))
    largest = max(float(np.abs(gradient).max()) for gradient in first.gradients.values())
    for name, gradient in first.gradients.items():
        assert np.abs(gradient - second.gradients[name]).max() < tolerance * largest, name


def difference(found: Array, expected: Array) -> float:
    """Largest absolute difference over the largest expected value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def without_dropout(case: Case) -> Case:
    """The same batch outside training."""
    return replace(case, draw=None)


def _joined(loads: list[Array]) -> Array:
    return np.concatenate(loads) if loads else np.zeros(0)
