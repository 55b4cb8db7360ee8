"""Who is measured: the challenger, the champion of the moment, and a baseline."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.record import digest_of_file
from models.spec import ModelSpec
from models.store import MANIFEST, TOKENIZER, ModelManifest, StoredModel, load_model
from tasks.artifacts import DataManifest
from tasks.evaluate.classifier import ArrayReader, ClassifierScorer, LogisticScorer, TextReader
from tasks.evaluate.language import LanguageScorer, NgramScorer, open_language_tokenizer
from tasks.evaluate.logistic import LogisticModel
from tasks.evaluate.losses import Predictor, Scorer
from tasks.evaluate.ngram import NgramModel

Backend = Literal["flax", "torch"]
DataKind = Literal["tokens", "text_classes", "images", "frames"]
# For people.
TITLES: dict[DataKind, str] = {
    "tokens": "text",
    "text_classes": "text with classes",
    "images": "images",
    "frames": "frames",
}


@dataclass(frozen=True)
class Candidate:
    """Where a candidate lies; small, so that it travels to workers.

    Attributes:
        name: `challenger`, `baseline` or `champion`.
        kind: what the path holds.
        path: a model's folder, or a baseline's file.
        digest: of the ModelManifest, or SHA-256 of the baseline's file.
        backend: the framework that computes a model.
        batch: windows, or documents with classes, of one forward pass.
    """

    name: str
    kind: Literal["model", "ngram", "logistic"]
    path: Path
    digest: str
    backend: Backend
    batch: int


def model_candidate(
    name: str, folder: Path, *, data: DataManifest, backend: Backend, batch: int
) -> Candidate:
    """A trained model, held against the data before any work starts.

    Raises:
        ValueError: the model is of another kind of data, shape or set of classes.
    """
    manifest = ModelManifest.read(folder / MANIFEST)
    _check_fit(name, manifest, data)
    return Candidate(name, "model", folder, manifest.digest, backend, batch)


@functools.lru_cache(maxsize=2)
def open_scorer(candidate: Candidate) -> Scorer:
    """Load a candidate, verified. A worker that gets several slices loads it once.

    Raises:
        ValueError: the model is damaged, or changed since the candidate was named.
    """
    _check_unchanged(candidate)
    if candidate.kind == "ngram":
        return NgramScorer(NgramModel.load(candidate.path))
    if candidate.kind == "logistic":
        return LogisticScorer(LogisticModel.load(candidate.path))
    stored = load_model(candidate.path)
    inputs = stored.spec.inputs
    predictor = open_predictor(stored, candidate.backend)
    classes = stored.manifest.classes or ()
    if inputs.kind != "tokens":
        return ClassifierScorer(predictor, ArrayReader(), classes, candidate.batch)
    tokenizer, end = open_language_tokenizer(
        candidate.path / TOKENIZER, vocabulary=inputs.vocabulary
    )
    if stored.spec.head.kind == "classes":
        reader = TextReader(tokenizer, end, inputs.context)
        return ClassifierScorer(predictor, reader, classes, candidate.batch)
    return LanguageScorer(predictor, tokenizer, end, inputs.context, candidate.batch)


def open_predictor(stored: StoredModel, backend: Backend) -> Predictor:
    """A stored model in either framework, in float32."""
    if backend == "flax":
        from models.flax.predictor import Predictor as FlaxPredictor

        return FlaxPredictor(stored.spec, stored.weights)
    from models.torch.predictor import Predictor as TorchPredictor

    return TorchPredictor(stored.spec, stored.weights)


def _check_unchanged(candidate: Candidate) -> None:
    if candidate.kind == "model":
        found = ModelManifest.read(candidate.path / MANIFEST).digest
    else:
        found = digest_of_file(candidate.path)
    if found != candidate.digest:
        raise ValueError(
            f"{candidate.path} changed during the evaluation: its digest is {found[:12]}…, it was "
            f"{candidate.digest[:12]}…. Evaluate again."
        )


def _check_fit(name: str, manifest: ModelManifest, data: DataManifest) -> None:
    spec: ModelSpec = manifest.model_spec
    remedy = f"Train the {name} on this data, or release it under another registry.model."
    reads = _reads(spec)
    if reads != data.kind:
        raise ValueError(
            f"the {name} is a model of {TITLES[reads]} and the data is {TITLES[data.kind]}. "
            f"{remedy}"
        )
    inputs = spec.inputs
    if inputs.kind == "tokens" and TOKENIZER not in {file.path for file in manifest.files}:
        raise ValueError(f"the {name} has no {TOKENIZER}, so it cannot read text. {remedy}")
    if inputs.kind == "patches":
        shape = (inputs.height, inputs.width, inputs.channels)
        if shape != data.shape:
            raise ValueError(
                f"the {name} takes images of {shape}, the data has {data.shape}. {remedy}"
            )
    if inputs.kind == "frames":
        longest, features = data.shape or (0, 0)
        if inputs.features != features or inputs.context < longest:
            raise ValueError(
                f"the {name} takes up to {inputs.context} frames of {inputs.features} values, the "
                f"data has {longest} of {features}. {remedy}"
            )
    known, asked = sorted(manifest.classes or ()), sorted(data.classes or ())
    if known != asked:
        raise ValueError(f"the {name} knows the classes {known}, the data has {asked}. {remedy}")


def _reads(spec: ModelSpec) -> DataKind:
    """The kind of data that a model is for."""
    match spec.inputs.kind:
        case "patches":
            return "images"
        case "frames":
            return "frames"
    return "tokens" if spec.head.kind == "language" else "text_classes"
