"""What one worker does: open the data, build the engine, go on from the newest checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.spec import POLICIES, Inputs, ModelSpec, Spec
from models.weights import flops_per_token
from optim.spec import OptimSpec
from tasks.prepare.dataset import open_split
from tasks.progress import Progress, silent
from tasks.train.augment_spec import AugmentSpec
from tasks.train.callbacks import Callback
from tasks.train.checkpoints import Checkpoint, Checkpoints
from tasks.train.engine import Engine
from tasks.train.events import Events
from tasks.train.identity import Identity
from tasks.train.loop import Outcome, Seat, run_loop, tokens_in
from tasks.train.metrics import Metrics
from tasks.train.peak import measured_peak
from tasks.train.profiling import Profiler
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.saving import Saved, unwatched
from tasks.train.spec import TrainSpec
from tasks.train.speed import Peak
from tasks.train.stopping import Stopping


class Job(Spec):
    """Everything that a worker needs to know; travels to it as JSON."""

    model: ModelSpec
    optim: OptimSpec
    train: TrainSpec
    augment: AugmentSpec = AugmentSpec()
    regularise: RegulariseSpec = RegulariseSpec()
    data: str
    folder: str
    identity: Identity

    @property
    def events(self) -> Events:
        """What happens to the run."""
        return Events(Path(self.folder) / "events.jsonl")

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        spec = self.train.checkpoint
        folder = Path(self.folder)
        return Checkpoints(folder, self.identity, spec.keep, self.events, keep_best=spec.best)


def work(
    job: Job,
    *,
    seat: Seat,
    stopping: Stopping,
    agree: Callable[[int | None], int | None],
    callbacks: Sequence[Callback] = (),
    progress: Progress = silent,
) -> Outcome:
    """Train one worker's share of the job.

    Args:
        agree: gives every worker what rank 0 passed; a barrier.
        callbacks: hear of the run beside those of the job.

    Raises:
        ValueError: the data is damaged, no checkpoint is readable, or the numbers blew up.
    """
    start = _choose(job, seat=seat, agree=agree)
    if start is not None and is_finished(start, job.train):
        return Outcome(start.manifest.step, finished=True)
    inputs = job.model.inputs
    context = inputs.context if inputs.kind == "tokens" else None
    training = open_split(Path(job.data), "train", context=context)
    validation = open_split(Path(job.data), "validation", context=context)
    engine = build_engine(job.model, job.optim, job.train, job.regularise)
    # Every worker measures: one alone would have the cores of the others.
    peak, done = peak_of(job, seat), start.manifest.step if start else 0
    with watched(job, seat=seat, peak=peak, done=done) as (watching, told):
        outcome = run_loop(
            engine,
            train=job.train,
            optim=job.optim,
            augmentation=job.augment,
            regularise=job.regularise,
            training=training,
            validation=validation,
            positions=inputs.length,
            counted=counted_by(inputs),
            checkpoints=job.checkpoints,
            start=start,
            stopping=stopping,
            seat=seat,
            agree=agree,
            callbacks=[*callbacks, *watching],
            told=told,
            peak=peak,
            progress=progress,
        )
    # Not after an error: the other workers may be gone, and leaving waits for them.
    engine.close()
    return outcome


def counted_by(inputs: Inputs) -> Callable[[NDArray[np.int64]], int]:
    """What counts a model's positions in padded samples of some lengths, (B,)."""
    if inputs.kind != "frames":
        return tokens_in
    return lambda lengths: sum(inputs.extra + inputs.steps(length) for length in lengths.tolist())


def build_engine(
    model: ModelSpec,
    optim: OptimSpec,
    train: TrainSpec,
    regularise: RegulariseSpec = RegulariseSpec(),
) -> Engine:
    """The engine of `train.backend`; the other framework is never imported."""
    if train.backend == "flax":
        from tasks.train.flax_step import FlaxEngine

        return FlaxEngine(model, optim, train, regularise)
    from tasks.train.torch_step import TorchEngine

    return TorchEngine(model, optim, train, regularise=regularise)


def is_finished(last: Checkpoint, train: TrainSpec) -> bool:
    """Whether a checkpoint is the end of its run."""
    return last.manifest.step == train.steps or last.manifest.ledger.ended is not None


def peak_of(job: Job, seat: Seat) -> Peak:
    """What the run's utilisation is a share of."""
    train, needed = job.train, flops_per_token(job.model)
    if train.peak_flops is not None:
        return Peak(train.peak_flops, needed)
    dtype = POLICIES[train.precision].compute
    return Peak(seat.workers * measured_peak(train.backend, dtype), needed)


@contextmanager
def watched(
    job: Job, *, seat: Seat, peak: Peak, done: int
) -> Iterator[tuple[list[Callback], Callable[[Saved], None]]]:
    """Who listens to a worker's run, and who is told of saved checkpoints.

    Args:
        done: steps done before this process began.
    """
    train, folder = job.train, Path(job.folder)
    callbacks: list[Callback] = []
    told = unwatched
    with ExitStack() as stack:
        if seat.rank == 0:
            metrics = stack.enter_context(
                Metrics(
                    folder,
                    run=folder.name,
                    backend=train.backend,
                    peak=peak,
                    port=train.metrics_port,
                )
            )
            told = metrics.after_save
            callbacks.append(metrics)
        if train.profile is not None:
            profiler = Profiler(
                train.profile,
                folder,
                backend=train.backend,
                rank=seat.rank,
                done=done,
                events=job.events,
            )
            callbacks.append(stack.enter_context(profiler))
        yield callbacks, told


def _choose(
    job: Job, *, seat: Seat, agree: Callable[[int | None], int | None]
) -> Checkpoint | None:
    """The newest checkpoint that rank 0 can read, for all workers alike."""
    if seat.rank:
        step = agree(None)
        return None if step is None else job.checkpoints.read(step)
    job.checkpoints.sweep()
    start = job.checkpoints.newest()
    agree(start.manifest.step if start else None)
    backend, workers = job.train.backend, seat.workers
    if start is None:
        message = f"starts at step 0 with {backend}"
        job.events.write("started", message, step=0, workers=workers, pid=os.getpid())
    else:
        held = start.manifest
        message = f"goes on from step {held.step}, which {held.backend} saved, with {backend}"
        job.events.write("resumed", message, step=held.step, workers=workers, pid=os.getpid())
    return start
