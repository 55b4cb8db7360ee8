"""Our own loop with a real engine, data, metrics and checkpoints; only Ray is left out."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.train.course import OPTIM, Task, shape_of, train_spec
from benchmarks.train.turns import Turns
from optim.controls import Controls
from tasks.artifacts import DataManifest
from tasks.prepare.batch import Batch
from tasks.prepare.dataset import MANIFEST, open_split
from tasks.train.engine import Engine, StepResult
from tasks.train.identity import run_identity
from tasks.train.loop import Seat, run_loop
from tasks.train.mailbox import STATUS, StatusFile
from tasks.train.saving import Saved
from tasks.train.stopping import Stopping
from tasks.train.worker import Job, build_engine, peak_of, watched


class Timed:
    """An engine whose steps are timed.

    Attributes:
        inside_s: seconds of all steps so far.
        last: what the last one gave.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.inside_s, self.last = 0.0, StepResult(float("nan"), 0.0, 0.0)
        self.loss, self.judged = engine.loss, engine.judged
        self.state, self.load, self.replicas = engine.state, engine.load, engine.replicas
        self.close = engine.close

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        """The engine's, timed."""
        began = time.perf_counter()
        self.last = self._engine.step(batch, controls, loss_scale=loss_scale)
        self.inside_s += time.perf_counter() - began
        return self.last


def train(task: Task, turns: Turns) -> float:
    """Train until the turns end.

    Returns:
        Seconds that a checkpoint took, those behind the training included.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(task, Path(scratch))
        saved = _run(job, turns)
    return max(each.blocked_s + each.writing_s for each in saved)


def _job(task: Task, folder: Path) -> Job:
    spec, train = shape_of(tiny=task.tiny).spec, train_spec(task)
    data = DataManifest.read(Path(task.data) / MANIFEST)
    identity = run_identity(spec, OPTIM, train, data=data.digest)
    return Job(
        model=spec, optim=OPTIM, train=train, data=task.data, folder=str(folder), identity=identity
    )


def _run(job: Job, turns: Turns) -> list[Saved]:
    """What `tasks.train.worker.work` does, with a timed engine."""
    folder, context = Path(job.folder), job.model.inputs.length
    training = open_split(Path(job.data), "train", context=context)
    validation = open_split(Path(job.data), "validation", context=context)
    engine = Timed(build_engine(job.model, job.optim, job.train))
    stopping, status = Stopping(folder), StatusFile(folder / STATUS)
    peak = peak_of(job, Seat())
    saved: list[Saved] = []

    def progress(done: int, total: int, note: str = "") -> None:
        status(done, total, note)
        if turns.after_step(engine.last.loss, inside_s=engine.inside_s):
            stopping.ask()

    with watched(job, seat=Seat(), peak=peak, done=0) as (callbacks, told):

        def tell(each: Saved) -> None:
            told(each)
            saved.append(each)

        run_loop(
            engine,
            train=job.train,
            optim=job.optim,
            training=training,
            validation=validation,
            positions=context,
            checkpoints=job.checkpoints,
            start=None,
            stopping=stopping,
            callbacks=callbacks,
            told=tell,
            peak=peak,
            progress=progress,
        )
    engine.close()
    return saved
