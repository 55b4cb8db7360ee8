"""Fits the baseline on the training split that the challenger was trained on."""

from __future__ import annotations

from pathlib import Path

from models.record import digest_of_file
from tasks.evaluate.candidates import Backend, Candidate
from tasks.evaluate.features import features
from tasks.evaluate.logistic import fit_logistic
from tasks.evaluate.ngram import fit_ngram
from tasks.evaluate.spec import Baseline
from tasks.prepare.documents import TextDocuments, open_documents


def fit_baseline(
    spec: Baseline, *, data: Path, file: Path, backend: Backend, batch: int
) -> Candidate:
    """Fit a baseline, write it to `file`, and name it as a candidate.

    Raises:
        ValueError: the baseline is for another kind of data, or the training split is damaged.
    """
    train = open_documents(data, "train")
    if isinstance(train, TextDocuments) and train.labels is None:
        if spec.kind != "ngram":
            raise ValueError(
                f"evaluate.baseline.kind must be ngram for text without classes; got {spec.kind} "
                f"and {data} holds such text."
            )
        texts = (train.text(row) for row in range(len(train)))
        fit_ngram(texts, order=spec.order).save(file)
    else:
        if spec.kind != "logistic":
            raise ValueError(
                f"evaluate.baseline.kind must be logistic for classes; got {spec.kind} and {data} "
                "holds classes."
            )
        assert train.labels is not None
        fit_logistic(
            features(train, range(len(train))),
            train.labels,
            classes=len(train.classes),
            penalty=spec.penalty,
        ).save(file)
    return Candidate("baseline", spec.kind, file, digest_of_file(file), backend, batch)
