"""What Ray does around the loop: signals, and how the workers find one another."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, UserCallback
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from tasks.train.events import Events
from tasks.train.losses import GONE, loss_of, uncounted
from tasks.train.mailbox import ENDING, Ending

# The wish to stop of this process: a signal handler can reach nothing else.
ASKED = threading.Event()


class Workers(Backend):  # type: ignore[misc]
    """Joins the workers of one attempt to one group."""

    def on_start(self, worker_group: Any, backend_config: WorkersConfig) -> None:
        """Runs in Ray's controller; what it executes runs in each worker's main thread."""
        workers = len(worker_group)

        def each(function: Callable[..., Any], *arguments: Any, ranks: int = workers) -> Any:
            asked = [
                worker_group.execute_single_async(rank, function, *arguments, rank)
                for rank in range(ranks)
            ]
            return ray.get(asked, timeout=backend_config.hang_timeout_s)

        try:
            (address,) = each(_address, ranks=1)
            each(_listen_to_signals)
            each(_join, backend_config.backend, address, workers)
        except RayError as error:
            loss = loss_of({0: error})
            message = f"the workers did not meet: {loss.reason}"
            _tell(backend_config.events, message, cause=loss.cause)
            # Ray (2.60) forgets a group that fails here, and keeps its CPUs.
            worker_group.shutdown()
            raise WorkerGroupStartupFailedError(message) from error


@dataclass
class WorkersConfig(BackendConfig):  # type: ignore[misc]
    """Which framework's group the workers form."""

    backend: Literal["flax", "torch"]
    hang_timeout_s: float | None
    events: Events

    @property
    def backend_cls(self) -> type[Workers]:
        """Ray's name for it."""
        return Workers

    def to_dict(self) -> dict[str, Any]:
        """What Ray shows."""
        return {"backend": self.backend}


@dataclass(frozen=True)
class Losses(UserCallback):  # type: ignore[misc]
    """Tells of lost workers, from Ray's controller.

    Attributes:
        events: of the run.
        mailbox: of the attempt.
    """

    events: Events
    mailbox: Path

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Runs once for each group that is given up."""
        ending = self.mailbox / ENDING
        if ending.exists() and Ending.read(ending).status == "refused":
            return
        ranks = sorted(worker_exceptions)
        loss = loss_of(worker_exceptions)
        numbers = ", ".join(map(str, ranks))
        message = f"lost worker {numbers}: {loss.reason}"
        _tell(self.events, message, ranks=ranks, cause=loss.cause)


class WorkersTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray's trainer without the actor that frees CPUs when Ray's controller crashes.

    That actor asks the dashboard, which does not run here, and holds up the end of a run for 12 s
    until it gives up (Ray 2.60). The CPUs are freed when the driver leaves.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [item for item in callbacks if not isinstance(item, PlacementGroupCleanerCallback)]


def allowed(restarts: int) -> FailureConfig:
    """How often Ray starts the workers of one attempt again, all of them together.

    Of machines that are taken away it allows none, where its default is without end: whether such
    an attempt counts depends on what it has saved, which Ray does not know.
    """
    return FailureConfig(
        max_failures=restarts, controller_failure_limit=restarts, max_preemption_failures=0
    )


def why_uncounted(error: Exception, events: Events) -> str | None:
    """Why workers are lost, if Ray does not count it; None where it is a failure like any other.

    Told as `worker_lost`, unless `Losses` heard of it. Without Ray's controller there is no second
    try: the CPUs of its workers are free when the driver leaves.
    """
    if isinstance(error, GONE):
        gone = loss_of({0: error})
        _tell(events, f"lost Ray's controller: {gone.reason}", cause=gone.cause)
    loss = uncounted(error)
    if loss is None:
        return None
    if not isinstance(error, WorkerGroupError):
        _tell(events, f"lost the workers: {loss.reason}", cause=loss.cause)
    return loss.reason


def _tell(events: Events, message: str, **details: Any) -> None:
    # A disk that is full keeps no worker from being replaced.
    with contextlib.suppress(OSError):
        events.write("worker_lost", message, **details)


def _address(rank: int) -> tuple[str, int]:
    """This machine, and a port of it that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return ray.util.get_node_ip_address(), listener.getsockname()[1]


def _listen_to_signals(rank: int) -> None:
    # Ray's own handler would end the process at once, in the middle of a step.
    signal.signal(signal.SIGTERM, _ask_to_stop)


def _ask_to_stop(signum: int, frame: FrameType | None) -> None:
    ASKED.set()


def _join(
    backend: Literal["flax", "torch"], address: tuple[str, int], workers: int, rank: int
) -> None:
    """Tell the framework where the others are.

    JAX without this would train `workers` independent copies, and say nothing.
    """
    host, port = address
    if backend == "torch":
        # DeepSpeed reads these even where the group already exists.
        os.environ.update(
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
            RANK=str(rank),
            LOCAL_RANK="0",
            WORLD_SIZE=str(workers),
        )
    if workers == 1:
        return
    if backend == "torch":
        import torch.distributed

        torch.distributed.init_process_group("gloo")
        return
    import jax

    jax.distributed.initialize(f"{host}:{port}", workers, rank)
    if jax.process_count() != workers:
        raise RuntimeError(f"JAX sees {jax.process_count()} processes, not {workers}.")


def leave(backend: Literal["flax", "torch"], *, workers: int) -> None:
    """Leave the group, all workers together, after a run that went well."""
    if workers == 1:
        return
    if backend == "torch":
        import torch.distributed

        torch.distributed.destroy_process_group()
        return
    import jax

    jax.distributed.shutdown()  # type: ignore[no-untyped-call]
