"""The verb `prepare`: a snapshot becomes splits that training and evaluation read."""

from __future__ import annotations

from pathlib import Path

from models.record import FileDigest
from tasks.artifacts import DataManifest, LengthOrder
from tasks.folder import replaced, require_space
from tasks.prepare.classes import write_classes
from tasks.prepare.dataset import MANIFEST
from tasks.prepare.report import REPORT, write_report
from tasks.prepare.snapshots import verified_snapshot
from tasks.prepare.spec import DataSpec
from tasks.prepare.splits import Sorter
from tasks.prepare.text import write_text
from tasks.progress import Progress, silent


def prepare(
    spec: DataSpec, *, snapshot: Path, out: Path, progress: Progress = silent
) -> DataManifest:
    """Deal documents to splits, encode them, and write one data set with a report.

    Exact duplicates are dropped, a document's split is decided by the hash of its content, and
    the tokenizer sees the training split only. Equal input gives equal bytes.

    Args:
        spec: the `data` section.
        snapshot: folder that `tasks.snapshot.snapshot` wrote from `spec.source`.
        out: folder, replaced as a whole; see `tasks.prepare.dataset` and
            `tasks.prepare.documents` for reading it.
        progress: in bytes read, or in images or sequences.

    Raises:
        ValueError: the snapshot is damaged or of another kind, a split or class would be empty, or
            a document cannot be encoded.
    """
    taken = verified_snapshot(snapshot)
    task = spec.task
    if (taken.kind == "text") != (task.kind in ("language", "text_classes")):
        raise ValueError(
            f"data.source.kind={spec.source.kind} and the snapshot must fit; got a snapshot of "
            f"{taken.kind} ({taken.source}). Run the snapshot stage again."
        )
    sorter = Sorter(spec.split)
    weights = (
        [part.weight for part in spec.source.parts] if spec.source.kind == "mixture" else [1.0]
    )
    with replaced(out) as scratch:
        # Raw bytes and about half as many bytes of tokens.
        require_space(scratch, needed_bytes=2 * taken.size_bytes)
        if task.kind == "language" or task.kind == "text_classes":
            written = write_text(
                task,
                sorter,
                taken,
                weights=weights,
                snapshot=snapshot,
                out=scratch,
                progress=progress,
            )
        else:
            written = write_classes(
                task, sorter, taken, snapshot=snapshot, out=scratch, progress=progress
            )
        write_report(scratch, sorter, taken, written)
        manifest = DataManifest(
            kind="tokens" if task.kind == "language" else task.kind,
            source=taken.source,
            snapshot=taken.digest,
            # Not the page: another version of the plotting library makes no other data set.
            files=tuple(FileDigest.of(scratch, file) for file in (*written.files, REPORT)),
            splits=written.splits,
            vocabulary=written.vocabulary,
            shape=written.shape,
            classes=taken.classes,
            end=written.end,
            rows=written.rows,
            parts=written.parts,
            order=(
                LengthOrder(batches=spec.order.batches, lengths=spec.order.lengths)
                if spec.order.kind == "by_length"
                else None
            ),
        )
        manifest.write(scratch / MANIFEST)
    return manifest
