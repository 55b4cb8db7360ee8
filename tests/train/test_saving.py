"""Saving behind the training: one write at a time, and no failure is overlooked."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.train.checkpoints import Checkpoints
from tasks.train.saving import Saved, Saver
from tests.train.bigram import checkpoints
from tests.train.writer import ABOUT, state

WAIT_S = 10.0


class Slow(Checkpoints):
    """Checkpoints on a disk that answers when it is told to."""

    def __init__(self, held: Checkpoints) -> None:
        super().__init__(held.folder, held.identity, held.keep, held.events)
        object.__setattr__(self, "began", threading.Event())
        object.__setattr__(self, "answers", threading.Event())

    began: threading.Event
    answers: threading.Event

    def save_shares(self, shares: Any, **about: Any) -> None:
        self.began.set()
        assert self.answers.wait(WAIT_S)
        super().save_shares(shares, **about)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    held = Slow(checkpoints(tmp_path))
    told: list[Saved] = []
    with Saver(held, told=told.append) as saver:
        saver.save(lambda: state(1), step=1, **ABOUT)
        assert held.began.wait(WAIT_S)
        assert (held.steps(), told) == ([], [])
        held.answers.set()
    assert held.steps() == [1]
    assert [saved.step for saved in told] == [1]


def test_a_later_save_waits_for_the_one_before(tmp_path: Path) -> None:
    held = Slow(checkpoints(tmp_path))
    with Saver(held) as saver:
        saver.save(lambda: state(1), step=1, **ABOUT)
        threading.Timer(0.2, held.answers.set).start()

        def second() -> Any:
            # The host never holds two states that are not yet on the disk.
            assert held.steps() == [1]
            return state(2)

        saver.save(second, step=2, **ABOUT)
    assert held.steps() == [1, 2]


def test_a_write_that_fails_is_told_at_once_and_raised_at_the_next_save(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    told: list[Saved] = []
    saver = Saver(held, told=told.append)
    saver.save(lambda: state(1), step=1, **ABOUT)
    saver.wait()
    (tmp_path / "step-00000002").write_text("a file in the way of the folder")
    (tmp_path / ".step-00000002.old").mkdir()
    (tmp_path / ".step-00000002.partial").write_text("and one that cannot be removed as a folder")
    saver.save(lambda: state(2), step=2, **ABOUT)
    with pytest.raises(OSError):
        saver.save(lambda: state(3), step=3, **ABOUT)
    saver.close()
    (event,) = held.events.read()
    assert (event["event"], event["step"]) == ("checkpoint_failed", 2)
    assert [saved.step for saved in told] == [1]
    found = held.read(1)
    assert np.array_equal(found.state.weights["a"], state(1).weights["a"])


def test_a_last_write_that_fails_is_raised_at_the_end(tmp_path: Path) -> None:
    held = checkpoints(tmp_path / "absent")
    (tmp_path / "absent").write_text("no folder")
    with pytest.raises(OSError), Saver(held) as saver:
        saver.save(lambda: state(1), step=1, **ABOUT)


def test_an_error_of_the_run_goes_before_one_of_the_disk(tmp_path: Path) -> None:
    held = checkpoints(tmp_path / "absent")
    (tmp_path / "absent").write_text("no folder")
    with pytest.raises(KeyError), Saver(held) as saver:
        saver.save(lambda: state(1), step=1, **ABOUT)
        raise KeyError


def test_an_error_of_the_run_does_not_wait_for_workers_that_are_gone(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    began = time.monotonic()
    with pytest.raises(KeyError), Saver(held, writers=2) as saver:
        saver.save(lambda: state(1), step=1, **ABOUT)
        raise KeyError
    assert time.monotonic() - began < WAIT_S
    (event,) = held.events.read()
    assert "worker 1 did not write its share of step 1 before the run ended" in event["message"]
    assert held.steps() == []


def test_values_that_are_not_finite_are_refused_before_the_run_goes_on(tmp_path: Path) -> None:
    sick = state(1)
    sick.weights["a"][0] = np.nan
    with Saver(checkpoints(tmp_path)) as saver:
        with pytest.raises(FloatingPointError, match="weights of a"):
            saver.save(lambda: sick, step=1, **ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_workers_share_the_writing_and_any_number_reads(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    savers = [Saver(held, rank=rank, writers=3) for rank in range(3)]
    for step in (1, 2):
        for saver in savers:
            saver.save(lambda: state(step), step=step, **ABOUT)
    for saver in savers:
        saver.close()
    for step in (1, 2):
        found = held.read(step).state
        assert all(
            np.array_equal(found.weights[name], state(step).weights[name]) for name in ("a", "b")
        )
        assert np.array_equal(found.slots["momentum"]["a"], state(step).slots["momentum"]["a"])
