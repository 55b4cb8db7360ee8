"""`documents.parquet`: one row for each test document, with the loss of each candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts import SliceScore

DOCUMENTS = "documents.parquet"
LOSS = "loss."
CORRECT = "correct."
TEXTS = ("document", "name", "slice")
OTHER = "other"

Unit = Literal["bits_per_byte", "nats_per_image", "nats_per_sample"]
UNIT_NATS: dict[Unit, float] = {
    "bits_per_byte": math.log(2),
    "nats_per_image": 1.0,
    "nats_per_sample": 1.0,
}


@dataclass(frozen=True)
class ScoreTable:
    """Losses of every candidate on the same documents, row by row.

    Attributes:
        documents: id of each document, N of them.
        names: where each document came from, for people.
        slices: slice of each document.
        weight: what the loss is divided by in the end, bytes for text and 1 with classes, (N,).
        loss: candidate -> summed loss of each document in nats, (N,).
        correct: candidate -> right answers of each document, (N,); None without classes.
    """

    documents: tuple[str, ...]
    names: tuple[str, ...]
    slices: tuple[str, ...]
    weight: NDArray[np.float64]
    loss: dict[str, NDArray[np.float64]]
    correct: dict[str, NDArray[np.float64]] | None

    def score(self, candidate: str) -> float:
        """Nats per unit of weight over all documents: sums first, one division last."""
        return float(self.loss[candidate].sum() / self.weight.sum())

    def accuracies(self) -> dict[str, float] | None:
        """Candidate -> share of right answers; None without classes."""
        if self.correct is None:
            return None
        total = self.weight.sum()
        return {name: float(values.sum() / total) for name, values in self.correct.items()}

    def by_slice(self) -> dict[str, SliceScore]:
        """Sums for each slice, the heaviest slice first and the pooled rest last."""
        names = np.array(self.slices)
        scores = {}
        for name in sorted(set(self.slices)):
            rows = names == name
            scores[name] = SliceScore(
                documents=int(rows.sum()),
                weight=float(self.weight[rows].sum()),
                loss=_sums(self.loss, rows),
                correct=None if self.correct is None else _sums(self.correct, rows),
            )
        return dict(sorted(scores.items(), key=lambda item: (item[0] == OTHER, -item[1].weight)))

    def write(self, path: Path) -> None:
        """Write the table; equal tables give equal bytes."""
        import pyarrow
        import pyarrow.parquet

        columns: dict[str, Any] = {
            "document": list(self.documents),
            "name": list(self.names),
            "slice": list(self.slices),
            "weight": self.weight,
        }
        columns |= {LOSS + name: values for name, values in self.loss.items()}
        columns |= {CORRECT + name: values for name, values in (self.correct or {}).items()}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a table.

        Raises:
            ValueError: the file is not such a table, is empty, holds a document twice, or holds a
                number that is not finite or a weight that is not positive.
        """
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path)
            names = table.column_names
            found = {name: table.column(name).to_pylist() for name in TEXTS}
            numbers = {
                name: np.asarray(table.column(name).to_numpy(), np.float64)
                for name in names
                if name == "weight" or name.startswith((LOSS, CORRECT))
            }
            weight = numbers.pop("weight")
        except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path} is not a table of document scores: {error}") from None
        documents, titles, slices = (tuple(found[name]) for name in TEXTS)
        if not documents:
            raise ValueError(f"{path} holds no documents; nothing was measured.")
        if len(set(documents)) != len(documents):
            raise ValueError(f"{path} holds a document twice; evaluate again.")
        for name, values in (("weight", weight), *numbers.items()):
            if not np.isfinite(values).all():
                row = int(np.argmin(np.isfinite(values)))
                raise ValueError(
                    f"{path} holds {name}={values[row]} for document {documents[row]}; "
                    "a score must be finite."
                )
        if not (weight > 0).all():
            row = int(np.argmin(weight > 0))
            raise ValueError(
                f"{path} holds weight={weight[row]} for document {documents[row]}; "
                "it must be positive."
            )
        loss = {key.removeprefix(LOSS): v for key, v in numbers.items() if key.startswith(LOSS)}
        correct = {
            key.removeprefix(CORRECT): v for key, v in numbers.items() if key.startswith(CORRECT)
        }
        return cls(documents, titles, slices, weight, loss, correct or None)


def pool_slices(
    slices: tuple[str, ...], weight: NDArray[np.float64], *, most: int
) -> tuple[str, ...]:
    """Rename all but the `most` heaviest slices to `other`.

    >>> pool_slices(("a", "b", "c", "a"), np.array([1.0, 3.0, 2.0, 4.0]), most=1)
    ('a', 'other', 'other', 'a')
    """
    heavy: dict[str, float] = {}
    for name, value in zip(slices, weight, strict=True):
        heavy[name] = heavy.get(name, 0.0) + float(value)
    kept = sorted(heavy, key=lambda name: (-heavy[name], name))[:most]
    return tuple(name if name in kept else OTHER for name in slices)


def _sums(columns: dict[str, NDArray[np.float64]], rows: NDArray[np.bool_]) -> dict[str, float]:
    return {name: float(values[rows].sum()) for name, values in columns.items()}
