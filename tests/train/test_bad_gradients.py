"""A batch whose loss is a number and whose gradient is none, on both real engines.

A token whose embedding is zero, as the first of a sample, under norms that divide by next to
nothing: it says nothing, so the loss is that of a guess, and the slope of the norms leaves float32.
No other sample reads it.
"""

from __future__ import annotations

import math
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pytest
from torch import distributed

from models.spec import LanguageHead, RmsNorm
from models.weights import initial_weights
from optim.controls import Controls, controls
from tasks.prepare.batch import Batch
from tasks.prepare.dataset import Windows
from tasks.prepare.order import sample_indices
from tasks.train.checkpoints import Checkpoints, parts_of
from tasks.train.engine import Engine, EngineState, StepResult
from tasks.train.events import Events
from tasks.train.identity import run_identity
from tasks.train.loop import Outcome, run_loop
from tasks.train.recovery import BadNumbers
from tasks.train.run_spec import CheckpointSpec
from tasks.train.spec import TrainSpec
from tasks.train.stopping import Stopping
from tasks.train.torch_step import TorchEngine
from tests.train.engines import BATCH, MODELS, OPTIM, flax, train_spec
from tests.train.engines import batch as batch_of
from tests.train.processes import in_two_processes

STEPS, EVERY, COUNT = 10, 4, 48
POISON = 319
# The smallest normal float32, doubled: JAX takes what is smaller for zero.
MODEL = MODELS["tiny_experts"].model_copy(
    update={"norm": RmsNorm(epsilon=2.4e-38), "head": LanguageHead(tied=False)}
)
# Backend, or an engine of its own, and what of `train` is changed.
HOW: dict[str, dict[str, Any]] = {
    "flax": {},
    "flax, zero 2, parts": {"zero_stage": 2, "accumulation": 2},
    "plain": {},
    **{f"zero {stage}": {"zero_stage": stage} for stage in range(4)},
    "zero 2, parts": {"zero_stage": 2, "accumulation": 2},
}
LIMIT_S = 120


def opened(how: str, *, workers: int = 1) -> Engine:
    """An engine at first weights in which one token says nothing; nothing teaches it more."""
    changes = {"precision": "float32", "workers": workers, **HOW[how]}
    if how.startswith("flax"):
        engine: Engine = flax(MODEL, OPTIM, train_spec("flax", **changes))
    else:
        kind: Literal["plain", "deepspeed"] = "plain" if how == "plain" else "deepspeed"
        engine = TorchEngine(MODEL, OPTIM, train_spec(**changes), engine=kind)
    weights = initial_weights(MODEL, seed=7)
    weights["embedding.table.weight"][POISON] = 0.0
    engine.load(EngineState(weights))
    return engine


def same_bits(first: EngineState, second: EngineState) -> bool:
    return all(
        first_part[name].tobytes() == second_part[name].tobytes()
        for first_part, second_part in zip(
            parts_of(first).values(), parts_of(second).values(), strict=True
        )
        for name in first_part.keys() | second_part.keys()
    )


def batch_at(step: int, *, poisoned: bool = False) -> Batch:
    batch = batch_of(MODEL, step=step)
    inputs = np.where(batch.inputs == POISON, 0, batch.inputs)
    if poisoned:
        # In the share of the second of two workers.
        inputs[2, 0] = POISON
    return Batch(inputs, batch.targets, batch.samples)


def trained(how: str, *, meets_it: bool, rank: int = 0, workers: int = 1) -> EngineState:
    """The state after four good steps, and before the third perhaps a bad one."""
    engine = opened(how, workers=workers)
    rows = slice(rank * BATCH // workers, (rank + 1) * BATCH // workers)
    for step in range(4):
        now = controls(OPTIM, step=step, total_steps=STEPS)
        if meets_it and step == 2:
            before = engine.state()
            result = engine.step(batch_at(step, poisoned=True).rows(rows), now)
            assert math.isfinite(result.loss) and math.isfinite(result.objective)
            assert not math.isfinite(result.gradient_norm)
            assert not result.taken
            assert same_bits(engine.state(), before)
        result = engine.step(batch_at(step).rows(rows), now)
        assert result.taken and math.isfinite(result.gradient_norm)
    state = engine.state()
    engine.close()
    return state


@pytest.mark.parametrize("how", [how for how in HOW if how != "flax, zero 2, parts"])
def test_a_gradient_that_is_no_number_leaves_no_trace(how: str) -> None:
    """Neither in weights nor slots, nor in any step after it."""
    assert same_bits(trained(how, meets_it=True), trained(how, meets_it=False))


def leaves_no_trace(rank: int, port: int, backend: str) -> list[str]:
    """The ways of a framework in which it leaves none on one of two workers, and its fellow."""
    address = f"127.0.0.1:{port}"
    if backend == "flax":
        jax.distributed.initialize(address, 2, rank, initialization_timeout=LIMIT_S)
    else:
        os.environ["LOCAL_RANK"] = str(rank)
        distributed.init_process_group(
            "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=LIMIT_S),
        )
    return [
        how
        for how in HOW
        if how.startswith("flax") == (backend == "flax")
        and same_bits(
            trained(how, meets_it=True, rank=rank, workers=2),
            trained(how, meets_it=False, rank=rank, workers=2),
        )
    ]


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_nor_does_it_where_one_worker_of_two_meets_it(backend: str) -> None:
    for without in in_two_processes(leaves_no_trace, backend):
        assert without == [how for how in HOW if how.startswith("flax") == (backend == "flax")]


class Seen(NamedTuple):
    """A step of a run: its samples, and the state around it."""

    samples: list[int]
    before: EngineState
    after: EngineState


class Run:
    """A run of the loop over samples of which one is poisoned.

    Attributes:
        sick: the samples of its batch.
        seen: the steps that the engine made.
        error: why it ended before its last step.
    """

    def __init__(self, how: str, folder: Path, action: Literal["skip", "rollback", "stop"]) -> None:
        train = TrainSpec(
            backend="flax" if how == "flax" else "torch",
            steps=STEPS,
            batch=BATCH,
            seed=7,
            validation_batches=1,
            bad_numbers=BadNumbers(action=action),
            checkpoint=CheckpointSpec(every_steps=EVERY, keep=9),
        )
        batch = sample_indices(COUNT, seed=train.seed, step=6, batch=BATCH)
        self.sick = batch.tolist()
        draw = np.random.default_rng(3)
        context = MODEL.inputs.length
        tokens = draw.integers(0, POISON, COUNT * context + 1).astype(np.uint16)
        held_out = Windows(tokens[: 8 * context + 1].copy(), context)
        tokens[self.sick[2] * context] = POISON
        self.events = Events(folder / "events.jsonl")
        identity = run_identity(MODEL, OPTIM, train, data="d" * 64)
        self.checkpoints = Checkpoints(folder, identity, train.checkpoint.keep, self.events)
        self.seen: list[Seen] = []
        self.error, self.outcome = "", Outcome(0, finished=False)
        engine = opened(how)
        really_step = engine.step

        def step(batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
            before = engine.state()
            result = really_step(batch, controls, loss_scale=loss_scale)
            self.seen.append(Seen(batch.samples.tolist(), before, engine.state()))
            return result

        engine.step = step  # type: ignore[method-assign]
        try:
            self.outcome = run_loop(
                engine,
                train=train,
                optim=OPTIM,
                training=Windows(tokens, context),
                validation=held_out,
                positions=context,
                checkpoints=self.checkpoints,
                start=None,
                stopping=Stopping(folder),
            )
        except ValueError as error:
            self.error = str(error)
        finally:
            engine.step = really_step  # type: ignore[method-assign]
            engine.close()

    def told(self, kind: str) -> str:
        """The message of the only event that is not of a good run; it names the samples."""
        (event,) = self.events.read()
        assert event["event"] == kind
        assert (event["step"], event["samples"]) == (6, self.sick)
        message: str = event["message"]
        assert re.search(r"the loss is \d+\.\d+, the objective \d+.* norm (nan|inf)", message)
        return message

    def check_that_nothing_changed(self) -> None:
        """The batch was met once, as the seventh, and all is as before it."""
        (met,) = (place for place, seen in enumerate(self.seen) if seen.samples == self.sick)
        assert met == 6
        assert same_bits(self.seen[met].before, self.seen[met].after)
        assert not same_bits(self.seen[met - 1].before, self.seen[met - 1].after)


@pytest.mark.parametrize("how", ["flax", "zero 1"])
def test_its_batch_is_skipped_and_told(how: str, tmp_path: Path) -> None:
    run = Run(how, tmp_path, "skip")
    assert run.outcome == Outcome(STEPS, finished=True)
    assert "step 6 was left out" in run.told("skipped")
    run.check_that_nothing_changed()
    # The next batch takes its place, and what it meets is what the bad one met.
    assert len(run.seen) == STEPS + 1
    assert same_bits(run.seen[7].before, run.seen[6].before)
    assert run.checkpoints.steps() == [4, 8, 10]


@pytest.mark.parametrize("how", ["flax", "zero 1"])
def test_its_run_goes_back_to_the_checkpoint_and_tells(how: str, tmp_path: Path) -> None:
    run = Run(how, tmp_path, "rollback")
    assert run.outcome == Outcome(STEPS, finished=True)
    assert "went back from step 6 to step 4" in run.told("rolled_back")
    run.check_that_nothing_changed()
    assert len(run.seen) == 7 + STEPS - EVERY
    assert same_bits(run.seen[7].before, run.checkpoints.read(EVERY).state)
    assert run.checkpoints.steps() == [4, 8, 10]


@pytest.mark.parametrize("how", ["flax", "zero 1"])
def test_it_ends_a_run_that_is_to_stop(how: str, tmp_path: Path) -> None:
    run = Run(how, tmp_path, "stop")
    assert run.error == run.told("diverged")
    run.check_that_nothing_changed()
    assert run.checkpoints.steps() == [4]
