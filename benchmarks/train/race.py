"""Contenders in processes of their own that take turns: what else runs falls on all alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.train.contender import Run
from benchmarks.train.course import Task
from benchmarks.train.turns import Turn

# Programs are compiled and memory is taken in the first turn, which nobody counts.
WARM = 2


class Raced(NamedTuple):
    """A contender's turns, the first one left out, and its run.

    Attributes:
        each: steps of a turn.
    """

    task: Task
    each: int
    turns: tuple[Turn, ...]
    run: Run

    @property
    def step_s(self) -> float:
        """Median over the turns of the seconds of a step."""
        return statistics.median(self.steps_s)

    @property
    def steps_s(self) -> list[float]:
        """Seconds of a step of each turn."""
        return [turn.seconds / self.each for turn in self.turns]

    def charged(self, *, every: int) -> Raced:
        """The same with a share of a checkpoint added to each step, as if all of it were waited
        for.

        Args:
            every: steps between two checkpoints.
        """
        extra = self.run.saving_s * self.each / every
        turns = [turn._replace(seconds=turn.seconds + extra) for turn in self.turns]
        return self._replace(turns=tuple(turns))

    @property
    def outside(self) -> float:
        """Median share of a turn that was not spent in the engine's steps."""
        return statistics.median(1 - turn.inside_s / turn.seconds for turn in self.turns)

    def times_faster(self, than: Raced) -> float:
        """Median over the rounds of how much longer the other one took in the same round."""
        pairs = zip(than.steps_s, self.steps_s, strict=True)
        return statistics.median(other / own for other, own in pairs)


class Contender:
    """A process that trains as far as it is told."""

    def __init__(self, task: Task) -> None:
        """Start it; it does nothing before its first turn."""
        self.task = task
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.train.contender", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
        )

    def go(self, steps: int) -> Turn:
        """Train some steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return Turn(*self._answer())

    def finish(self) -> Run:
        """End the run."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        losses, saving_s = self._answer()
        self._process.wait()
        return Run(tuple(losses), saving_s)

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.task.who} ended; its error stands above.")
        return json.loads(line)


def race(
    tasks: Sequence[Task], *, rounds: int, each: int, tell: Callable[[str], None]
) -> list[Raced]:
    """Let contenders train, `each` steps of each in every round.

    Args:
        tell: what happens, in lines for people.

    Raises:
        RuntimeError: a contender ended before its run did.
    """
    contenders: list[Contender] = []
    try:
        for task in tasks:
            contenders.append(Contender(task))
            first = contenders[-1].go(WARM)
            tell(f"{task.who}, {task.precision}: ready after {first.seconds:.0f} s")
        turns: list[list[Turn]] = [[] for _ in contenders]
        for number in range(rounds):
            for contender, own in zip(contenders, turns, strict=True):
                own.append(contender.go(each))
            tell(f"round {number + 1} of {rounds}")
        runs = [contender.finish() for contender in contenders]
    finally:
        for contender in contenders:
            contender.end()
    return [
        Raced(task, each, tuple(own), run)
        for task, own, run in zip(tasks, turns, runs, strict=True)
    ]
