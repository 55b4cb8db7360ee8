"""Reads the outside world once: what follows is stale only when the content changed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from models.record import FileDigest, canonical_json
from tasks.artifacts import SnapshotManifest
from tasks.folder import replaced, require_space
from tasks.prepare.array_sources import ArraySource, write_arrays
from tasks.prepare.snapshots import DOCUMENTS, GIVEN_TOKENIZER, MANIFEST
from tasks.prepare.sources import find_text
from tasks.prepare.spec import Digits, ImageFolder, Mixture, NumpyFiles, Source, Task, TextSource
from tasks.progress import Progress, silent


def snapshot(
    source: Source,
    *,
    task: Task | None = None,
    out: Path,
    root: Path = Path(),
    progress: Progress = silent,
) -> SnapshotManifest:
    """Copy a source into `out` as few large files, byte-identical for identical content.

    Nothing in the data is executed: text, JSON, CSV, Parquet, Arrow, NumPy arrays of numbers, PNG
    and JPEG are read as such.

    Args:
        source: the `data.source` section.
        task: the `data.task` section; a tokenizer that it gives is copied too.
        out: folder, replaced as a whole.
        root: where a relative path starts.
        progress: in bytes of text, or in images.

    Raises:
        ValueError: the source is missing, empty or malformed, or does not fit on the disk.
    """
    with replaced(out) as scratch:
        if isinstance(source, Digits | ImageFolder | NumpyFiles):
            manifest = _arrays(source, scratch, root=root, progress=progress)
        else:
            manifest = _text(source, scratch, root=root, progress=progress)
        if task is not None and task.kind in ("language", "text_classes"):
            if task.tokenizer.kind == "given":
                copied = _copy_tokenizer(root, task.tokenizer.path, scratch)
                manifest = manifest.model_copy(update={"files": (*manifest.files, copied)})
        manifest.write(scratch / MANIFEST)
    return manifest


def _arrays(
    source: ArraySource, folder: Path, *, root: Path, progress: Progress
) -> SnapshotManifest:
    taken = write_arrays(source, folder, root=root, progress=progress)
    progress(1, 1)
    return SnapshotManifest(
        kind="arrays",
        source=taken.title,
        files=tuple(FileDigest.of(folder, file) for file in taken.files),
        documents=taken.samples,
        size_bytes=taken.size_bytes,
        skipped=taken.skipped,
        columns=taken.columns,
        classes=taken.classes,
    )


def _text(
    source: TextSource | Mixture, folder: Path, *, root: Path, progress: Progress
) -> SnapshotManifest:
    parts = [part.source for part in source.parts] if isinstance(source, Mixture) else [source]
    found = [find_text(part, root=root) for part in parts]
    title = "; ".join(part.title for part in found)
    total = sum(part.size_bytes for part in found)
    require_space(folder, needed_bytes=total)
    documents = size_bytes = 0
    labels: set[str] = set()
    with (folder / DOCUMENTS).open("wb") as lines:
        for number, part in enumerate(found):
            for raw in (raw for file in part.files for raw in part.read(file)):
                document = dataclasses.replace(raw, part=number)
                try:
                    lines.write(canonical_json(vars(document)) + b"\n")
                except UnicodeEncodeError as error:
                    raise ValueError(
                        f"{document.name} holds text that UTF-8 cannot write: {error.reason} at "
                        f"character {error.start}. Remove the row, or repair its text."
                    ) from None
                documents += 1
                size_bytes += len(document.text.encode())
                if document.label is not None:
                    labels.add(document.label)
                progress(min(size_bytes, total), total, f"{documents} documents")
    skipped: dict[str, int] = {}
    for part in found:
        for why, count in part.skipped.items():
            skipped[why] = skipped.get(why, 0) + count
    if not size_bytes:
        told = "; ".join(f"{count} files {why}" for why, count in skipped.items())
        raise ValueError(
            f"data.source must hold text; got {documents} documents without a byte of it from "
            f"{title}{f' ({told})' if told else ''}. Point data.source.path at text in UTF-8."
        )
    if len(labels) == 1:
        raise ValueError(
            f"data.source.label must name at least two classes; every document of {title} is of "
            f"class {labels.pop()}. Name another field, or take data.task.kind=language."
        )
    return SnapshotManifest(
        kind="text",
        source=title,
        files=(FileDigest.of(folder, DOCUMENTS),),
        documents=documents,
        size_bytes=size_bytes,
        skipped=dict(sorted(skipped.items())),
        columns={name: what for part in found for name, what in part.columns.items()},
        classes=tuple(sorted(labels)) or None,
    )


def _copy_tokenizer(root: Path, path: str, folder: Path) -> FileDigest:
    if not (root / path).is_file():
        raise ValueError(
            f"data.task.tokenizer.path must name a tokenizer.json; got {path}, which is no file "
            f"in {root.resolve()}."
        )
    shutil.copyfile(root / path, folder / GIVEN_TOKENIZER)
    return FileDigest.of(folder, GIVEN_TOKENIZER)
