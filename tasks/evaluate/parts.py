"""The evaluation cut into parts that workers can do: one candidate on one slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.evaluate.candidates import Candidate, open_scorer
from tasks.prepare.documents import open_documents


@dataclass(frozen=True)
class Part:
    """What one worker does; a few kilobytes when pickled.

    Attributes:
        candidate: who is measured.
        data: the prepared data set.
        slice: which slice, for progress.
        rows: its documents, by their place in the test split.
    """

    candidate: Candidate
    data: Path
    slice: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class PartScores:
    """What came out of a part.

    Attributes:
        part: what was asked for.
        loss: nats of each row, (rows,).
        correct: right answers of each row, (rows,); None without classes.
    """

    part: Part
    loss: NDArray[np.float64]
    correct: NDArray[np.float64] | None


class FanOut(Protocol):
    """Does parts somewhere and gives their results in the parts' order, like the builtin `map`."""

    def __call__(
        self, function: Callable[[Part], PartScores], parts: Sequence[Part], /
    ) -> Iterable[PartScores]:
        """Call the function, which is at module level, with each part."""


def score_part(part: Part) -> PartScores:
    """Measure one candidate on one slice; data and model are verified before they are used.

    Raises:
        ValueError: a file is missing or damaged.
    """
    scorer = open_scorer(part.candidate)
    losses = scorer.score(open_documents(part.data, "test"), part.rows)
    return PartScores(part, losses.loss, losses.correct)
