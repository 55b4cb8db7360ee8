"""What a run goes on from is decided by its identity, or by an explicit word; never in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.train.checkpoints import Checkpoints
from tasks.train.resume import settle
from tasks.train.run_spec import Across, Fresh, GoOn, Require
from tests.train.bigram import checkpoints
from tests.train.writer import ABOUT, state


def run(folder: Path, *steps: int, **changed: Any) -> Checkpoints:
    """A run among others, with checkpoints at some steps."""
    folder.mkdir()
    held = checkpoints(folder, changed={name.replace("__", "."): changed[name] for name in changed})
    for step in steps:
        held.save(state(step), step=step, **ABOUT)
    return held


def told(held: Checkpoints) -> list[str]:
    return [event["event"] for event in held.events.read()]


@pytest.mark.parametrize("resume", [GoOn(), Require(), Across(fields=("code",))])
def test_a_run_that_was_interrupted_goes_on_from_its_own_checkpoint(
    tmp_path: Path, resume: Any
) -> None:
    run(tmp_path / "other", 9, code="0")
    held = run(tmp_path / "own", 1, 2)
    settle(resume, held)
    assert held.steps() == [1, 2]
    assert told(held) == []


def test_a_new_run_beside_an_unfinished_one_says_what_differs(tmp_path: Path) -> None:
    run(tmp_path / "other", 1, train__seed=3)
    run(tmp_path / "empty")
    held = run(tmp_path / "own")
    settle(GoOn(), held)
    (event,) = held.events.read()
    assert event["event"] == "new_run"
    assert "differs in train.seed: 3 -> 7" in event["message"]
    assert held.steps() == []


def test_a_run_that_must_go_on_refuses_to_start_at_zero(tmp_path: Path) -> None:
    run(tmp_path / "other", 1, train__seed=3, code="0")
    run(tmp_path / "near", 1, data="e" * 64)
    held = run(tmp_path / "own")
    with pytest.raises(ValueError, match="near differs in data: e+ -> d+. .*other.*; train.seed"):
        settle(Require(), held)


def test_what_a_killed_first_save_left_is_no_checkpoint(tmp_path: Path) -> None:
    held = run(tmp_path / "own")
    (held.folder / ".step-00000001.partial").mkdir()
    (held.folder / "share-001-of-step-00000001").mkdir()
    with pytest.raises(ValueError, match="No other run left a checkpoint either"):
        settle(Require(), held)


def test_a_fresh_start_puts_aside_what_was_saved(tmp_path: Path) -> None:
    held = run(tmp_path / "own", 1, 2)
    (held.folder / "step-00000002").rename(held.folder / "damaged-step-00000002")
    for _ in range(2):
        settle(Fresh(), held)
        assert held.newest() is None
        assert (held.folder / "before-step-00000001").is_dir()
        held.save(state(1), step=1, **ABOUT)
    assert told(held) == ["fresh", "fresh"]
    assert "up to step 1" in held.events.read()[0]["message"]
    held.remove()
    assert [path.name for path in held.folder.iterdir()] == ["events.jsonl"]


def test_a_run_goes_on_across_the_fields_that_it_names_and_no_others(tmp_path: Path) -> None:
    run(tmp_path / "far", 8, code="0", train__seed=3)
    run(tmp_path / "near", 3, 4, code="1", optim__schedule__peak=9.0)
    held = run(tmp_path / "own")
    for fields in (("code",), ("optim",), ("code", "optim.schedule.pea")):
        with pytest.raises(ValueError, match="optim.schedule.peak: 9.0 -> 0.5"):
            settle(Across(fields=fields), held)
    assert held.steps() == []
    settle(Across(fields=("code", "optim.schedule")), held)
    found = held.newest()
    assert found is not None and found.manifest.step == 4
    assert np.array_equal(found.state.weights["a"], state(4).weights["a"])
    assert found.manifest.identity == held.identity
    (event,) = held.events.read()
    assert event["event"] == "adopted"
    assert "code: 1 -> " in event["message"] and "9.0 -> 0.5" in event["message"]
    # The other run keeps what it has, and what was adopted is not adopted again.
    assert checkpoints(tmp_path / "near", changed={"code": "1"}).steps() == [3, 4]
    settle(Across(fields=("code",)), held)


def test_the_run_that_came_furthest_is_gone_on_from(tmp_path: Path) -> None:
    run(tmp_path / "first", 5, code="1")
    run(tmp_path / "second", 3, code="2")
    held = run(tmp_path / "own")
    settle(Across(fields=("code",)), held)
    assert held.steps() == [5]


def test_a_damaged_checkpoint_of_another_run_is_told_and_passed_over(tmp_path: Path) -> None:
    other = run(tmp_path / "other", 1, 2, code="1")
    (other.folder / "step-00000002" / "weights-000-00000.safetensors").write_bytes(b"")
    held = run(tmp_path / "own")
    settle(Across(fields=("code",)), held)
    assert held.steps() == [1]
    assert told(held) == ["checkpoint_damaged", "adopted"]
