"""Prepared data as training, evaluation and tests read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from models.inputs import IGNORED
from models.record import verify_files
from tasks.artifacts import DataManifest, SplitName
from tasks.prepare.arrays import Stream, open_array, open_stream
from tasks.prepare.batch import Batch
from tasks.prepare.by_length import ByLength
from tasks.prepare.order import Share
from tasks.prepare.packing import RowIndex

MANIFEST = "manifest.json"


class Samples(Protocol):
    """One split, addressed by sample."""

    def __len__(self) -> int:
        """Number of samples: windows, rows, documents, images or sequences."""

    @property
    def shares(self) -> tuple[Share, ...]:
        """The sources that the samples come from; one of them outside of mixtures."""

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The samples at these indices, in this order."""

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Places of these samples that count, as in `Batch.lengths`; None: all of each."""


@dataclass(frozen=True)
class Windows:
    """Windows of a token stream: sample i is `tokens[i * T : i * T + T + 1]`.

    In a mixture no window holds tokens of two sources.

    Attributes:
        tokens: the split's documents one after the other, each followed by the end mark.
        context: T, in tokens.
        sizes: tokens of each source, in the stream's order; none for a single source.
        weights: of each source.
    """

    tokens: Stream
    context: int
    sizes: tuple[int, ...] = ()
    weights: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def shares(self) -> tuple[Share, ...]:
        """Windows of each source."""
        return _shares(self._counts, self.weights)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Inputs are the first T tokens of each window, targets the last T."""
        _check_indices(indices, len(self))
        ends = np.cumsum(self._counts)
        source = np.searchsorted(ends, indices, side="right")
        sizes = np.array(self.sizes or (len(self.tokens),))
        starts = (np.cumsum(sizes) - sizes)[source]
        starts = starts + (indices - (ends - self._counts)[source]) * self.context
        windows = self.tokens[starts[:, None] + np.arange(self.context + 1)].astype(np.int32)
        return Batch(windows[:, :-1], windows[:, 1:], indices)

    def lengths(self, indices: NDArray[np.int64]) -> None:
        """Windows are full."""

    @property
    def _counts(self) -> tuple[int, ...]:
        sizes = self.sizes or (len(self.tokens),)
        return tuple(max(0, size - 1) // self.context for size in sizes)


@dataclass(frozen=True)
class Rows:
    """Documents in rows of T tokens, packed or padded.

    Every piece of a document is read behind the end mark of the one before it, so that a model
    whose `inputs.separator` is the end mark sees each document alone. A piece that goes on with a
    document sees the token before it where it leads its row; otherwise its first target is not
    scored.

    Attributes:
        tokens: the split's documents one after the other, each followed by the end mark.
        index: what each row holds.
        length: T, in tokens.
        end: token of the end mark.
        counts: rows of each source, in the index's order; none for a single source.
        weights: of each source.
    """

    tokens: Stream
    index: RowIndex
    length: int
    end: int
    counts: tuple[int, ...] = ()
    weights: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shares(self) -> tuple[Share, ...]:
        """Rows of each source."""
        return _shares(self.counts or (len(self),), self.weights)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Rows filled from the left; padded inputs are end marks, padded targets `IGNORED`."""
        _check_indices(indices, len(self))
        inputs = np.full((len(indices), self.length), self.end, np.int32)
        targets = np.full((len(indices), self.length), IGNORED, np.int32)
        lengths = np.zeros(len(indices), np.int64)
        for row, index in enumerate(indices):
            first, last = self.index.rows[index : index + 2]
            place = 0
            for start, count, begins in self.index.pieces[first:last].tolist():
                tokens = self.tokens[start : start + count]
                inputs[row, place + 1 : place + count] = tokens[:-1]
                targets[row, place : place + count] = tokens
                if not begins and place == 0:
                    inputs[row, 0] = self.tokens[start - 1]
                elif not begins:
                    targets[row, place] = IGNORED
                place += count
            lengths[row] = place
        return Batch(inputs, targets, indices, lengths)

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of these rows that hold tokens."""
        _check_indices(indices, len(self))
        return self.index.filled(indices)

    def cut_to(self, length: int) -> Self:
        """The same rows with another T."""
        return replace(self, length=length)


@dataclass(frozen=True)
class Texts:
    """Documents and their classes; of each the first T tokens are read.

    Attributes:
        tokens: the split's documents one after the other, each followed by the end mark.
        starts: place of each document's first token and, last, of all tokens, (documents + 1,).
        labels: (documents,) int32.
        context: T, in tokens.
        end: token of the end mark, which pads.
        counts: documents of each source, in order; none for a single source.
        weights: of each source.
    """

    tokens: Stream
    starts: NDArray[np.int64]
    labels: NDArray[np.int32]
    context: int
    end: int
    counts: tuple[int, ...] = ()
    weights: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shares(self) -> tuple[Share, ...]:
        """Documents of each source."""
        return _shares(self.counts or (len(self),), self.weights)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Tokens padded behind with end marks, and classes."""
        _check_indices(indices, len(self))
        inputs = np.full((len(indices), self.context), self.end, np.int32)
        lengths = self.lengths(indices)
        for row, (start, length) in enumerate(zip(self.starts[indices], lengths, strict=True)):
            inputs[row, :length] = self.tokens[start : start + length]
        return Batch(inputs, self.labels[indices].astype(np.int32), indices, lengths)

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of these documents that are read."""
        # The end mark behind a document says nothing about its class.
        whole = self.starts[indices + 1] - self.starts[indices] - 1
        return whole.clip(max=self.context).astype(np.int64)

    def cut_to(self, length: int) -> Self:
        """The same documents with another T."""
        return replace(self, context=length)


@dataclass(frozen=True)
class Images:
    """Images and their classes.

    Attributes:
        pixels: (images, height, width, channels), float32 in 0..1 or uint8 in 0..255.
        labels: (images,) int32.
    """

    pixels: NDArray[Any]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shares(self) -> tuple[Share, ...]:
        """One source."""
        return _shares((len(self),), (1.0,))

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Images and classes; bytes are divided by 255."""
        _check_indices(indices, len(self))
        return Batch(_floats(self.pixels[indices]), self.labels[indices].astype(np.int32), indices)

    def lengths(self, indices: NDArray[np.int64]) -> None:
        """Images are of one size."""


@dataclass(frozen=True)
class Sequences:
    """Sequences of frames and their classes.

    Attributes:
        frames: all sequences one after the other, (frames, features), float32, or uint8 in 0..255.
        starts: number of each sequence's first frame and, last, of all frames, (sequences + 1,).
        labels: (sequences,) int32.
        longest: frames that every batch is padded to.
    """

    frames: NDArray[Any]
    starts: NDArray[np.int64]
    labels: NDArray[np.int32]
    longest: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shares(self) -> tuple[Share, ...]:
        """One source."""
        return _shares((len(self),), (1.0,))

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Frames padded behind with zeros, and classes; bytes are divided by 255."""
        _check_indices(indices, len(self))
        inputs = np.zeros((len(indices), self.longest, self.frames.shape[1]), np.float32)
        lengths = self.lengths(indices)
        for row, (start, length) in enumerate(zip(self.starts[indices], lengths, strict=True)):
            inputs[row, :length] = _floats(self.frames[start : start + length])
        return Batch(inputs, self.labels[indices].astype(np.int32), indices, lengths)

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frames of these sequences."""
        return (self.starts[indices + 1] - self.starts[indices]).astype(np.int64)

    def cut_to(self, length: int) -> Self:
        """The same sequences, padded to another length."""
        return replace(self, longest=length)


def open_split(folder: Path, split: SplitName, *, context: int | None) -> Samples:
    """Open one split for training or validation, memory-mapped.

    The training split comes in batches of about one length if `data.order` asks for them.

    The SHA-256 of every file of the split is compared with the manifest before anything is read.

    Args:
        folder: what `prepare` wrote.
        split: which documents.
        context: T, in tokens, for text; None for images and frames.

    Raises:
        ValueError: a file is missing or damaged, the data is of the other kind, or the split or a
            part of a mixture is too short for one sample.
    """
    manifest = verified_manifest(folder, split)
    if (context is not None) != (manifest.kind in ("tokens", "text_classes")):
        if context is None:
            raise ValueError(
                f"{folder} holds tokens and needs a context; fit model.inputs.kind to data.task."
            )
        raise ValueError(
            f"{folder} holds {manifest.kind}, which have no context; got context={context}. "
            "Fit model.inputs.kind to data.task."
        )
    samples = _open(folder, split, manifest, context)
    for number, share in enumerate(samples.shares):
        # The others are read in stored order.
        if not share.count and (split == "train" or not len(samples)):
            _refuse_short(samples, split, number)
    if split == "train" and manifest.order is not None:
        if not isinstance(samples, Rows | Texts | Sequences):
            raise ValueError(
                f"{folder} has an order by length and samples that are all full; run the stage "
                "prepare again."
            )
        return ByLength.of(samples, manifest.order)
    return samples


def verified_manifest(folder: Path, split: SplitName) -> DataManifest:
    """The manifest of a prepared data set, after the files of one split were compared with it.

    Raises:
        ValueError: the manifest or one of the files is missing or damaged; it is named.
    """
    manifest = DataManifest.read(folder / MANIFEST)
    files = tuple(file for file in manifest.files if file.path.startswith(f"{split}."))
    verify_files(folder, files)
    return manifest


def open_arrays(folder: Path, split: SplitName, manifest: DataManifest) -> Images | Sequences:
    """Images or sequences of a split whose files were verified before.

    Raises:
        ValueError: a file is not an array of plain numbers.
    """
    labels = open_array(folder / f"{split}.labels.npy")
    if manifest.kind == "images":
        return Images(open_array(folder / f"{split}.pixels.npy"), labels)
    frames, starts = (open_array(folder / f"{split}.{name}.npy") for name in ("frames", "starts"))
    longest, _ = manifest.shape or (0, 0)
    return Sequences(frames, starts, labels, longest)


def _open(folder: Path, split: SplitName, manifest: DataManifest, context: int | None) -> Samples:
    if context is None:
        return open_arrays(folder, split, manifest)

    def array(name: str) -> NDArray[Any]:
        return open_array(folder / f"{split}.{name}.npy")

    tokens = open_stream(folder, f"{split}.tokens", [file.path for file in manifest.files])
    parts = manifest.parts or ()
    sizes = tuple(part.samples[split] for part in parts)
    weights = tuple(part.weight for part in parts) or (1.0,)
    end = manifest.end or 0
    if manifest.kind == "text_classes":
        return Texts(tokens, array("starts"), array("labels"), context, end, sizes, weights)
    if manifest.rows is not None:
        index = RowIndex(array("pieces"), array("rows"))
        return Rows(tokens, index, manifest.rows.length, end, sizes, weights)
    return Windows(tokens, context, sizes, weights)


def _refuse_short(samples: Samples, split: SplitName, number: int) -> None:
    if not isinstance(samples, Windows):
        raise ValueError(
            f"data.source.parts[{number}] must give the {split} split a document; it gives none. "
            "Give the part more documents."
        )
    tokens = samples.sizes[number] if samples.sizes else len(samples.tokens)
    part = f" of data.source.parts[{number}]" if samples.sizes else ""
    raise ValueError(
        f"the {split} split{part} must hold at least model.inputs.context + 1 tokens; "
        f"got {tokens} tokens, context={samples.context}. Give data.source more text, change "
        f"data.split, or try model.inputs.context={tokens - 1}."
    )


def _shares(counts: tuple[int, ...], weights: tuple[float, ...]) -> tuple[Share, ...]:
    firsts = np.cumsum([0, *counts]).tolist()
    return tuple(
        Share(first, count, weight)
        for first, count, weight in zip(firsts, counts, weights, strict=False)
    )


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    floats = values.astype(np.float32)
    return floats / np.float32(255) if values.dtype == np.uint8 else floats


def _check_indices(indices: NDArray[np.int64], count: int) -> None:
    if indices.size and not 0 <= indices.min() <= indices.max() < count:
        raise IndexError(
            f"sample indices must be 0 to {count - 1}; got {indices.min()} to {indices.max()}."
        )
