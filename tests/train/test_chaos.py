"""Runs that are killed at any moment, by a tester who watches from outside: `make proof`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.prepare.dataset import open_split
from tasks.prepare.spec import ByteBpe, DataSpec, Language, SplitShares, TextFiles
from tasks.train.checkpoints import Checkpoint, parts_of
from tests.prepare.conftest import make
from tests.train.chaos import BATCH, STEPS, Backend, job, taken
from tests.train.chaos_counts import ROUNDS, series, tell


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set so small that a run walks through it several times."""
    folder = tmp_path_factory.mktemp("data")
    source = folder / "source"
    source.mkdir()
    for number in range(30):
        lines = (f"def function_{number}_{line}(): return {line * number}\n" for line in range(6))
        (source / f"{number:02}.txt").write_text("".join(lines), encoding="utf-8")
    spec = DataSpec(
        source=TextFiles(path=str(source)),
        task=Language(tokenizer=ByteBpe(vocabulary=320)),
        split=SplitShares(validation=0.2, test=0.2),
    )
    make(spec, folder)
    return folder / "data"


KILLS = 50
# They take three minutes on a quiet core.
TIMEOUT_S = 3000.0


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_a_run_killed_at_any_moment_ends_as_if_nobody_had(
    backend: Backend,
    seed: int,
    data: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """50 kills while it starts, computes and saves: the same bytes, and each sample once."""
    runs = series("tests.train.chaos", backend, data, tmp_path, KILLS, seed, timeout_s=TIMEOUT_S)
    hits = sum((Counter(run) for run in runs), Counter[str]())
    tell(record_property, backend, runs=len(runs), kills=hits.total(), **hits)
    assert hits.total() == KILLS
    assert min(hits[what] for what in ("start", "step", "save")) >= 2

    never = final(backend, data, tmp_path / "whole")
    count = len(open_split(data, "train", context=32))
    attempts = 0
    for folder in [tmp_path / "again", *(tmp_path / str(n + 1) for n in range(len(runs)))]:
        assert same(final(backend, data, folder), never), folder
        used = samples_used(folder)
        assert used == samples_used(tmp_path / "whole"), folder
        for epoch in range(len(used) // count):
            assert sorted(used[epoch * count :][:count]) == list(range(count)), folder
        attempts += check_resumed(job(backend, data, folder).events.read())
    # Some were killed before they said that they start.
    assert KILLS - hits["start"] <= attempts - len(runs) - 1 <= KILLS


def final(backend: Backend, data: Path, folder: Path) -> Checkpoint:
    """The last checkpoint of a run that is over."""
    found = job(backend, data, folder).checkpoints.newest()
    assert found is not None and found.manifest.step == STEPS, folder
    return found


def same(found: Checkpoint, wanted: Checkpoint) -> bool:
    """Whether weights, slots and curve are the same, byte for byte; times may differ."""
    ours, theirs = parts_of(found.state), parts_of(wanted.state)
    assert {part: set(held) for part, held in ours.items()} == {
        part: set(held) for part, held in theirs.items()
    }
    timed = {"tokens_per_s", "mfu", "data_wait"}
    curves = (
        [row.model_dump(exclude=timed) for row in each.manifest.ledger.curve]
        for each in (found, wanted)
    )
    return len({json.dumps(curve) for curve in curves}) == 1 and all(
        array.dtype == theirs[part][name].dtype
        and array.shape == theirs[part][name].shape
        and np.asarray(array).tobytes() == np.asarray(theirs[part][name]).tobytes()
        for part, held in ours.items()
        for name, array in held.items()
    )


def samples_used(folder: Path) -> list[int]:
    """The samples in the final weights, in order: of each step as it was taken last."""
    last = {line.step: line.samples for line in taken(folder)}
    assert sorted(last) == list(range(STEPS))
    assert all(len(samples) == BATCH for samples in last.values())
    return [sample for step in range(STEPS) for sample in last[step]]


def check_resumed(events: list[dict[str, Any]]) -> int:
    """No attempt fell behind an earlier one or met damage; how many began to train."""
    assert {event["event"] for event in events} <= {"started", "resumed"}
    steps = [event["step"] for event in events]
    assert steps == sorted(steps)
    assert all((event["event"] == "started") == (event["step"] == 0) for event in events)
    return len(events)
