"""Scores classes: the log-probability of the right one, and whether it came first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tasks.evaluate.features import features
from tasks.evaluate.logistic import LogisticModel, log_softmax
from tasks.evaluate.losses import Documents, Losses, Predictor
from tasks.prepare.documents import ArrayDocuments, TextDocuments


@dataclass(frozen=True)
class LogisticScorer:
    """The baseline for classes."""

    model: LogisticModel

    def score(self, documents: Documents, rows: Sequence[int]) -> Losses:
        """All documents at once."""
        assert documents.labels is not None
        labels = documents.labels[np.asarray(rows, np.int64)]
        return _losses(self.model.log_probabilities(features(documents, rows)), labels)


@dataclass(frozen=True)
class ModelInputs:
    """What a model reads of documents.

    Attributes:
        values: (B, ...), as `models.inputs` has it.
        lengths: what counts of each row, (B,); None: all.
    """

    values: NDArray[Any]
    lengths: NDArray[np.int64] | None


class Reader(Protocol):
    """Makes a model's inputs of documents."""

    def read(self, documents: Documents, rows: NDArray[np.int64]) -> ModelInputs:
        """The inputs of these rows, in this order."""


class ArrayReader:
    """Images and sequences are stored as models read them."""

    def read(self, documents: Documents, rows: NDArray[np.int64]) -> ModelInputs:
        """Pixels or frames."""
        assert isinstance(documents, ArrayDocuments)
        batch = documents.samples.read(rows)
        return ModelInputs(batch.inputs, batch.lengths)


@dataclass(frozen=True)
class TextReader:
    """Cuts the raw text with the model's own tokenizer, whatever tokenizer the data has.

    Attributes:
        end: token of the end mark, which pads.
        context: the first T tokens of a document are read.
    """

    tokenizer: Tokenizer
    end: int
    context: int

    def read(self, documents: Documents, rows: NDArray[np.int64]) -> ModelInputs:
        """Tokens, padded behind."""
        assert isinstance(documents, TextDocuments)
        values = np.full((len(rows), self.context), self.end, np.int32)
        lengths = np.ones(len(rows), np.int64)
        for place, row in enumerate(rows):
            text = documents.text(row).decode("utf-8")
            tokens = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.context]
            values[place, : len(tokens)] = tokens
            lengths[place] = max(1, len(tokens))
        return ModelInputs(values, lengths)


@dataclass(frozen=True)
class ClassifierScorer:
    """A trained classifier.

    Attributes:
        predictor: the model.
        reader: makes its inputs.
        classes: the model's class names, in the order of its logits.
        batch: documents of one forward pass.
    """

    predictor: Predictor
    reader: Reader
    classes: tuple[str, ...]
    batch: int

    def score(self, documents: Documents, rows: Sequence[int]) -> Losses:
        """Batch by batch; classes are matched by name, as an older model may number them
        otherwise.
        """
        assert documents.labels is not None
        own = np.array([self.classes.index(name) for name in documents.classes])
        loss, correct = np.zeros(len(rows)), np.zeros(len(rows))
        for start in range(0, len(rows), self.batch):
            chosen = np.asarray(rows[start : start + self.batch], np.int64)
            # Every pass has one shape, so that JAX compiles once.
            inputs = self.reader.read(documents, np.resize(chosen, self.batch))
            given = self.predictor.logits(inputs.values, lengths=inputs.lengths)
            logits = np.asarray(given, np.float64)[: len(chosen)]
            found = _losses(log_softmax(logits), own[documents.labels[chosen]])
            loss[start : start + len(chosen)] = found.loss
            correct[start : start + len(chosen)] = found.correct
        return Losses(loss, correct)


def _losses(log_probabilities: NDArray[np.float64], labels: NDArray[Any]) -> Losses:
    right = log_probabilities.argmax(axis=1) == labels
    return Losses(
        -log_probabilities[np.arange(len(labels)), labels], correct=right.astype(np.float64)
    )
