"""Bad numbers: skipped, or left behind with the batches since the last checkpoint; then the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from optim.controls import Controls
from tasks.prepare.batch import Batch
from tasks.prepare.order import sample_indices
from tasks.train.engine import StepResult
from tasks.train.loop import Outcome, run_loop
from tasks.train.recovery import BadNumbers
from tasks.train.scaling import LossScaleSpec
from tasks.train.spec import TrainSpec
from tasks.train.stopping import Stopping
from tests.train.bigram import CONTEXT, OPTIM, TRAIN, Bigram, checkpoints, tokens

TRAINING, VALIDATION = tokens(200), tokens(9, seed=1)


class Poisoned(Bigram):
    """Meets bad numbers in batches that hold certain samples, or at certain calls."""

    def __init__(self, *samples: int, how: str = "gradient") -> None:
        super().__init__()
        self.samples, self.how = set(samples), how
        self.scales: list[float] = []

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        self.scales.append(loss_scale)
        if not self.samples & set(batch.samples.tolist()):
            return super().step(batch, controls, loss_scale=loss_scale)
        if self.how == "spike":
            result = super().step(batch, controls, loss_scale=loss_scale)
            self.weight = self.weight * 0 - 7
            return replace(result, loss=50.0)
        self.trained_on.append(batch.samples.tolist())
        return StepResult(2.0, float("nan"), objective=2.0, taken=False)


def run(folder: Path, engine: Bigram, **changes: Any) -> Outcome:
    train = TrainSpec.model_validate(TRAIN.model_dump() | changes)
    held = checkpoints(folder, train=train)
    return run_loop(
        engine,
        train=train,
        optim=OPTIM,
        training=TRAINING,
        validation=VALIDATION,
        positions=CONTEXT,
        checkpoints=held,
        start=held.newest(),
        stopping=Stopping(folder),
    )


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in checkpoints(folder).events.read() if event["event"] == kind]


def batch_at(place: int) -> list[int]:
    found = sample_indices(len(TRAINING), seed=TRAIN.seed, step=place, batch=TRAIN.batch)
    return list(map(int, found))


def test_a_rollback_passes_over_the_batches_since_the_checkpoint(tmp_path: Path) -> None:
    bad = batch_at(8)
    engine = Poisoned(bad[0])
    assert run(tmp_path, engine, bad_numbers={"action": "rollback"}) == Outcome(24, finished=True)
    # Steps 0..8, then from step 6 on with the batches behind the bad one.
    places = [*range(9), *range(9, 9 + 18)]
    assert engine.trained_on == [batch_at(place) for place in places]
    (event,) = events(tmp_path, "rolled_back")
    assert (event["step"], event["samples"]) == (8, bad)
    assert "from step 8 to step 6" in event["message"] and "time 1 of 3" in event["message"]
    manifest = checkpoints(tmp_path).steps()
    assert manifest[-1] == 24
    assert np.isfinite(engine.weight).all()


def test_a_killed_run_leaves_the_same_batches_behind(tmp_path: Path) -> None:
    whole, bad = Poisoned(batch_at(8)[0]), {"action": "rollback"}
    run(tmp_path / "whole", whole, bad_numbers=bad)

    class Killed(Exception):
        pass

    class Dies(Poisoned):
        def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
            if len(self.trained_on) == dies_at:
                raise Killed
            return super().step(batch, controls, loss_scale=loss_scale)

    for dies_at in (7, 5, 4, 11):
        with pytest.raises(Killed):
            run(tmp_path / "killed", Dies(batch_at(8)[0]), bad_numbers=bad)
    again = Poisoned(batch_at(8)[0])
    run(tmp_path / "killed", again, bad_numbers=bad)
    assert again.weight.tobytes() == whole.weight.tobytes()


def test_bad_numbers_a_fourth_time_end_the_run(tmp_path: Path) -> None:
    every = [batch_at(place)[0] for place in range(8, 48, 2)]
    with pytest.raises(ValueError, match="after 3 that were left behind: .*gradient norm nan"):
        run(tmp_path, Poisoned(*every), bad_numbers={"action": "rollback"})
    assert len(events(tmp_path, "rolled_back")) == 3
    (event,) = events(tmp_path, "diverged")
    assert event["samples"][0] in every


def test_without_a_checkpoint_there_is_nowhere_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stopped at step 2: .* no checkpoint is there to go back"):
        run(tmp_path, Poisoned(batch_at(2)[0]), bad_numbers={"action": "rollback"})


def test_a_skipped_batch_changes_nothing_and_is_told(tmp_path: Path) -> None:
    engine = Poisoned(batch_at(2)[1])
    assert run(tmp_path, engine, bad_numbers={"action": "skip"}) == Outcome(24, finished=True)
    assert engine.trained_on == [batch_at(place) for place in range(25)]
    (event,) = events(tmp_path, "skipped")
    assert (event["step"], event["samples"]) == (2, batch_at(2))
    with pytest.raises(ValueError, match="after 1 that were left behind"):
        twice = Poisoned(batch_at(2)[1], batch_at(5)[1])
        run(tmp_path / "twice", twice, bad_numbers={"action": "skip", "times": 1})


def test_a_loss_that_is_a_spike_is_left_behind(tmp_path: Path) -> None:
    engine = Poisoned(batch_at(14)[0], how="spike")
    run(tmp_path, engine, bad_numbers={"action": "rollback", "spike": 4.0})
    (event,) = events(tmp_path, "rolled_back")
    assert event["step"] == 14 and "more than train.bad_numbers.spike=4 times" in event["message"]
    assert (engine.weight > -7).all()
    calm = Poisoned(how="spike")
    run(tmp_path / "calm", calm, bad_numbers={"action": "rollback", "spike": 4.0})
    assert events(tmp_path / "calm", "rolled_back") == []


def test_a_spike_cannot_be_skipped() -> None:
    with pytest.raises(ValidationError, match="train.bad_numbers.spike needs action=rollback"):
        BadNumbers(action="skip", spike=3.0)


def test_an_overflow_of_float16_halves_the_scale_and_costs_no_strike(tmp_path: Path) -> None:
    engine = Poisoned(*(batch_at(place)[0] for place in (3, 4, 5, 9, 15)))
    spec = LossScaleSpec(initial=64.0, growth_steps=6)
    run(tmp_path, engine, precision="mixed_float16", loss_scale=spec.model_dump())
    assert engine.scales == [64.0] * 4 + [32.0, 16.0] + [8.0] * 4 + [4.0] * 6 + [2.0] * 6 + [
        4.0,
        4.0,
    ]
    assert len(events(tmp_path, "skipped")) == 5


def test_an_overflow_at_scale_1_is_bad(tmp_path: Path) -> None:
    engine = Poisoned(batch_at(8)[0])
    spec = {"initial": 1.0}
    with pytest.raises(ValueError, match="training stopped at step 8"):
        run(tmp_path, engine, precision="mixed_float16", loss_scale=spec)
