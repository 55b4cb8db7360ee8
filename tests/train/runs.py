"""Small real runs of the verb, in this process or, to be killed, in one of their own.

`python -m tests.train.runs DATA FOLDER CHANGES` runs one; CHANGES is JSON for the `train` section.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from models.presets import tiny_language
from models.spec import CosineCurve, LinearWarmup
from models.store import StoredModel, load_model
from optim.schedules import Schedule
from optim.rules import AdamW
from optim.spec import OptimSpec
from tasks.artifacts import TrainingReport
from tasks.prepare import prepare
from tasks.prepare.spec import ByteBpe, DataSpec, Language, SplitShares, TextFiles
from tasks.progress import Progress, silent
from tasks.snapshot import snapshot
from tasks.train import train
from tasks.train.events import Events
from tasks.train.run_spec import CheckpointSpec
from tasks.train.spec import TrainSpec

ROOT = Path(__file__).parents[2]
# Work enough that a driver which looks ten times a second sees the run before it ends.
STEPS, BATCH = 100, 64
CURVE = CosineCurve(warmup=LinearWarmup(steps=5))
OPTIM = OptimSpec(rule=AdamW(), schedule=Schedule(peak=3e-3, curve=CURVE))
TRAIN = TrainSpec(
    backend="torch",
    steps=STEPS,
    batch=BATCH,
    log_every_steps=5,
    validate_every_steps=20,
    validation_batches=1,
    checkpoint=CheckpointSpec(every_steps=10),
)


def small_data(folder: Path) -> Path:
    """A prepared data set of this project's own tests and code."""
    source = folder / "source"
    source.mkdir()
    for path in (*ROOT.glob("models/*.py"), *ROOT.glob("optim/*.py")):
        (source / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    spec = DataSpec(
        source=TextFiles(kind="text", path=str(source)),
        task=Language(tokenizer=ByteBpe(vocabulary=320)),
        split=SplitShares(validation=0.2, test=0.2),
    )
    snapshot(spec.source, out=folder / "snapshot")
    prepare(spec, snapshot=folder / "snapshot", out=folder / "data")
    return folder / "data"


def run(
    data: Path,
    folder: Path,
    *,
    changes: dict[str, Any],
    optim: OptimSpec = OPTIM,
    progress: Progress = silent,
) -> TrainingReport:
    """Run the verb with some fields of `train` changed."""
    return train(
        tiny_language(),
        optim,
        TRAIN.model_copy(update=changes),
        data=data,
        out=folder / "model",
        report=folder / "training.json",
        curves=folder / "curves.csv",
        page=folder / "training.html",
        scratch=folder / "scratch",
        progress=progress,
    )


def result(folder: Path) -> StoredModel:
    """The finished model."""
    return load_model(folder / "model")


def events(folder: Path) -> list[dict[str, Any]]:
    """What happened to the run in `folder`."""
    (path,) = (folder / "scratch").glob("*/events.jsonl")
    return Events(path).read()


class Kill:
    """Progress that kills the worker at the first step that it hears of."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.killed = folder, False

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if not self.killed and done < total:
            os.kill(events(self.folder)[-1]["pid"], signal.SIGKILL)
            self.killed = True


class Separate:
    """A run in a process of its own, which the test signals when it has done some steps."""

    def __init__(self, data: Path, folder: Path, changes: dict[str, Any]) -> None:
        arguments = [str(data), str(folder), json.dumps(changes)]
        with (folder / "stderr.txt").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.train.runs", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def wait_for(self, step: int) -> list[psutil.Process]:
        """Wait until so many steps are done; all processes of the run."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if int(line) >= step:
                break
        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]

    def signal(self, number: signal.Signals) -> tuple[int, float]:
        """Send a signal to the driver; its exit status, and the seconds until it was gone."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode, time.monotonic() - began


def main() -> None:
    """Run, telling each step on standard output."""
    data, folder, changes = sys.argv[1:]

    def progress(done: int, total: int, note: str = "") -> None:
        print(done, flush=True)

    run(Path(data), Path(folder), changes=json.loads(changes), progress=progress)


if __name__ == "__main__":
    main()
