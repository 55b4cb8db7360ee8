"""Small runs that the tests of both engines share."""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.presets import tiny_image, tiny_language
from models.spec import (
    Capacity,
    CosineCurve,
    DropoutSpec,
    Experts,
    Gated,
    InitSpec,
    LayerSpec,
    LinearWarmup,
    ModelSpec,
    Normal,
    Point,
    Points,
    TokenChoice,
)
from models.weights import initial_weights
from optim.controls import controls
from optim.gradient import ClipNorm, GradientSpec
from optim.schedules import Schedule
from optim.rules import AdamW
from optim.spec import OptimSpec
from tasks.prepare.batch import Batch
from tasks.train.engine import Engine, EngineState, StepResult
from tasks.train.flax_step import FlaxEngine
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.spec import TrainSpec
from tasks.train.torch_step import TorchEngine
from tasks.train.worker import build_engine
from tests.tolerances import CURVE_FLOAT32_FACTOR, CURVE_FLOAT32_LOSS

BATCH = 4
# Larger first weights than by default: at 0.02 attention is so flat that positions hardly matter.
CHANGES = {
    "dropout": DropoutSpec(embedding=0.1, residual=0.1),
    "init": InitSpec(matrix=Normal(std=0.1)),
}
MODELS: dict[str, ModelSpec] = {
    "tiny_language": tiny_language().model_copy(update=CHANGES),
    "tiny_image": tiny_image().model_copy(update=CHANGES),
}


def experts() -> ModelSpec:
    """Every second layer a mixture of experts whose load is balanced by biases; all that changes
    from step to step is on."""
    own = MODELS["tiny_language"]
    mixture = Experts(
        experts=4,
        expert=Gated(hidden=32),
        router=TokenChoice(active=2, balance_rate=1e-3),
        capacity=Capacity(training=1.25),
        jitter=0.01,
        balance=0.01,
        z=0.001,
    )
    dense = LayerSpec(
        positions=own.positions, attention=own.attention, feed_forward=own.feed_forward
    )
    strength = Points(points=(Point(step=2, value=1.0), Point(step=9, value=0.0)))
    dropout = DropoutSpec(residual=0.1, path=0.1, strength=strength)
    pattern = (dense, dense.model_copy(update={"feed_forward": mixture}))
    return own.model_copy(update={"pattern": pattern, "dropout": dropout})


MODELS["tiny_experts"] = experts()
OPTIM = OptimSpec(
    rule=AdamW(beta1=0.9, beta2=0.95, epsilon=1e-8, decay=0.1),
    schedule=Schedule(peak=3e-3, curve=CosineCurve(warmup=LinearWarmup(steps=5))),
    gradient=GradientSpec(clip=ClipNorm(limit=0.5)),
)


def train_spec(
    backend: Literal["flax", "torch"] = "torch",
    *,
    precision: Literal["float32", "float64"] = "float64",
    workers: int = 1,
    zero_stage: Literal[0, 1, 2, 3] = 1,
    accumulation: int = 1,
    steps: int = 50,
) -> TrainSpec:
    """A run with seed 7 and batches of four."""
    return TrainSpec(
        backend=backend,
        steps=steps,
        batch=BATCH,
        seed=7,
        precision=precision,
        workers=workers,
        zero_stage=zero_stage,
        accumulation=accumulation,
    )


def shared(
    model: ModelSpec,
    optim: OptimSpec,
    train: TrainSpec,
    regularise: RegulariseSpec = RegulariseSpec(),
) -> Engine:
    """An engine at `train.zero_stage` though one worker shares with nobody, if `optim` may."""
    if train.backend == "torch" and train.precision != "float64" and train.zero_stage:
        with suppress(ValueError):
            return TorchEngine(model, optim, train, engine="deepspeed", regularise=regularise)
    return build_engine(model, optim, train, regularise)


def batch(spec: ModelSpec, *, step: int, rank: int = 0, workers: int = 1) -> Batch:
    """A worker's rows of a step's batch; there is something to learn in it."""
    generator = np.random.default_rng((11, step))
    if spec.inputs.kind == "tokens":
        length, vocabulary = spec.inputs.context, spec.inputs.vocabulary
        first = generator.integers(0, vocabulary, (BATCH, 1))
        stride = generator.integers(1, 4, (BATCH, 1))
        tokens = ((first + stride * np.arange(length + 1)) % vocabulary).astype(np.int32)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
    else:
        assert spec.inputs.kind == "patches"
        classes = 10
        targets = generator.integers(0, classes, BATCH).astype(np.int32)
        shape = (BATCH, spec.inputs.height, spec.inputs.width, spec.inputs.channels)
        light = targets.reshape(-1, 1, 1, 1) / classes
        inputs = (0.5 * light + 0.5 * generator.random(shape)).astype(np.float32)
    samples = 5 + step * BATCH + np.arange(BATCH, dtype=np.int64)
    rows = slice(rank * BATCH // workers, (rank + 1) * BATCH // workers)
    return Batch(
        np.ascontiguousarray(inputs[rows]), np.ascontiguousarray(targets[rows]), samples[rows]
    )


def run(
    engine: Engine,
    spec: ModelSpec,
    *,
    steps: int,
    start: int = 0,
    total_steps: int = 50,
    optim: OptimSpec = OPTIM,
    rank: int = 0,
    workers: int = 1,
) -> list[StepResult]:
    """Train from `start` up to `steps`."""
    return [
        engine.step(
            batch(spec, step=step, rank=rank, workers=workers),
            controls(optim, step=step, total_steps=total_steps),
        )
        for step in range(start, steps)
    ]


@functools.cache
def _compiled(model: ModelSpec, optim: OptimSpec, train: TrainSpec) -> FlaxEngine:
    return FlaxEngine(model, optim, train)


def flax(model: ModelSpec, optim: OptimSpec, train: TrainSpec) -> FlaxEngine:
    """An engine at its first weights; each program is compiled once for all tests."""
    engine = _compiled(model, optim, train)
    engine.load(EngineState(initial_weights(model, seed=train.seed)))
    return engine


@functools.cache
def exact_losses(model: str, steps: int = 50) -> NDArray[np.float64]:
    """The losses of one worker in float64, which every other run is held to."""
    engine = flax(MODELS[model], OPTIM, train_spec("flax"))
    return losses(run(engine, MODELS[model], steps=steps))


@functools.cache
def float32_band(model: str, steps: int = 50) -> NDArray[np.float64]:
    """How far float32 losses may lie from the float64 ones, relatively, at each step.

    The float64 run is repeated with every weight moved by up to half a float32 rounding before
    each step. What that does to the losses, times a factor, plus the rounding of the loss itself.
    """
    spec, exact = MODELS[model], exact_losses(model, steps)
    engine = flax(spec, OPTIM, train_spec("flax"))
    moved = np.zeros(steps)
    generator = np.random.default_rng(0)
    for step in range(steps):
        state = engine.state()
        shaken = {
            name: weight * (1 + 2.0**-24 * generator.uniform(-1, 1, weight.shape))
            for name, weight in state.weights.items()
        }
        engine.load(EngineState(shaken, state.slots))
        (result,) = run(engine, spec, start=step, steps=step + 1)
        moved[step] = abs(result.loss / exact[step] - 1)
    return CURVE_FLOAT32_LOSS + CURVE_FLOAT32_FACTOR * np.maximum.accumulate(moved)


def losses(results: list[StepResult]) -> NDArray[np.float64]:
    """The losses of steps, (steps,)."""
    return np.array([result.loss for result in results])


def distance(found: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative difference of two curves at each step."""
    return np.abs(found / expected[: len(found)] - 1)
