"""What the tests of lost workers plant in each worker, through Ray Train's own door for callbacks.

Each step is noted with its samples and its loss, and takes long enough for a tester who looks on
from the driver. A worker that finds a file with its rank goes to sleep in the middle of a step, or
keeps memory that it needs no more, at every step from then on; or it does not meet the others.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from ray.train.v2._internal.execution.callback import WorkerCallback

from tasks.train import ray_backend, worker
from tasks.train.engine import Engine, StepResult
from tests.train.runs import ROOT

FOLDER = "TANDEM_TEST_NOTES"
PACE_S = 0.03
LEAK = 2**26


class Note(NamedTuple):
    """A step that a worker has done."""

    pid: int
    workers: int
    step: int
    samples: list[int]
    loss: float


class Planted(WorkerCallback):  # type: ignore[misc]
    """Made in the driver, where it learns of the folder; runs in each worker."""

    def __init__(self) -> None:
        self.folder = Path(os.environ[FOLDER])

    def after_init_train_context(self) -> None:
        build, folder, place = worker.build_engine, self.folder, ray.train.get_context()
        rank, workers = place.get_world_rank(), place.get_world_size()
        if found(folder / f"dead-{rank}"):
            ray_backend._join = dies  # type: ignore[assignment]
        elif found(folder / f"late-{rank}"):
            ray_backend._join = sleeps_for_ever  # type: ignore[assignment]

        def building(*arguments: Any) -> Engine:
            engine = build(*arguments)
            step = engine.step
            kept: list[NDArray[np.uint8]] = []

            def noting(batch: Any, controls: Any, **rest: Any) -> StepResult:
                time.sleep(PACE_S)
                if found(folder / f"sleep-{rank}"):
                    sleeps_for_ever()
                if kept or found(folder / f"leak-{rank}"):
                    kept.append(np.empty(LEAK, np.uint8))
                result = step(batch, controls, **rest)
                samples = batch.samples.tolist()
                note = Note(os.getpid(), workers, controls.step, samples, result.loss)
                with (folder / f"notes-{rank}.jsonl").open("a") as file:
                    file.write(json.dumps(note) + "\n")
                return result

            engine.step = noting  # type: ignore[method-assign]
            return engine

        worker.build_engine = building  # type: ignore[assignment]


def found(asked: Path) -> bool:
    """Once: the worker that takes the place of this one does not find the file."""
    if asked.exists():
        asked.unlink()
        return True
    return False


def dies(*arguments: Any) -> None:
    """As a machine that is switched off."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps_for_ever(*arguments: Any) -> None:
    """Where the stack must show the thread."""
    while True:
        time.sleep(60)


def plant(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """From now on the runs of this process, and of those that it starts, note into a folder."""
    folder.mkdir()
    patch.setenv(FOLDER, str(folder))
    patch.setenv("RAY_TRAIN_CALLBACKS", f"{Planted.__module__}.{Planted.__name__}")


def notes(folder: Path, rank: int) -> list[Note]:
    """What a rank has done so far, in its order; a line that is being written is left out."""
    lines = (folder / f"notes-{rank}.jsonl").read_text().split("\n")[:-1]
    return [Note(*json.loads(line)) for line in lines]


def history(folder: Path) -> dict[int, tuple[list[int], float]]:
    """Samples and loss of each step as it was done last; what was before is lost with a worker."""
    last = [
        {note.step: note for note in notes(folder, rank)}
        for rank in range(len(list(folder.glob("notes-*.jsonl"))))
    ]
    return {
        step: (
            [sample for rank in last[: first.workers] for sample in rank[step].samples],
            first.loss,
        )
        for step, first in last[0].items()
    }


@contextmanager
def local_ray() -> Iterator[None]:
    """One Ray for the runs of a process; the verb uses the Ray that it finds."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()
