"""Trains small runs that are killed again and again; who kills them watches from outside.

`python -m tests.train.chaos BACKEND DATA FOLDER KILLS SEED` imports the framework once and forks a
child for every attempt, so that start-up is paid once: the parent has one thread and asks no
device. A child does what a worker does, from opening the data to the last checkpoint. Killed, it is
followed by another one in the same folder; finished, by the next run, FOLDER/1, FOLDER/2, ...,
until so many kills are done. FOLDER/whole and FOLDER/again are never killed. A line of JSON for
each run that was killed tells how often, and at what.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from models.presets import tiny_language
from models.spec import CosineCurve, DropoutSpec, LinearWarmup
from optim.controls import Controls
from optim.rules import AdamW
from optim.schedules import Schedule
from optim.spec import OptimSpec
from tasks.artifacts import DataManifest
from tasks.prepare.batch import Batch
from tasks.prepare.dataset import MANIFEST
from tasks.train import worker
from tasks.train.engine import Engine, StepResult
from tasks.train.identity import run_identity
from tasks.train.loop import Seat, alone
from tasks.train.run_spec import CheckpointSpec
from tasks.train.spec import TrainSpec
from tasks.train.stopping import Stopping
from tasks.train.worker import Job

Backend = Literal["flax", "torch"]

STEPS, BATCH, EVERY = 48, 4, 3
MODEL = tiny_language().model_copy(update={"dropout": DropoutSpec(embedding=0.1, residual=0.1)})
OPTIM = OptimSpec(
    rule=AdamW(),
    schedule=Schedule(peak=3e-3, curve=CosineCurve(warmup=LinearWarmup(steps=5))),
)
# How long the tester waits for a child that says nothing.
PATIENCE_S = 120.0
POLL_S = 0.0005


def job(backend: Backend, data: Path, folder: Path) -> Job:
    """A run of `STEPS` steps that is saved behind the training, every `EVERY` of them."""
    train = TrainSpec(
        backend=backend,
        steps=STEPS,
        batch=BATCH,
        seed=7,
        log_every_steps=5,
        validate_every_steps=16,
        validation_batches=1,
        checkpoint=CheckpointSpec(every_steps=EVERY),
        peak_flops=1e12,
    )
    manifest = DataManifest.read(data / MANIFEST)
    identity = run_identity(MODEL, OPTIM, train, data=manifest.digest)
    return Job(
        model=MODEL,
        optim=OPTIM,
        train=train,
        data=str(data),
        folder=str(folder),
        identity=identity,
    )


def attempt(job: Job, *, number: int, pipe: int) -> None:
    """Work on the job as its only worker; `pipe` hears of every step that is done.

    Every step is written down before it is taken, with its samples: `samples.jsonl`.
    """
    folder = Path(job.folder)
    file = os.open(folder / "samples.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    really_build = worker.build_engine

    def build(*arguments: Any) -> Engine:
        engine = really_build(*arguments)
        really_step = engine.step

        def step(batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
            line = json.dumps([number, controls.step, batch.samples.tolist()])
            os.write(file, line.encode() + b"\n")
            return really_step(batch, controls, loss_scale=loss_scale)

        engine.step = step  # type: ignore[method-assign]
        return engine

    worker.build_engine = build  # type: ignore[assignment]

    def progress(done: int, total: int, note: str = "") -> None:
        os.write(pipe, b".")

    worker.work(job, seat=Seat(), stopping=Stopping(folder), agree=alone, progress=progress)


@dataclass(frozen=True)
class Taken:
    """A step that an attempt began."""

    attempt: int
    step: int
    samples: list[int]


def taken(folder: Path) -> list[Taken]:
    """The steps that the attempts of a run began, in order."""
    path = folder / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Taken(*json.loads(line)) for line in lines]


@dataclass
class Child:
    """An attempt in a process of its own, seen from outside."""

    job: Job
    number: int
    done: int = 0
    pid: int = field(init=False)
    status: int | None = None

    def __post_init__(self) -> None:
        self.began_s = time.monotonic()
        self._pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._pipe)
                attempt(self.job, number=self.number, pipe=theirs)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                # Not the parent's way out.
                os._exit(code)
        os.close(theirs)

    def hear(self, steps: int) -> bool:
        """Wait until so many steps are done; False if the child ended before."""
        while self.done < steps and self.status is None:
            if not select.select([self._pipe], [], [], PATIENCE_S)[0]:
                self.kill()
                raise TimeoutError(f"{self.job.folder}: no step within {PATIENCE_S:.0f} s")
            told = os.read(self._pipe, 4096)
            self.done += len(told)
            if not told:
                self.reap()
        return self.status is None

    def wait_for_save(self) -> None:
        """Wait until a checkpoint is being written, or the child has ended."""
        folder = Path(self.job.folder)
        give_up_s = time.monotonic() + PATIENCE_S
        while not any(folder.glob(".step-*.partial")) and time.monotonic() < give_up_s:
            if select.select([self._pipe], [], [], POLL_S)[0]:
                told = os.read(self._pipe, 4096)
                self.done += len(told)
                if not told:
                    return

    def kill(self) -> bool:
        """SIGKILL; False if the child had ended by itself."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.reap()
        return self.status is not None and os.WIFSIGNALED(self.status)

    def reap(self) -> None:
        """Take its exit status."""
        _, self.status = os.waitpid(self.pid, 0)
        os.close(self._pipe)


def whole(job: Job) -> tuple[float, float]:
    """Run a job without a kill; seconds until its first step was done, and seconds of a step."""
    Path(job.folder).mkdir(parents=True)
    child = Child(job, 0)
    child.hear(1)
    start_s = time.monotonic() - child.began_s
    child.hear(STEPS)
    step_s = (time.monotonic() - child.began_s - start_s) / (STEPS - 1)
    while child.hear(STEPS + 1):
        pass
    if child.status != 0:
        raise RuntimeError(f"{job.folder}: the run that nobody killed ended with {child.status}")
    return start_s, step_s


def killed(
    job: Job, *, kills: int, draw: random.Random, start_s: float, step_s: float
) -> dict[str, int]:
    """Run a job to its end, killing up to `kills` attempts; what each of these was doing.

    A third of the kills falls at any moment of the start, a third after a random step, and a third
    into a save. A first step that is still compiled counts as a step.
    """
    folder = Path(job.folder)
    folder.mkdir(parents=True)
    hits: Counter[str] = Counter()
    number = 0
    while True:
        number += 1
        child = Child(job, number)
        if hits.total() == kills:
            while child.hear(STEPS + 1):
                pass
        else:
            aim = draw.choice(("start", "step", "save"))
            if aim == "start":
                time.sleep(draw.uniform(0, start_s))
            elif child.hear(draw.randint(1, 2 * EVERY)):
                if aim == "save":
                    child.wait_for_save()
                time.sleep(draw.uniform(0, 1.5 * step_s))
        if not child.kill():
            if child.status != 0:
                raise RuntimeError(f"{job.folder}: attempt {number} ended with {child.status}")
            return dict(hits)
        if number not in {line.attempt for line in taken(folder)}:
            # What is in the folder may be left of the attempt before.
            hits["start"] += 1
        else:
            hits["save" if any(folder.glob(".step-*")) else "step"] += 1


def main(backend: Backend, data: Path, root: Path, *, kills: int, seed: int) -> None:
    """Run the series."""
    if backend == "torch":
        # DeepSpeed asks for it, and compilers with it, when the first engine is made.
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

        import tasks.train.deepspeed_update
        import tasks.train.torch_step  # noqa: F401
    else:
        import jax

        import tasks.train.flax_step  # noqa: F401

        for name, value in {
            "jax_compilation_cache_dir": str(root / "programs"),
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }.items():
            jax.config.update(name, value)  # type: ignore[no-untyped-call]
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"a process with {threads} threads must not fork")
    draw = random.Random(seed)
    # The second finds its programs compiled, as all that follow do.
    whole(job(backend, data, root / "whole"))
    start_s, step_s = whole(job(backend, data, root / "again"))
    left, number = kills, 0
    while left:
        number += 1
        hits = killed(
            job(backend, data, root / str(number)),
            kills=left,
            draw=draw,
            start_s=start_s,
            step_s=step_s,
        )
        left -= sum(hits.values())
        print(json.dumps(hits), flush=True)


if __name__ == "__main__":
    backend_, data_, root_, kills_, seed_ = sys.argv[1:]
    chosen: Backend = TypeAdapter[Backend](Backend).validate_python(backend_)
    main(chosen, Path(data_), Path(root_), kills=int(kills_), seed=int(seed_))
