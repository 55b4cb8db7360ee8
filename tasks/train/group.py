"""Ray Train places the workers of a run, watches them and starts them again when one dies.

Workers and driver meet in the run's scratch folder: checkpoints, events, the figures of the
moment, the wish to stop and the outcome are files there, so that nothing of a run depends on which
process survives. On several machines that folder is on a shared file system.
"""

from __future__ import annotations

import threading
import traceback
import uuid
from pathlib import Path
from typing import Literal

from tasks.progress import Progress, silent
from tasks.train.attempts import until_finished
from tasks.train.cluster import (
    available,
    check_resources,
    noticing_hangs,
    running_ray,
    terminable,
    worker_environment,
)
from tasks.train.loop import Outcome, Seat
from tasks.train.mailbox import ENDING, STATUS, Ending, Relay, StatusFile
from tasks.train.stopping import Stopping
from tasks.train.watchdog import guarded
from tasks.train.worker import Job, work

POLL_S = 0.1
# Workers save and leave within a few seconds. One that hangs is given up after this long.
GRACE_S = 20.0


def run_group(job: Job, *, progress: Progress = silent) -> Outcome:
    """Run a job on `train.workers` workers until it is finished.

    A worker that dies or hangs is replaced, up to `train.restarts` times, and all go on from the
    newest checkpoint. One that is told to leave (SIGTERM), or whose machine is taken away, is
    replaced as long as something new is saved each time; see `until_finished`. Where the caller is
    interrupted (Ctrl-C, SIGTERM, an exception raised by a signal handler), the workers save and
    leave first.

    Raises:
        ValueError: the cluster is too small, or the run refuses to go on; the message says why.
        ChildProcessError: workers died more often than allowed; the same command goes on later.
    """
    with running_ray(), noticing_hangs(job.train.hang_timeout_s), terminable():
        check_resources(job.train.workers)
        step = until_finished(
            lambda: _attempt(job, progress=progress),
            saved=lambda: max(job.checkpoints.steps(), default=0),
            restarts=job.train.restarts,
            events=job.events,
        )
    return Outcome(step or job.train.steps, finished=True)


def _attempt(job: Job, *, progress: Progress) -> Ending:
    """One `fit`, in a thread of its own so that this one hears signals and tells progress."""
    # A mailbox for this attempt alone: what is left of an earlier one can neither stop nor end it.
    mailbox = Path(job.folder) / f"attempt-{uuid.uuid4().hex[:8]}"
    mailbox.mkdir(parents=True)
    ending = mailbox / ENDING
    failures: list[Exception] = []
    # Not `Thread.join`: interrupted by a signal, Python 3.11 takes the thread for finished.
    over = threading.Event()
    relay = Relay(mailbox / STATUS, job.events, progress)
    arguments = (job, mailbox, failures, over)
    threading.Thread(target=_fit, args=arguments, name="ray-train", daemon=True).start()
    try:
        while not over.wait(POLL_S):
            relay.tell()
    except BaseException:
        Stopping(mailbox).ask()
        # To the end of the thread: Ray ends a process that uses it after its shutdown.
        over.wait(GRACE_S)
        relay.tell()
        raise
    relay.tell()
    if ending.exists():
        return Ending.read(ending)
    from tasks.train.losses import last_words
    from tasks.train.ray_backend import why_uncounted

    cause = failures[0] if failures else RuntimeError("they ended without a word")
    reason = why_uncounted(cause, job.events)
    if reason is not None:
        return Ending(status="lost", message=reason)
    raise ChildProcessError(
        f"the workers failed, and train.restarts={job.train.restarts} did not help; what is saved "
        f"in {job.folder} stays, and the same command goes on from there. Last: {last_words(cause)}"
    ) from cause


def _fit(job: Job, mailbox: Path, failures: list[Exception], over: threading.Event) -> None:
    try:
        _train_with_ray(job, mailbox)
    except Exception as error:  # whatever it is, it belongs to the thread that waits
        failures.append(error)
    finally:
        over.set()


def _train_with_ray(job: Job, mailbox: Path) -> None:
    from ray.train import RunConfig, ScalingConfig

    from tasks.train.ray_backend import Losses, WorkersConfig, WorkersTrainer, allowed

    gpus = available("GPU") >= job.train.workers
    WorkersTrainer(
        _train_function,
        train_loop_config={"job": job.model_dump_json(), "mailbox": str(mailbox)},
        backend_config=WorkersConfig(job.train.backend, job.train.hang_timeout_s, job.events),
        scaling_config=ScalingConfig(num_workers=job.train.workers, use_gpu=gpus),
        run_config=RunConfig(
            name="ray",
            storage_path=str(mailbox),
            callbacks=[Losses(job.events, mailbox)],
            failure_config=allowed(job.train.restarts),
            worker_runtime_env={"env_vars": worker_environment(job.train.workers, gpus=gpus)},
        ),
    ).fit()


def _train_function(config: dict[str, str]) -> None:
    """Runs in each worker, in a thread beside the actor's own."""
    from ray import train as ray_train
    from ray.train.collective import broadcast_from_rank_zero

    from tasks.train.ray_backend import ASKED, leave

    job = Job.model_validate_json(config["job"])
    context = ray_train.get_context()
    seat = Seat(context.get_world_rank(), context.get_world_size())
    mailbox = Path(config["mailbox"])
    ending = mailbox / ENDING
    if ending.exists() and Ending.read(ending).status == "refused":
        # Ray started the group again, but what was refused would be refused again.
        return
    stopping = Stopping(mailbox, seat.rank, seat.workers, ASKED)
    progress = StatusFile(mailbox / STATUS) if seat.rank == 0 else silent
    timeout_s = job.train.hang_timeout_s
    with guarded(job.events, rank=seat.rank, timeout_s=timeout_s) as callbacks:
        try:
            outcome = work(
                job,
                seat=seat,
                stopping=stopping,
                agree=broadcast_from_rank_zero,
                callbacks=callbacks,
                progress=progress,
            )
        except ValueError as error:
            trace = traceback.format_exc()
            job.events.write("refused", str(error), rank=seat.rank, traceback=trace)
            Ending(status="refused", message=str(error)).write(ending)
            if seat.workers == 1:
                return
            # The others may be waiting for this one: only its failure frees them.
            raise
        if seat.rank == 0:
            if not outcome.finished:
                message = f"asked to stop: saved after step {outcome.step}"
                job.events.write("stopped", message, step=outcome.step)
            status: Literal["finished", "stopped"] = "finished" if outcome.finished else "stopped"
            Ending(status=status, step=outcome.step).write(ending)
        leave(job.train.backend, workers=seat.workers)
