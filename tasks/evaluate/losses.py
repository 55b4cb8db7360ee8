"""What a candidate lost, and what candidates need to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.prepare.documents import ArrayDocuments, TextDocuments

Documents = TextDocuments | ArrayDocuments


@dataclass(frozen=True)
class Losses:
    """Sums of each document.

    Attributes:
        loss: nats, (N,).
        correct: 1 where the most probable class is the right one, (N,); None without classes.
    """

    loss: NDArray[np.float64]
    correct: NDArray[np.float64] | None = None


class Scorer(Protocol):
    """A candidate in memory, for one kind of data."""

    def score(self, documents: Documents, rows: Sequence[int]) -> Losses:
        """Measure the documents of these rows, in this order."""


class Predictor(Protocol):
    """A twin for inference: `models.flax.predictor` or `models.torch.predictor`."""

    def logits(
        self, inputs: NDArray[Any], *, lengths: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """(B, T, V) for a language model, (B, classes) for a classifier."""

    def losses(self, inputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
        """Nats of each target, in the targets' shape."""
