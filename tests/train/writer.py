"""Saves checkpoints and is killed, once before each system call that touches the disk.

`python -m tests.train.writer FOLDER HOW` runs the same four saves again and again, each time in a
child process with a folder of its own, FOLDER/1, FOLDER/2, ...: child N kills itself right before
the N-th open, mkdir, rename, remove, rmdir (by Python's audit events) or fsync. For each child a
line tells the last step that was reported as saved; the first child to get through ends the series.
HOW is `at_once`, or `behind` for saves in a thread.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks.train.checkpoints import Ledger
from tasks.train.engine import EngineState
from tasks.train.saving import Saved, Saver
from tests.train.bigram import checkpoints

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
STEPS = (1, 2, 3, 4)
ABOUT: dict[str, Any] = {"samples": 1, "backend": "torch", "workers": 1, "ledger": Ledger()}


def state(step: int) -> EngineState:
    """The state that the writer saves at a step."""
    values = np.full((3, 2), step, np.float32)
    return EngineState({"a": values, "b": values[0]}, {"momentum": {"a": -values, "b": values[0]}})


def save_until_killed(folder: Path, *, how: str, fatal: int, pipe: int) -> None:
    """Save every step, keeping two; die right before call number `fatal`."""
    held = checkpoints(folder)
    calls = 0

    def touch() -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHES and str(folder) in str(arguments[0]):
            touch()

    really_sync = os.fsync

    def sync(file: Any) -> None:
        touch()
        really_sync(file)

    sys.addaudithook(audit)
    os.fsync = sync  # type: ignore[assignment]
    if how == "behind":

        def told(saved: Saved) -> None:
            os.write(pipe, bytes([saved.step]))

        with Saver(held, told=told) as saver:
            for step in STEPS:
                saver.save(partial(state, step), step=step, **ABOUT)
        return
    for step in STEPS:
        held.save(state(step), step=step, **ABOUT)
        os.write(pipe, bytes([step]))


def main(root: Path, how: str) -> None:
    """Run the series."""
    for fatal in range(1, 1000):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            save_until_killed(root / str(fatal), how=how, fatal=fatal, pipe=write_end)
            os._exit(0)
        os.close(write_end)
        _, status = os.waitpid(child, 0)
        saved = os.read(read_end, len(STEPS))
        os.close(read_end)
        print(saved[-1] if saved else 0, flush=True)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
