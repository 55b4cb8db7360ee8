"""Images and sequences to arrays: values, labels and a row for each, dealt to splits by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts import SnapshotManifest, Split, SplitName
from tasks.prepare.arrays import ArrayWriter, open_array
from tasks.prepare.documents import Document
from tasks.prepare.snapshots import LABELS, LENGTHS, VALUES
from tasks.prepare.spec import FrameClasses, ImageClasses
from tasks.prepare.splits import SPLITS, Sorter, WrittenData
from tasks.progress import Progress


def write_classes(
    task: ImageClasses | FrameClasses,
    sorter: Sorter,
    taken: SnapshotManifest,
    *,
    snapshot: Path,
    out: Path,
    progress: Progress,
) -> WrittenData:
    """Deal images or sequences to splits by the hash of their values and write each split.

    Args:
        task: the `data.task` section.
        sorter: fresh.
        taken: the snapshot's manifest, verified.
        snapshot: its folder.
        out: an empty folder.
        progress: in images or sequences, read twice.

    Raises:
        ValueError: a split or class would be empty, or the values are of another shape or range.
    """
    samples = _Samples(task, snapshot, progress)
    classes = taken.classes or ()
    deal = [
        sorter.deal(value.tobytes(), name=f"row {row}", label=classes[samples.labels[row]])
        for row, value in samples.read()
    ]
    sorter.require_all_splits(classes=classes)
    files: list[str] = []
    with ExitStack() as stack:
        writers = {split: _SplitWriter(stack, out, split, samples) for split in SPLITS}
        for (row, value), split in zip(samples.read(), deal, strict=True):
            if split is not None:
                writers[split].add(value, row, classes)
        for split in SPLITS:
            files += writers[split].files
    if task.kind == "frames":
        for split in SPLITS:
            starts = np.cumsum([0, *writers[split].lengths], dtype="<i8")
            np.save(out / f"{split}.starts.npy", starts, allow_pickle=False)
            files.append(f"{split}.starts.npy")
    return WrittenData(
        splits={split: writers[split].counts for split in SPLITS},
        files=tuple(files),
        shape=samples.shape,
    )


class _Samples:
    """The arrays of a snapshot, one image or sequence at a time."""

    def __init__(
        self, task: ImageClasses | FrameClasses, snapshot: Path, progress: Progress
    ) -> None:
        values = open_array(snapshot / VALUES)
        ragged = (snapshot / LENGTHS).is_file()
        self.labels = open_array(snapshot / LABELS)
        self.name = "pixels" if task.kind == "images" else "frames"
        if task.kind == "images" and ragged:
            raise ValueError(
                "data.task.kind=images takes images of one size; data.source has lengths.npy. "
                "Remove it, or take data.task.kind=frames."
            )
        if task.kind == "images":
            values = values[..., None] if values.ndim == 3 else values
        else:
            # The rows of an image, one after the other.
            values = values.reshape(*values.shape[:2], -1)
        self.values: NDArray[Any] = values
        self._lengths = (
            open_array(snapshot / LENGTHS) if ragged else np.full(len(values), values.shape[1])
        )
        self._progress = progress
        self._done = 0
        self._pixels = task.kind == "images"
        longest = values.shape[1] if self._pixels else int(self._lengths.max())
        self.shape: tuple[int, ...] = (longest, *values.shape[2:])

    def read(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Row and values of each; what a ragged sequence is padded with is left out."""
        for row, length in enumerate(self._lengths.tolist()):
            value = np.ascontiguousarray(self.values[row, :length])
            if (
                self._pixels
                and value.dtype.kind == "f"
                and not 0 <= value.min() <= value.max() <= 1
            ):
                raise ValueError(
                    f"pixels must be uint8, or lie in 0..1; row {row} has {value.min()} to "
                    f"{value.max()}. Scale x.npy."
                )
            yield row, value
            self._done += 1
            self._progress(self._done, 2 * len(self.values), f"{row + 1} {self.name} read")


class _SplitWriter:
    """The open files of one split."""

    def __init__(self, stack: ExitStack, folder: Path, split: SplitName, samples: _Samples) -> None:
        name, shape = samples.name, samples.values.shape
        self.files = (f"{split}.{name}.npy", f"{split}.labels.npy", f"{split}.documents.jsonl")
        row = shape[1:] if name == "pixels" else shape[2:]
        values, labels, documents = (folder / file for file in self.files)
        self._values = stack.enter_context(ArrayWriter(values, samples.values.dtype, row=row))
        self._labels = stack.enter_context(ArrayWriter(labels, np.int32))
        self._lines = stack.enter_context(documents.open("wb"))
        self._whole, self._samples = name == "pixels", samples
        self._size_bytes = 0
        self.lengths: list[int] = []

    def add(self, value: NDArray[Any], row: int, classes: tuple[str, ...]) -> None:
        label = self._samples.labels[row]
        self._values.append(value[None] if self._whole else value)
        self._labels.append(np.array([label]))
        document = Document(
            id=hashlib.sha256(value.tobytes()).hexdigest(),
            name=f"row {row}",
            slice=classes[label],
            size_bytes=value.nbytes,
            tokens=0,
        )
        self._lines.write(document.line)
        self.lengths.append(len(value))
        self._size_bytes += value.nbytes

    @property
    def counts(self) -> Split:
        """What the split holds."""
        count = len(self.lengths)
        return Split(documents=count, samples=count, size_bytes=self._size_bytes)
