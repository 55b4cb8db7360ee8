"""Numbers that turn bad at random places, on both real engines: `make proof`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from models.spec import ConstantCurve
from models.weights import initial_weights
from optim.controls import Controls
from optim.gradient import ClipNorm, GradientSpec
from optim.rules import AdamW
from optim.schedules import Schedule
from optim.spec import OptimSpec
from tasks.prepare.batch import Batch
from tasks.prepare.dataset import Images
from tasks.prepare.order import sample_indices
from tasks.train.checkpoints import Checkpoints, parts_of
from tasks.train.engine import Engine, EngineState, StepResult
from tasks.train.events import Events
from tasks.train.identity import run_identity
from tasks.train.loop import run_loop
from tasks.train.recovery import FEWEST
from tasks.train.run_spec import CheckpointSpec
from tasks.train.spec import TrainSpec
from tasks.train.stopping import Stopping
from tests.train.chaos_counts import ROUNDS, tell
from tests.train.engines import MODELS, flax, shared

Backend = Literal["flax", "torch"]
Meddle = Callable[[Engine, Batch], None]

pytestmark = pytest.mark.proof

MODEL = MODELS["tiny_image"]
COUNT, BATCH, STEPS, EVERY = 96, 4, 20, 4
TRIALS = 6
OPTIM = OptimSpec(
    rule=AdamW(),
    schedule=Schedule(peak=1e-3, curve=ConstantCurve()),
    gradient=GradientSpec(clip=ClipNorm(limit=1.0)),
)
TRAIN = TrainSpec(
    backend="torch",
    steps=STEPS,
    batch=BATCH,
    seed=3,
    log_every_steps=5,
    validate_every_steps=STEPS,
    validation_batches=2,
    # All that is ever written stays, so that all of it is looked at.
    checkpoint=CheckpointSpec(every_steps=EVERY, keep=1000),
)


def images(draw: np.random.Generator, count: int = COUNT) -> Images:
    """Pictures whose brightness is their class, of a model's size."""
    labels = draw.integers(0, 10, count).astype(np.int32)
    noise = draw.random((count, 8, 8, 1))
    return Images((0.05 * labels.reshape(-1, 1, 1, 1) + 0.5 * noise).astype(np.float32), labels)


@contextmanager
def engine_of(backend: Backend) -> Iterator[Engine]:
    """A real engine at its first weights; Flax compiles once for all runs."""
    train = TRAIN.model_copy(update={"backend": backend})
    if backend == "flax":
        engine = flax(MODEL, OPTIM, train)
        really_step = engine.step
        yield engine
        engine.step = really_step  # type: ignore[method-assign]
        return
    torch = shared(MODEL, OPTIM, train)
    yield torch
    torch.close()


class Run:
    """A run of the loop that somebody meddles with.

    Attributes:
        error: why it ended before its last step.
        losses: of the steps, as the engine gave them.
        batches: what the engine trained on, in order.
    """

    def __init__(
        self,
        backend: Backend,
        folder: Path,
        training: Images,
        *,
        before: Meddle | None = None,
        after: Meddle | None = None,
        spike: float | None = None,
    ) -> None:
        changes: dict[str, Any] = {"backend": backend}
        changes["bad_numbers"] = TRAIN.bad_numbers.model_copy(update={"spike": spike})
        train = TRAIN.model_copy(update=changes)
        identity = run_identity(MODEL, OPTIM, train, data="d" * 64)
        self.events = Events(folder / "events.jsonl")
        self.checkpoints = Checkpoints(folder, identity, train.checkpoint.keep, self.events)
        self.losses: list[float] = []
        self.batches: list[list[int]] = []
        self.error: str | None = None
        with engine_of(backend) as engine:
            really_step = engine.step

            def step(batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
                self.batches.append(batch.samples.tolist())
                if before is not None:
                    before(engine, batch)
                result = really_step(batch, controls, loss_scale=loss_scale)
                if after is not None:
                    after(engine, batch)
                self.losses.append(result.loss)
                return result

            engine.step = step  # type: ignore[method-assign]
            try:
                run_loop(
                    engine,
                    train=train,
                    optim=OPTIM,
                    training=training,
                    validation=images(np.random.default_rng(1), 16),
                    positions=1,
                    checkpoints=self.checkpoints,
                    start=None,
                    stopping=Stopping(folder),
                )
            except ValueError as error:
                self.error = str(error)
            self.weights = engine.state().weights

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind."""
        return [event for event in self.events.read() if event["event"] == kind]

    def check_checkpoints(self) -> int:
        """Every checkpoint that was ever written is finite; how many there are."""
        steps = self.checkpoints.steps()
        for step in steps:
            state = self.checkpoints.read(step).state
            for part, arrays in parts_of(state).items():
                for name, array in arrays.items():
                    assert np.isfinite(array).all(), f"step {step}: {part} of {name}"
        return len(steps)


def once(victim: int, act: Callable[[Engine], None]) -> Meddle:
    """Act on the engine at the first batch that holds this sample."""
    acted = False

    def meddle(engine: Engine, batch: Batch) -> None:
        nonlocal acted
        if not acted and victim in batch.samples:
            acted = True
            act(engine)

    return meddle


def put(engine: Engine, part: str, name: str, change: Callable[[NDArray[Any]], object]) -> None:
    """Change an array of the engine's state in place."""
    state = engine.state()
    copies = {
        each: {key: np.array(array) for key, array in arrays.items()}
        for each, arrays in parts_of(state).items()
    }
    change(copies[part][name])
    engine.load(EngineState(copies.pop("weights"), copies))


def sicken(array: NDArray[Any]) -> None:
    array.reshape(-1)[array.size // 2] = np.nan


def inflate(array: NDArray[Any]) -> None:
    array *= 300


def planted(
    kind: str, draw: np.random.Generator, training: Images
) -> tuple[Images, dict[str, Any], int]:
    """A data set and a meddler for one trial, and the sample at which the numbers turn bad."""
    # Something must be saved before, and a spike needs losses to be held against.
    step = int(draw.integers(FEWEST if kind == "spike" else EVERY, STEPS))
    batch = sample_indices(COUNT, seed=TRAIN.seed, step=step, batch=BATCH)
    victim = int(draw.choice(batch))
    if kind in ("no number", "infinite"):
        pixels = training.pixels.copy()
        value = np.nan if kind == "no number" else np.inf
        pixels[victim, draw.integers(8), draw.integers(8)] = value
        return Images(pixels, training.labels), {}, victim
    if kind == "spike":
        head = "head.output.weight"
        act = once(victim, lambda engine: put(engine, "weights", head, inflate))
        return training, {"before": act, "spike": 5.0}, victim
    names = sorted(initial_weights(MODEL, seed=0))
    name = str(draw.choice(names))
    act = once(victim, lambda engine: put(engine, "second_moment", name, sicken))
    return training, {"after": act}, victim


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("backend", ["torch", "flax"])
@pytest.mark.parametrize("kind", ["no number", "infinite", "spike", "slot"])
def test_bad_numbers_are_left_behind_with_their_samples(
    backend: Backend,
    kind: str,
    seed: int,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """A sample or a slot that is no number, and a loss ten times the others'."""
    training = images(np.random.default_rng(0))
    counts: Counter[str] = Counter()
    for trial in range(TRIALS):
        data, meddling, victim = planted(kind, np.random.default_rng((seed, trial)), training)
        run = Run(backend, tmp_path / str(trial), data, **meddling)
        assert run.error is None
        counts["checkpoints"] += run.check_checkpoints()
        assert run.checkpoints.steps() == list(range(EVERY, STEPS + 1, EVERY))
        assert all(np.isfinite(array).all() for array in run.weights.values())
        assert run.told("diverged") == []
        (event,) = run.told("rolled_back")
        counts["rollbacks"] += 1
        (met,) = (number for number, batch in enumerate(run.batches) if victim in batch)
        if kind == "slot":
            # It shows at the next save, or two steps later in the loss: its weight goes first.
            assert event["samples"] in run.batches[met : met + 3]
            continue
        assert victim in event["samples"] == run.batches[met]
        if kind == "spike":
            assert run.losses[met] > 10 * np.median(run.losses[:met])
            counts["tenfold losses"] += 1
    tell(record_property, f"{backend}, {kind}", **counts)
    assert counts["checkpoints"] == TRIALS * STEPS // EVERY


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_numbers_that_stay_bad_end_the_run_after_three_rollbacks(
    backend: Backend, seed: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    counts: Counter[str] = Counter()
    for trial in range(TRIALS):
        draw = np.random.default_rng((seed, trial))
        clean = images(np.random.default_rng(0))
        # From the sixth batch on each holds a bad sample, wherever the run goes on.
        probe = Run(backend, tmp_path / f"{trial}-clean", clean)
        assert probe.error is None and len(probe.batches) == STEPS
        unread = set(range(COUNT)).difference(*probe.batches)
        sick = unread | {int(draw.choice(batch)) for batch in probe.batches[5:]}
        pixels = clean.pixels.copy()
        pixels[sorted(sick), 0, 0] = np.nan
        run = Run(backend, tmp_path / f"{trial}-sick", Images(pixels, clean.labels))
        counts["checkpoints"] += run.check_checkpoints()
        assert run.checkpoints.steps() == [4]
        assert run.error is not None
        assert re.search(r"training stopped at step \d+, after 3 that were left behind", run.error)
        rolled, (diverged,) = run.told("rolled_back"), run.told("diverged")
        assert len(rolled) == 3
        for event in (*rolled, diverged):
            assert sick & set(event["samples"])
            assert event["samples"] in run.batches
        named = [
            int(number) for number in re.findall(r"samples ([\d, ]+) of", run.error)[0].split(",")
        ]
        assert named == diverged["samples"]
        counts["rollbacks"] += len(rolled)
        counts["stopped"] += 1
    tell(record_property, f"{backend}, persistent", **counts)
    assert counts["stopped"] == TRIALS
