"""Two new processes that meet at a free port."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Did = TypeVar("Did")


def in_two_processes(worker: Callable[..., Did], *given: Any) -> list[Did]:
    """What `worker(rank, port, *given)` returned in each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        ranks = [pool.submit(worker, rank, port, *given) for rank in range(2)]
        return [rank.result() for rank in ranks]
