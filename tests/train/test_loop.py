"""The loop: one order of samples, one result, however often it was interrupted."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.controls import Controls
from optim.schedule import rate
from tasks.prepare.batch import Batch
from tasks.prepare.dataset import Windows
from tasks.progress import Progress, silent
from tasks.train.callbacks import Callback, Step
from tasks.train.checkpoints import Checkpoint
from tasks.train.engine import StepResult
from tasks.train.loop import Outcome, Seat, run_loop, validation_batches
from tasks.train.run_spec import CheckpointSpec, EarlyStopping
from tasks.train.spec import TrainSpec
from tasks.train.speed import Peak
from tasks.train.stopping import Stopping
from tests.train.bigram import CONTEXT, OPTIM, TRAIN, Bigram, Bumpy, checkpoints, tokens

TRAINING, VALIDATION = tokens(31), tokens(9, seed=1)


def run(
    folder: Path,
    engine: Bigram,
    *,
    train: TrainSpec = TRAIN,
    training: Windows = TRAINING,
    progress: Progress = silent,
    callbacks: Sequence[Callback] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    held = checkpoints(folder, train=train)
    return run_loop(
        engine,
        train=train,
        optim=OPTIM,
        training=training,
        validation=VALIDATION,
        positions=CONTEXT,
        checkpoints=held,
        start=held.newest(),
        stopping=Stopping(folder),
        progress=progress,
        callbacks=callbacks,
        peak=Peak(flops_per_s=400.0, flops_per_token=2),
        clock=clock,
    )


def last(folder: Path, train: TrainSpec = TRAIN) -> Checkpoint:
    found = checkpoints(folder, train=train).newest()
    assert found is not None
    return found


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def killed_after(step: int) -> Progress:
    def progress(done: int, total: int, note: str = "") -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize(
    ("kills", "resumed"),
    [([1], None), ([6], None), ([7], 6), ([13, 13, 20], 18), ([5, 11, 17, 23, 24], 18)],
)
def test_resuming_after_any_kill_equals_never_stopping(
    tmp_path: Path, kills: list[int], resumed: int | None
) -> None:
    whole = Bigram()
    run(tmp_path / "whole", whole)
    for step in kills:
        with pytest.raises(Killed):
            run(tmp_path / "killed", Bigram(), progress=killed_after(step))
    engine = Bigram()
    assert run(tmp_path / "killed", engine) == Outcome(24, finished=True)
    assert engine.weight.tobytes() == whole.weight.tobytes()
    assert engine.momentum.tobytes() == whole.momentum.tobytes()
    first, second = last(tmp_path / "whole").manifest, last(tmp_path / "killed").manifest
    timeless = {"tokens_per_s": 0.0, "mfu": 0.0, "data_wait": 0.0}
    assert [row.model_copy(update=timeless) for row in first.ledger.curve] == [
        row.model_copy(update=timeless) for row in second.ledger.curve
    ]
    assert first.ledger.resumed_from_step is None
    assert second.ledger.resumed_from_step == resumed


def test_every_sample_is_used_exactly_once_an_epoch_also_across_a_stop(tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"steps": 31})
    stopped, resumed = Bigram(), Bigram()

    def stop(done: int, total: int, note: str = "") -> None:
        if done == 10:
            Stopping(tmp_path).ask()

    assert run(tmp_path, stopped, train=train, progress=stop) == Outcome(10, finished=False)
    (tmp_path / "stop.request").unlink()
    (tmp_path / "stop.step").unlink()
    run(tmp_path, resumed, train=train)
    seen = [sample for step in stopped.trained_on + resumed.trained_on for sample in step]
    assert len(seen) == 31 * 4
    assert Counter(seen) == Counter({sample: 4 for sample in range(31)})
    assert sorted(seen[:31]) == list(range(31))


def test_a_run_that_is_asked_to_stop_saves_the_very_step(tmp_path: Path) -> None:
    engine = Bigram()
    Stopping(tmp_path).ask()
    assert run(tmp_path, engine) == Outcome(1, finished=False)
    saved = last(tmp_path)
    assert saved.manifest.step == 1
    assert saved.manifest.samples == 4
    assert np.array_equal(saved.state.weights["weight"], engine.weight)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run(tmp_path, Bigram())
    again = Bigram()
    assert run(tmp_path, again) == Outcome(24, finished=True)
    assert again.trained_on == []


def test_the_curve_has_the_rows_that_were_asked_for(tmp_path: Path) -> None:
    run(tmp_path, Bigram())
    curve = last(tmp_path).manifest.ledger.curve
    assert [row.step for row in curve] == [5, 8, 10, 15, 16, 20, 24]
    assert [row.step for row in curve if row.validation_loss is not None] == [8, 16, 24]
    assert [row.tokens for row in curve] == [row.step * 4 * CONTEXT for row in curve]
    assert [row.rate for row in curve] == [
        rate(OPTIM.schedule, step=row.step - 1, total_steps=24) for row in curve
    ]
    assert curve[-1].loss < curve[0].loss < np.log(16) + 0.1


def test_a_row_is_the_mean_over_its_interval(tmp_path: Path) -> None:
    class Recorded(Bigram):
        losses: list[float] = []

        def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
            result = super().step(batch, controls, loss_scale=loss_scale)
            self.losses.append(result.loss)
            return result

    run(tmp_path, Recorded())
    curve = last(tmp_path).manifest.ledger.curve
    assert curve[1].loss == pytest.approx(np.mean(Recorded.losses[5:8]), rel=1e-12)


class Sick(Bigram):
    """Turns bad at step 8, in one of three ways."""

    def __init__(self, sickness: str) -> None:
        super().__init__()
        self.sickness = sickness

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        result = super().step(batch, controls, loss_scale=loss_scale)
        if controls.step < 8:
            return result
        if self.sickness == "loss":
            return replace(result, loss=float("nan"))
        if self.sickness == "objective":
            return replace(result, objective=float("inf"))
        if self.sickness == "gradient":
            return replace(result, gradient_norm=float("inf"))
        self.momentum[0, 0] = np.inf
        return result


@pytest.mark.parametrize(
    ("sickness", "step"),
    [("loss", 8), ("objective", 8), ("gradient", 8), ("update", 11)],
    ids=lambda value: value,
)
def test_numbers_that_are_not_finite_stop_the_run_and_reach_no_checkpoint(
    tmp_path: Path, sickness: str, step: int
) -> None:
    engine = Sick(sickness)
    with pytest.raises(ValueError, match=f"training stopped at step {step}: .*samples") as error:
        run(tmp_path, engine)
    held = checkpoints(tmp_path)
    assert held.steps() == [6]
    assert "optim.schedule.peak" in str(error.value)
    (event,) = [event for event in held.events.read() if event["event"] == "diverged"]
    assert event["samples"] == engine.trained_on[-1]
    assert event["step"] == step


def test_every_worker_writes_its_share_of_a_checkpoint(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    engines = Bigram(), Bigram()

    def work(rank: int) -> None:
        run_loop(
            engines[rank],
            train=TRAIN,
            optim=OPTIM,
            training=TRAINING,
            validation=VALIDATION,
            positions=CONTEXT,
            checkpoints=held,
            start=None,
            stopping=Stopping(tmp_path, rank, 2),
            seat=Seat(rank, 2),
        )

    other = threading.Thread(target=work, args=(1,))
    other.start()
    work(0)
    other.join()
    assert held.steps() == [18, 24]
    found = held.read(24)
    # These engines know nothing of each other: who wrote what shows in the values.
    assert np.array_equal(found.state.weights["weight"], engines[0].weight)
    assert np.array_equal(found.state.slots["momentum"]["weight"], engines[1].momentum)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000018", "step-00000024"}


class Heard:
    """A callback that notes what it hears, and ends the run at a step."""

    def __init__(self, *, end: int = 0) -> None:
        self.end, self.steps, self.validations = end, list[Step](), list[tuple[int, float]]()

    def after_step(self, step: Step) -> None:
        self.steps.append(step)

    def after_validation(self, done: int, loss: float) -> bool:
        self.validations.append((done, loss))
        return done == self.end


def test_callbacks_hear_of_every_step_and_every_validation(tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    assert run(tmp_path, Bigram(), callbacks=[first, second]) == Outcome(24, finished=True)
    assert [step.done for step in first.steps] == list(range(1, 25))
    assert all(step.positions == 4 * CONTEXT for step in first.steps)
    assert all(0 <= step.data_wait_s <= step.seconds for step in first.steps)
    curve = last(tmp_path).manifest.ledger.curve
    rows = [(row.step, row.validation_loss) for row in curve if row.validation_loss is not None]
    assert first.validations == second.validations == rows
    assert [step.rate for step in first.steps if step.done in (5, 8)] == [
        row.rate for row in curve[:2]
    ]


@pytest.mark.parametrize("end", [8, 16, 24])
def test_a_callback_may_end_the_run_after_a_validation(tmp_path: Path, end: int) -> None:
    ender, other = Heard(end=end), Heard()
    assert run(tmp_path, Bigram(), callbacks=[ender, other]) == Outcome(end, finished=True)
    saved = last(tmp_path).manifest
    assert saved.step == end and saved.validation_loss == other.validations[-1][1]
    assert saved.ledger.ended == (None if end == 24 else "Heard")


@pytest.mark.parametrize("kills", [[], [7], [3, 7]])
@pytest.mark.parametrize(("patience", "end"), [(2, 8), (3, 16), (4, 24)])
def test_a_run_that_stops_improving_ends_early_however_often_it_was_killed(
    tmp_path: Path, patience: int, end: int, kills: list[int]
) -> None:
    changes = {"validate_every_steps": 2, "early_stopping": EarlyStopping(patience=patience)}
    train = TRAIN.model_copy(update=changes)
    for step in kills:
        with pytest.raises(Killed):
            run(tmp_path, Bumpy(), train=train, progress=killed_after(step))
    assert run(tmp_path, Bumpy(), train=train) == Outcome(end, finished=True)
    saved = last(tmp_path, train).manifest
    assert saved.step == end
    assert saved.ledger.ended == (None if end == 24 else "train.early_stopping")


def test_the_best_state_is_saved_and_kept(tmp_path: Path) -> None:
    kept = TRAIN.checkpoint.model_copy(update={"best": True, "keep": 1})
    train = TRAIN.model_copy(update={"validate_every_steps": 2, "checkpoint": kept, "steps": 17})
    held = checkpoints(tmp_path, train=train)
    for kill in (11, 17):
        with pytest.raises(Killed):
            run(tmp_path, Bumpy(), train=train, progress=killed_after(kill))
        best = held.best()
        # Step 10 is no multiple of 6: it was saved because it was the best.
        assert best is not None and best.manifest.step == 10
        assert best.manifest.validation_loss == 3.0


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before(
    tmp_path: Path,
) -> None:
    def obstruct(done: int, total: int, note: str = "") -> None:
        if done == 10:
            (tmp_path / "step-00000012").mkdir()
            (tmp_path / ".step-00000012.old").write_text("no folder can take this name")

    with pytest.raises(OSError):
        run(tmp_path, Bigram(), progress=obstruct)
    held = checkpoints(tmp_path)
    (event,) = [event for event in held.events.read() if event["event"] == "checkpoint_failed"]
    assert event["step"] == 12
    assert held.read(6).manifest.step == 6
    assert 18 not in held.steps()


def test_the_line_tells_speed_utilisation_and_the_time_that_is_left(tmp_path: Path) -> None:
    notes: dict[int, str] = {}
    now = itertools.count()

    def look(done: int, total: int, note: str = "") -> None:
        notes[done] = note

    def clock() -> float:
        # Ticks a second each time that the loop reads it, three times a step. The thread that
        # writes checkpoints looks at a moment of its own.
        return float(next(now)) if threading.current_thread() is threading.main_thread() else 0.0

    run(tmp_path, Bigram(), progress=look, clock=clock)
    assert re.fullmatch(r"loss \d\.\d{4}", notes[1])
    assert re.fullmatch(r"loss [\d.]+, 8 tokens/s, MFU 4%, 36 s left", notes[6]), notes[6]
    assert re.fullmatch(r"loss [\d.]+, validation [\d.]+, 8 tokens/s, MFU 4%", notes[24]), notes[24]
    row = last(tmp_path).manifest.ledger.curve[0]
    assert row.tokens_per_s == pytest.approx(8)
    assert row.mfu == pytest.approx(8 * 2 / 400)
    assert row.data_wait == pytest.approx(1 / 2)


@given(st.integers(1, 8), st.integers(1, 8))
def test_seats_share_out_a_batch_without_rest(workers: int, share: int) -> None:
    batch = np.arange(workers * share)
    rows = [Seat(rank, workers).rows(batch) for rank in range(workers)]
    assert np.array_equal(np.concatenate(rows), batch)
    assert {len(part) for part in rows} == {share}


@given(st.integers(1, 500), st.integers(1, 4), st.integers(1, 16), st.integers(1, 9))
def test_validation_samples_are_distinct_and_split_evenly(
    count: int, workers: int, share: int, batches: int
) -> None:
    train = TrainSpec(
        backend="flax",
        steps=1,
        batch=workers * share,
        workers=workers,
        validation_batches=batches,
        checkpoint=CheckpointSpec(),
    )
    if count < workers:
        with pytest.raises(ValueError, match="data.split.validation"):
            validation_batches(count, train)
        return
    chosen = validation_batches(count, train)
    samples = np.concatenate(chosen)
    assert len(chosen) <= batches
    assert all(len(batch) == len(chosen[0]) <= train.batch for batch in chosen)
    assert len(chosen[0]) % workers == 0
    assert len(np.unique(samples)) == len(samples)
    assert 0 <= samples.min() <= samples.max() < count


def test_all_workers_leave_after_the_same_step(tmp_path: Path) -> None:
    """Worker 1 is told to leave; in lock-step, nobody is more than one step ahead of rank 0."""
    for ahead in (0, 1):
        folder = tmp_path / str(ahead)
        folder.mkdir()
        zero, one = Stopping(folder, 0, 2), Stopping(folder, 1, 2)
        left: dict[int, int] = {}
        one.asked.set()
        for done in range(1, 10):
            order = (one, zero) if ahead else (zero, one)
            for worker in order:
                if worker.rank not in left and worker.after(done):
                    left[worker.rank] = done
        assert len(left) == 2 and left[0] == left[1] <= 3
