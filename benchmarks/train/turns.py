"""A loop that is stopped between steps, so that contenders take turns while each stays warm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Turn(NamedTuple):
    """Some steps in a row.

    Attributes:
        seconds: from the end of the step before them to the end of the last.
        inside_s: how much of it the engine's own step took; 0 where nobody measured.
    """

    seconds: float
    inside_s: float


class Turns:
    """Told of every step of a loop, and asked whether it was the last."""

    def __init__(
        self,
        counts: Iterable[int],
        answer: Callable[[Turn], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Let the loop begin.

        Args:
            counts: steps of each turn; taking the next one may wait. The run ends behind the last.
            answer: told of each turn as it ends.
        """
        self._counts, self._answer, self._clock = iter(counts), answer, clock
        self.losses: list[float] = []
        self._left = next(self._counts)
        self._began, self._inside_s = clock(), 0.0

    def after_step(self, loss: float, *, inside_s: float = 0.0) -> bool:
        """Count a step; true where the run is to end.

        Args:
            inside_s: seconds that the engine's steps took so far.
        """
        self.losses.append(loss)
        self._left -= 1
        if self._left:
            return False
        self._answer(Turn(self._clock() - self._began, inside_s - self._inside_s))
        self._left = next(self._counts, 0)
        self._began, self._inside_s = self._clock(), inside_s
        return self._left == 0
