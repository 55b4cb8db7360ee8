"""Processes of one thread each, which end with the one that started them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from benchmarks.study.timing import Timed, Timing, time_steps
from benchmarks.study.trial import Ended, Trial, train

Task = Trial | Timing


class Workers:
    """Do tasks in this process, or in several others."""

    def __init__(self, processes: int) -> None:
        """With one process it is this one; others are started when they are first needed."""
        self._processes = processes
        self._free: list[Connection[Task, Ended | Timed]] = []
        self._started: list[BaseProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes; after an error, in the middle of what they do."""
        for connection in self._free:
            connection.close()
        for process in self._started:
            if kind is not None:
                process.terminate()
            process.join()

    def run(self, tasks: Sequence[Task]) -> Iterator[Ended | Timed]:
        """Results as they come, in any order.

        Raises:
            RuntimeError: a process ended; its error stands on standard error.
        """
        if self._processes == 1:
            _one_thread()
            yield from map(_done, tasks)
            return
        waiting = list(reversed(tasks))
        busy: dict[Connection[Task, Ended | Timed], Task] = {}
        while waiting or busy:
            while waiting and len(busy) < self._processes:
                connection = self._free.pop() if self._free else self._start()
                busy[connection] = waiting.pop()
                connection.send(busy[connection])
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                task = busy.pop(ready)
                try:
                    found = ready.recv()
                except EOFError:
                    raise RuntimeError(f"a process of the study ended at {task}.") from None
                self._free.append(ready)
                yield found

    def _start(self) -> Connection[Task, Ended | Timed]:
        context = multiprocessing.get_context("spawn")
        own, other = context.Pipe()
        process = context.Process(target=_serve, args=(other,), daemon=True)
        process.start()
        self._started.append(process)
        # So that the end of the process is seen at this end.
        other.close()
        return own


def _serve(asked: Connection[Ended | Timed, Task]) -> None:
    """Do what is asked until nobody is there to ask or to hear."""
    _one_thread()
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            asked.send(_done(asked.recv()))


def _done(task: Task) -> Ended | Timed:
    return train(task) if isinstance(task, Trial) else time_steps(task)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
