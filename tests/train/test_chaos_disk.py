"""A save is killed, or refused, at every system call that touches the disk: `make proof`."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tasks.train.checkpoints import Checkpoint
from tests.train.bigram import checkpoints
from tests.train.chaos_counts import series, tell
from tests.train.writer import ABOUT, state

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        shutil.which("strace") is None, reason="strace, which disturbs the writer, is not installed"
    ),
]
# With a loaded machine in mind: a call is tried in a tenth of a second.
TIMEOUT_S = 1200.0
# Calls that a save cannot do without: if one of them is refused, the save must fail.
NEEDED = ("write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2")


def test_a_save_killed_at_any_call_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    tried = series("tests.train.chaos_disk", tmp_path, "kills", timeout_s=TIMEOUT_S)
    hits = Counter(each["call"] for each in tried)
    tell(record_property, "killed before a call", kills=hits.total(), **hits)
    assert all(each["hit"] and not each["failed"] for each in tried)
    assert hits.total() >= 150
    assert {"openat", "write", "fsync", "close"} <= hits.keys()
    assert any("rename" in call for call in hits) and any("unlink" in call for call in hits)
    seen = set()
    for each in tried:
        reported = max(each["saved"], default=2)
        found = newest(each)
        assert found.manifest.step in (reported, reported + 1), each
        assert checkpoints(Path(each["folder"])).events.read() == []
        goes_on(each)
        seen.add((reported, found.manifest.step))
    assert seen >= {(2, 2), (2, 3), (3, 3), (3, 4)}


def test_a_save_refused_at_any_call_is_never_reported_and_costs_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    tried = series("tests.train.chaos_disk", tmp_path, "faults", timeout_s=TIMEOUT_S)
    hits = Counter(f"{each['call']} {each['error']}" for each in tried)
    failed = sum(len(each["failed"]) for each in tried)
    tell(record_property, "refused calls", faults=hits.total(), failed_saves=failed, **hits)
    assert hits.total() >= 150 and failed >= 100
    for each in tried:
        assert each["hit"], each
        # The other save of the two is not disturbed by what the first one left.
        assert sorted(each["saved"] + each["failed"]) == [3, 4], each
        assert len(each["failed"]) <= 1, each
        assert each["failed"] or each["call"] not in NEEDED, each
        found = newest(each)
        assert found.manifest.step >= max(each["saved"]), each
        told = checkpoints(Path(each["folder"])).events.read()
        behind = each["failed"] if each["how"] == "behind" else []
        assert [event["step"] for event in told] == behind, each
        assert all(event["event"] == "checkpoint_failed" for event in told)
        goes_on(each)


def test_what_a_checkpoint_holds_is_synced_before_it_is_visible_and_its_name_after(
    tmp_path: Path,
) -> None:
    """A kill loses nothing that the kernel holds, a power loss does: the order of calls decides."""
    series("tests.train.chaos_disk", tmp_path, "nothing", timeout_s=TIMEOUT_S)
    for how in ("at_once", "behind"):
        folder = tmp_path / f"{how}-watched"
        done = list(operations(folder.with_suffix(".calls")))
        for step in (3, 4):
            scratch, final = f"{folder}/.step-{step:08d}.partial", f"{folder}/step-{step:08d}"
            visible = done.index(Operation("rename", scratch, final))
            before, after = done[:visible], done[visible:]
            written = {
                each.path for each in before if each.call == "write" and scratch in each.path
            }
            assert len(written) == 3
            for path in written:
                last = len(before) - before[::-1].index(Operation("write", path))
                moved = {each.to for each in before if each.call == "rename" and each.path == path}
                assert any(Operation("fsync", name) in before[last:] for name in {path, *moved})
            entries = [
                n
                for n, each in enumerate(before)
                if scratch in each.to or each.call == "openat" and scratch in each.path
            ]
            assert Operation("fsync", scratch) in before[entries[-1] :]
            told = [each.call for each in after].index("writev")
            assert Operation("fsync", str(folder)) in after[:told]


class Operation(NamedTuple):
    """A system call that worked, and the file that it was about."""

    call: str
    path: str = ""
    to: str = ""


def operations(log: Path) -> Iterator[Operation]:
    """What `strace` saw of one save after the other."""
    open_files: dict[str, str] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        found = re.match(r"\d+ +(\w+)\((.*)\) += (\d+)", line)
        if found is None:
            continue
        call, arguments, answer = found.groups()
        names = re.findall(r'"([^"]*)"', arguments)
        number = arguments.split(",")[0]
        if call == "openat":
            open_files[answer] = names[0]
            # Only what is created changes a folder.
            if "O_CREAT" in arguments:
                yield Operation(call, names[0])
        elif call.startswith("rename"):
            yield Operation("rename", *names[:2])
        elif call in ("write", "pwrite64"):
            yield Operation("write", open_files[number])
        elif call in ("fsync", "fdatasync"):
            yield Operation("fsync", open_files[number])
        elif call == "writev":
            yield Operation(call)


def newest(each: dict[str, Any]) -> Checkpoint:
    """The newest checkpoint, after all that are visible were read."""
    held = checkpoints(Path(each["folder"]))
    for step in held.steps():
        found = held.read(step).state
        wanted = state(step)
        assert np.array_equal(found.weights["a"], wanted.weights["a"]), each
        assert np.array_equal(found.slots["momentum"]["b"], wanted.slots["momentum"]["b"]), each
    checkpoint = held.newest()
    assert checkpoint is not None, each
    return checkpoint


def goes_on(each: dict[str, Any]) -> None:
    """The next start tidies up, and saves."""
    held = checkpoints(Path(each["folder"]))
    held.sweep()
    assert all(path.name.startswith(("step-", "events")) for path in held.folder.iterdir()), each
    held.save(state(9), step=9, **ABOUT)
    assert newest(each).manifest.step == 9
