"""What the linear baseline sees of a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tasks.prepare.documents import ArrayDocuments, TextDocuments

# Floating-point numbers, (documents, features), dense or sparse; SciPy has no types.
Features: TypeAlias = Any


def features(documents: TextDocuments | ArrayDocuments, rows: Sequence[int]) -> Features:
    """One row for each document, (rows, features).

    Pixels or frames as they are, sequences padded with zeros; of a text the logarithms of one plus
    how often each token of the prepared data occurs, scaled to length 1.
    """
    if isinstance(documents, TextDocuments):
        return _token_counts(documents, rows)
    inputs = documents.samples.read(np.asarray(rows, np.int64)).inputs
    flat: NDArray[np.float64] = inputs.reshape(len(inputs), -1).astype(np.float64)
    return flat


def _token_counts(documents: TextDocuments, rows: Sequence[int]) -> Any:
    values, columns, ends = [], [], [0]
    for row in rows:
        tokens, counts = np.unique(documents.tokens(row), return_counts=True)
        weights = np.log1p(counts)
        values.append(weights / np.linalg.norm(weights))
        columns.append(tokens)
        ends.append(ends[-1] + len(tokens))
    shape = (len(rows), documents.vocabulary)
    return csr_array((np.concatenate(values), np.concatenate(columns), ends), shape=shape)
