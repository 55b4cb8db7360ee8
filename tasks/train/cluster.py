"""The Ray that a run works on, and what its workers find there."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import tasks

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # The default of 2 s is how late a finished or a dead worker would be noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # The watcher is for clouds that take machines away; SIGTERM tells us the same.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Keeps Ray from hiding accelerators from workers that ask for none, and from warning about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
HANG_TIMEOUT = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"


@contextlib.contextmanager
def running_ray() -> Iterator[None]:
    """A Ray to work on: the one that is running, that of RAY_ADDRESS, or one of our own."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        address=os.environ.get("RAY_ADDRESS", "local"),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
    )
    try:
        if main:
            # Ray puts its own in its place.
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def noticing_hangs(timeout_s: float | None) -> Iterator[None]:
    """Ray Train gives up workers that do not answer for so long; None: never.

    It reads that from the environment of the process that calls `fit`.
    """
    before = os.environ.get(HANG_TIMEOUT)
    os.environ[HANG_TIMEOUT] = str(math.inf if timeout_s is None else timeout_s)
    try:
        yield
    finally:
        del os.environ[HANG_TIMEOUT]
        if before is not None:
            os.environ[HANG_TIMEOUT] = before


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the program in order, unless the caller has already decided what it does."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_resources(workers: int) -> None:
    """Refuse what Ray would wait for without end.

    Raises:
        ValueError: the cluster has fewer CPUs than workers.
    """
    cpus = int(available("CPU"))
    if cpus < workers:
        raise ValueError(
            "train.workers must be at most the CPUs that Ray has, one for each worker; got "
            f"workers={workers}, CPUs={cpus}. Try workers={max(cpus, 1)}, or join a "
            "larger cluster with RAY_ADDRESS."
        )


def available(resource: str) -> float:
    """How much of a resource all machines of the cluster have together, used or free."""
    import ray

    return float(ray.cluster_resources().get(resource, 0))


def worker_environment(workers: int, *, gpus: bool) -> dict[str, str]:
    """Environment variables of each of `workers` processes that share a machine."""
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    environment = {"PYTHONPATH": _python_path(), "OMP_NUM_THREADS": str(threads)}
    if not gpus:
        environment["JAX_PLATFORMS"] = "cpu"
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _python_path() -> str:
    """Workers find this very code, installed or not."""
    root = str(Path(tasks.__path__[0]).parent)
    rest = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([root, rest]) if rest else root
