"""Measures challenger, champion and baseline on the same held-out documents."""

from __future__ import annotations

import csv
import hashlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.record import FileDigest, canonical_json, write_atomically
from models.registry.spec import RegistrySpec
from models.store import MANIFEST
from tasks.artifacts import Champion, DataManifest, Evaluation
from tasks.evaluate.baseline import fit_baseline
from tasks.evaluate.candidates import Backend, Candidate, DataKind, model_candidate, open_scorer
from tasks.evaluate.curves import read_curves
from tasks.evaluate.parts import FanOut, Part, score_part
from tasks.evaluate.spec import EvaluateSpec
from tasks.evaluate.table import DOCUMENTS, UNIT_NATS, ScoreTable, Unit, pool_slices
from tasks.folder import replaced
from tasks.places import Places
from tasks.prepare.documents import Document, TextDocuments, open_documents
from tasks.progress import Progress, silent

EVALUATION = "evaluation.json"
REPORT = "report.html"
SLICES = "slices.csv"
UNITS: dict[DataKind, Unit] = {
    "tokens": "bits_per_byte",
    "text_classes": "nats_per_sample",
    "images": "nats_per_image",
    "frames": "nats_per_sample",
}


def evaluate(
    spec: EvaluateSpec,
    registry: RegistrySpec,
    *,
    root: Path,
    backend: Backend,
    model: Path,
    data: Path,
    champion: Path,
    curves: Path,
    out: Path,
    scores: Path,
    fan_out: FanOut = map,
    progress: Progress = silent,
) -> Evaluation:
    """Score the test split; equal inputs give equal bytes in `out` and `scores`.

    Args:
        root: the project's root, where the registry's relative paths start.
        backend: the framework that computes both models.
        model: folder of the challenger.
        data: folder of the prepared data set.
        champion: file that names the champion; its model comes from the registry, verified.
        curves: the training curve, for the report.
        out: folder that is replaced by `evaluation.json`, `documents.parquet`, `slices.csv` and
            `report.html`.
        scores: file of the headline scores, for `dvc metrics`.
        fan_out: does the parts, here or on workers that see the same files.

    Raises:
        ValueError: an input is missing or damaged, a candidate does not fit the data, or a loss
            is not finite.
    """
    # Imported here, so that reading params.yaml loads no plotting library.
    from tasks.evaluate.report import write_report

    manifest = DataManifest.read(data / MANIFEST)
    version = Champion.read(champion).version
    points = read_curves(curves)
    work = Places(root).state / "evaluation"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        candidates = [
            model_candidate("challenger", model, data=manifest, backend=backend, batch=spec.batch)
        ]
        if version is not None:
            folder = _champion_folder(registry, root, version, Path(scratch) / "champion")
            candidates.append(
                model_candidate(
                    "champion", folder, data=manifest, backend=backend, batch=spec.batch
                )
            )
        progress(0, 1, "fitting the baseline")
        candidates.append(
            fit_baseline(
                spec.baseline,
                data=data,
                file=Path(scratch) / "baseline.safetensors",
                backend=backend,
                batch=spec.batch,
            )
        )
        table = measure(spec, candidates, data=data, fan_out=fan_out, progress=progress)
    unit = UNITS[manifest.kind]
    with replaced(out) as folder:
        table.write(folder / DOCUMENTS)
        (folder / SLICES).write_text(_slices_csv(table, unit), encoding="utf-8")
        write_report(
            folder / REPORT,
            table=table,
            unit=unit,
            curves=points,
            model=candidates[0].digest,
            data=manifest,
            champion=version,
            baseline=spec.baseline,
        )
        evaluation = Evaluation(
            model=candidates[0].digest,
            data=manifest.digest,
            champion=version,
            unit=unit,
            scores={name: table.score(name) / UNIT_NATS[unit] for name in table.loss},
            accuracy=table.accuracies(),
            slices=table.by_slice(),
            files=tuple(FileDigest.of(folder, file) for file in (DOCUMENTS, REPORT, SLICES)),
        )
        evaluation.write(folder / EVALUATION)
    headline: dict[str, object] = {unit: evaluation.scores, "documents": len(table.documents)}
    if evaluation.accuracy is not None:
        headline["accuracy"] = evaluation.accuracy
    write_atomically(scores, canonical_json(headline) + b"\n")
    return evaluation


def measure(
    spec: EvaluateSpec,
    candidates: Sequence[Candidate],
    *,
    data: Path,
    fan_out: FanOut,
    progress: Progress,
) -> ScoreTable:
    """Score every candidate on the chosen documents of the test split.

    Raises:
        ValueError: a loss is not finite; candidate and document are named.
    """
    opened = open_documents(data, "test")
    text = isinstance(opened, TextDocuments) and opened.labels is None
    rows = choose(opened.documents, most=spec.max_documents)
    documents = [opened.documents[row] for row in rows]
    weight = np.array([document.size_bytes if text else 1 for document in documents], np.float64)
    slices = pool_slices(
        tuple(document.slice for document in documents), weight, most=spec.max_slices
    )
    parts = [
        Part(candidate, data, name, tuple(row for row, own in zip(rows, slices) if own == name))
        for candidate in candidates
        for name in sorted(set(slices))
    ]
    place = {row: index for index, row in enumerate(rows)}
    loss = {candidate.name: np.full(len(rows), np.nan) for candidate in candidates}
    correct = {candidate.name: np.full(len(rows), np.nan) for candidate in candidates}
    for done, result in enumerate(fan_out(score_part, parts), start=1):
        name = result.part.candidate.name
        own = [place[row] for row in result.part.rows]
        loss[name][own] = result.loss
        if result.correct is not None:
            correct[name][own] = result.correct
        progress(done, len(parts), f"{name} on {result.part.slice}")
    open_scorer.cache_clear()
    for name, values in loss.items():
        if not np.isfinite(values).all():
            document = documents[int(np.argmin(np.isfinite(values)))]
            raise ValueError(
                f"the {name} has no finite loss on document {document.name}; such a model is "
                "never judged. Look at its training curve."
            )
    return ScoreTable(
        documents=tuple(document.id for document in documents),
        names=tuple(document.name for document in documents),
        slices=slices,
        weight=weight,
        loss=loss,
        correct=None if text else correct,
    )


def choose(documents: Sequence[Document], *, most: int | None) -> list[int]:
    """Places of the documents to measure, in stored order.

    A document is in or out by a hash of its own, so that more data replaces few of them. The hash
    is not the one that dealt documents to splits: those of the test split lie close together.
    """
    places = range(len(documents))
    chosen = sorted(
        places,
        key=lambda place: hashlib.sha256(f"evaluate {documents[place].id}".encode()).digest(),
    )
    return sorted(chosen[:most])


def _champion_folder(spec: RegistrySpec, root: Path, version: str, folder: Path) -> Path:
    from models.registry.registry import Registry

    return Registry.open(spec, root).materialize(version, folder)


def _slices_csv(table: ScoreTable, unit: Unit) -> str:
    """One row for each slice: documents, weight, score of each candidate in the unit."""
    names = list(table.loss)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slice", "documents", "weight", *names])
    for name, one in table.by_slice().items():
        shares = [one.loss[candidate] / one.weight / UNIT_NATS[unit] for candidate in names]
        writer.writerow([name, one.documents, one.weight, *shares])
    return text.getvalue()
