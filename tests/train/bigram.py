"""A real engine without a framework: softmax regression on the last token, momentum, NumPy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.presets import tiny_language
from models.random import Site, stream_keys, words
from models.spec import CosineCurve, LinearWarmup
from optim.controls import Controls
from optim.schedules import Schedule
from optim.rules import AdamW
from optim.spec import OptimSpec
from tasks.prepare.batch import Batch
from tasks.prepare.dataset import Windows
from tasks.train.checkpoints import Checkpoints
from tasks.train.engine import EngineState, LossSum, StepResult
from tasks.train.events import Events
from tasks.train.identity import run_identity
from tasks.train.recovery import BadNumbers
from tasks.train.run_spec import CheckpointSpec
from tasks.train.spec import TrainSpec

VOCABULARY = 16
CONTEXT = 4
CURVE = CosineCurve(warmup=LinearWarmup(steps=3))
OPTIM = OptimSpec(rule=AdamW(), schedule=Schedule(peak=0.5, curve=CURVE))
TRAIN = TrainSpec(
    backend="torch",
    steps=24,
    batch=4,
    seed=7,
    log_every_steps=5,
    validate_every_steps=8,
    validation_batches=2,
    checkpoint=CheckpointSpec(every_steps=6, keep=2),
    bad_numbers=BadNumbers(action="stop"),
)


class Bigram:
    """Learns which token follows which; drops inputs by the counter generator, as models do."""

    def __init__(self, *, seed: int = 7) -> None:
        self.weight = np.zeros((VOCABULARY, VOCABULARY), np.float32)
        self.momentum = np.zeros_like(self.weight)
        self.seed = seed
        self.trained_on: list[list[int]] = []
        self.closed = False

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        step, rate = controls.step, controls.rate
        self.trained_on.append(batch.samples.tolist())
        keys = stream_keys(seed=self.seed, step=step, samples=batch.samples, layer=0, site=Site(3))
        kept = words(keys, CONTEXT) > 2**30
        loss, gradient = self._differentiate(batch, kept)
        self.momentum = np.float32(0.9) * self.momentum + gradient
        self.weight = self.weight - np.float32(rate) * self.momentum
        return StepResult(loss, float(np.linalg.norm(gradient)), objective=loss)

    def loss(self, batch: Batch) -> LossSum:
        loss, _ = self._differentiate(batch, np.ones(batch.inputs.shape, bool))
        return LossSum(loss * batch.targets.size, batch.targets.size)

    def judged(self) -> AbstractContextManager[None]:
        return nullcontext()

    def state(self) -> EngineState:
        return EngineState({"weight": self.weight}, {"momentum": {"weight": self.momentum}})

    def replicas(self) -> dict[str, NDArray[np.int64]]:
        return {}

    def load(self, state: EngineState) -> None:
        self.weight = state.weights["weight"]
        self.momentum = state.slots["momentum"]["weight"]

    def close(self) -> None:
        self.closed = True

    def _differentiate(
        self, batch: Batch, kept: NDArray[np.bool_]
    ) -> tuple[float, NDArray[np.float32]]:
        logits = self.weight[batch.inputs] * kept[..., None]
        exponent = np.exp(logits - logits.max(-1, keepdims=True))
        share = exponent / exponent.sum(-1, keepdims=True)
        right = np.take_along_axis(share, batch.targets[..., None], -1)
        slope = (share - np.eye(VOCABULARY, dtype=np.float32)[batch.targets]) * kept[..., None]
        gradient = np.zeros_like(self.weight)
        np.add.at(gradient, batch.inputs, slope / batch.targets.size)
        return float(-np.log(right).mean()), gradient.astype(np.float32)


class Bumpy(Bigram):
    """Its validation loss falls, rises and falls again, whatever it learned."""

    LOSSES = {2: 5.0, 4: 4.0, 6: 4.5, 8: 4.25, 10: 3.0, 12: 3.5, 14: 3.25, 16: 3.75, 18: 2.0}

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    def step(self, *arguments: Any, **named: Any) -> StepResult:
        self.done += 1
        return super().step(*arguments, **named)

    def load(self, state: EngineState) -> None:
        super().load(state)
        self.done = int(state.slots["done"]["count"])

    def state(self) -> EngineState:
        held = super().state()
        return EngineState(held.weights, {**held.slots, "done": {"count": np.asarray(self.done)}})

    def loss(self, batch: Batch) -> LossSum:
        return LossSum(self.LOSSES.get(self.done, 2.0) * batch.targets.size, batch.targets.size)


def tokens(count: int, *, seed: int = 0) -> Windows:
    """`count` windows of a stream in which a token tells a lot about the next."""
    draw = np.random.default_rng(seed)
    stream = (np.arange(count * CONTEXT + 1) * 3 + draw.integers(0, 2, count * CONTEXT + 1)) % 16
    return Windows(stream.astype(np.uint16), CONTEXT)


def checkpoints(
    folder: Path, *, train: TrainSpec = TRAIN, changed: dict[str, Any] | None = None
) -> Checkpoints:
    """The checkpoints of a run in `folder`; `changed` overrides values of its identity."""
    identity = run_identity(tiny_language(), OPTIM, train, data="d" * 64)
    identity |= changed or {}
    events, kept = Events(folder / "events.jsonl"), train.checkpoint
    return Checkpoints(folder, identity, kept.keep, events, keep_best=kept.best)
