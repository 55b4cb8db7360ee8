"""Contenders in processes of their own, which take turns: what else runs falls on all alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.models.contender import Task


class Measured(NamedTuple):
    """What a task measured in each round: seconds, or bytes."""

    task: Task
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    def times_faster(self, than: Measured) -> float:
        """Median over the rounds of how much longer the other one took in the same round."""
        pairs = zip(than.values, self.values, strict=True)
        return statistics.median(other / own for other, own in pairs)


class Contenders:
    """A process for each library, started when it is first asked for, with all cores."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Contenders:
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes."""
        for process in self._processes.values():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            if error[0] is not None:
                process.terminate()
            process.wait()

    def run(self, tasks: Sequence[Task], *, rounds: int) -> list[Measured]:
        """Do every task once in each round."""
        numbers = [int(self._ask(task.who, "take", task)) for task in tasks]
        values = [
            [self._ask(task.who, "do", number) for task, number in zip(tasks, numbers, strict=True)]
            for _ in range(rounds)
        ]
        for who in {task.who for task in tasks}:
            self._ask(who, "leave", None)
        return [Measured(task, tuple(row[i] for row in values)) for i, task in enumerate(tasks)]

    def _ask(self, who: str, order: str, about: Task | int | None) -> float:
        if who not in self._processes:
            self._processes[who] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.models.contender"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
            )
        process = self._processes[who]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{json.dumps([order, about])}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{who} ended at {order} {about}; its error stands above.")
        return float(line)
