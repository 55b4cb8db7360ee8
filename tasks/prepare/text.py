"""Text to tokens: one stream for each split, with the raw bytes beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.store import TOKENIZER
from tasks.artifacts import MixturePart, PackedRows, SnapshotManifest, Split, SplitName
from tasks.prepare.arrays import SHARD_BYTES, ArrayWriter, StreamWriter
from tasks.prepare.documents import Document
from tasks.prepare.packing import RowIndex, joined, rows_of
from tasks.prepare.snapshots import DOCUMENTS, GIVEN_TOKENIZER, RawDocument
from tasks.prepare.spec import Language, Packed, Padded, TextClasses, TokenizerSpec
from tasks.prepare.splits import SPLITS, Sorter, WrittenData
from tasks.prepare.tokenizer import END_MARK, adopt_tokenizer, train_tokenizer
from tasks.progress import Progress

# Characters encoded at once: an encoding costs many times the memory of its text.
CHUNK = 1 << 20


def write_text(
    task: Language | TextClasses,
    sorter: Sorter,
    taken: SnapshotManifest,
    *,
    weights: Sequence[float],
    snapshot: Path,
    out: Path,
    progress: Progress,
    shard_bytes: int = SHARD_BYTES,
) -> WrittenData:
    """Deal documents to splits, learn or take the tokenizer, write token streams.

    The documents are read three times, so memory holds a hash and a length of each and no text.

    Args:
        task: the `data.task` section.
        sorter: fresh.
        taken: the snapshot's manifest, verified.
        weights: of the parts of a mixture; one for a single source.
        snapshot: the snapshot's folder.
        out: an empty folder.
        progress: in bytes read.
        shard_bytes: a stream of more tokens than fit goes on in another file.

    Raises:
        ValueError: a split or class would be empty, the given tokenizer cannot be used, or it does
            not give a document back.
    """
    passes = _Passes(snapshot / DOCUMENTS, progress)
    deal = [
        sorter.deal(
            document.text.encode(),
            name=document.name,
            label=document.label,
            folded="".join(document.text.split()).casefold().encode(),
        )
        for document in passes.documents("documents checked")
    ]
    classes = taken.classes or ()
    sorter.require_all_splits(classes=classes)
    dealt = zip(passes.documents("documents read for the tokenizer"), deal, strict=True)
    learned = (document.text for document, split in dealt if split == "train")
    tokenizer = _tokenizer(task.tokenizer, learned, snapshot)
    tokenizer.save(str(out / TOKENIZER))
    cutter = _Cutter(
        tokenizer,
        end=tokenizer.get_vocab()[END_MARK],
        whole=task.kind == "language" and task.tokenizer.kind == "given",
    )
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(_split_writer(out, split, cutter, classes, shard_bytes))
            for split in SPLITS
        }
        dealt = zip(passes.documents("documents encoded"), deal, strict=True)
        for document, split in dealt:
            if split is not None:
                writers[split].add(document)
    files = [TOKENIZER, *(file for split in SPLITS for file in writers[split].files)]
    sizes = {split: writers[split].sizes(len(weights)) for split in SPLITS}
    rows: PackedRows | None = None
    if task.kind == "text_classes":
        counts = {split: [len(part) for part in sizes[split]] for split in SPLITS}
        files += _write_starts(out, sizes)
    elif task.packing.kind == "windows":
        counts = {split: [int(part.sum()) for part in sizes[split]] for split in SPLITS}
    else:
        counts, rows = _write_rows(out, sizes, task.packing)
        files += [f"{split}.{name}.npy" for split in SPLITS for name in ("pieces", "rows")]
    return WrittenData(
        splits={split: writers[split].counts(task.kind) for split in SPLITS},
        files=tuple(files),
        vocabulary=max(tokenizer.get_vocab().values()) + 1,
        end=cutter.end,
        rows=rows,
        parts=None if len(weights) == 1 else _parts(weights, counts),
    )


def _tokenizer(spec: TokenizerSpec, learned: Iterator[str], snapshot: Path) -> Tokenizer:
    if spec.kind == "byte_bpe":
        return train_tokenizer(spec, learned)
    if not (snapshot / GIVEN_TOKENIZER).is_file():
        raise ValueError(
            f"data.task.tokenizer.path={spec.path} is not in the snapshot. Run the snapshot stage "
            "again."
        )
    for _ in learned:
        pass
    return adopt_tokenizer(spec, snapshot / GIVEN_TOKENIZER)


def _parts(weights: Sequence[float], counts: dict[SplitName, list[int]]) -> tuple[MixturePart, ...]:
    return tuple(
        MixturePart(weight=weight, samples={split: counts[split][number] for split in SPLITS})
        for number, weight in enumerate(weights)
    )


def _write_starts(out: Path, sizes: dict[SplitName, list[NDArray[np.int64]]]) -> Iterator[str]:
    for split in SPLITS:
        starts = np.cumsum(np.concatenate([[0], *sizes[split]]), dtype="<i8")
        np.save(out / f"{split}.starts.npy", starts, allow_pickle=False)
        yield f"{split}.starts.npy"


def _write_rows(
    out: Path, sizes: dict[SplitName, list[NDArray[np.int64]]], packing: Packed | Padded
) -> tuple[dict[SplitName, list[int]], PackedRows]:
    """The row index of each split; rows hold documents of one part."""
    counts: dict[SplitName, list[int]] = {}
    waste: dict[SplitName, float] = {}
    several = packing.kind == "packed"
    for split in SPLITS:
        parts: list[RowIndex] = []
        start = 0
        for own in sizes[split]:
            parts.append(rows_of(own, start=start, length=packing.length, several=several))
            start += int(own.sum())
        index = joined(parts)
        np.save(out / f"{split}.pieces.npy", index.pieces.astype("<i8"), allow_pickle=False)
        np.save(out / f"{split}.rows.npy", index.rows.astype("<i8"), allow_pickle=False)
        counts[split] = [len(part) for part in parts]
        waste[split] = index.waste(packing.length)
    return counts, PackedRows(length=packing.length, several=several, waste=waste)


class _Passes:
    """The documents of a snapshot, read three times with one progress."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._total = 3 * path.stat().st_size
        self._done = 0
        self._progress = progress

    def documents(self, what: str) -> Iterator[RawDocument]:
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield RawDocument(**json.loads(line))
                self._done += len(line)
                self._progress(self._done, self._total, f"{number} {what}")


@dataclass(frozen=True)
class _Cutter:
    """A tokenizer, and what is asked of it.

    Attributes:
        end: token of the end mark.
        whole: hold every document against what its tokens give back.
    """

    tokenizer: Tokenizer
    end: int
    whole: bool

    def cut(self, documents: Sequence[RawDocument]) -> Iterator[NDArray[np.int64]]:
        """The tokens of each document, the end mark last.

        Raises:
            ValueError: a document becomes no tokens, holds the end mark's, or is not given back.
        """
        texts = [document.text for document in documents]
        for document, encoding in zip(
            documents, self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ):
            ids = encoding.ids
            if not ids or self.end in ids:
                what = "the token of the end mark" if ids else "no token"
                raise ValueError(
                    f"data.task.tokenizer makes {what} of {document.name}, so its end could not "
                    "be found. Remove the document, or take another tokenizer."
                )
            if self.whole:
                given = self.tokenizer.decode(ids, skip_special_tokens=False)
                if given != document.text:
                    raise ValueError(
                        f"data.task.tokenizer does not give back {document.name} as it was, so "
                        "bits per byte would mean nothing. Take a byte-level tokenizer."
                    )
            yield np.array([*ids, self.end])


@dataclass
class _SplitWriter:
    """The open files of one split; documents are encoded in chunks."""

    split: SplitName
    cutter: _Cutter
    tokens: StreamWriter
    text: ArrayWriter
    lines: BinaryIO
    labels: ArrayWriter | None
    classes: tuple[str, ...]
    chunk: list[RawDocument] = field(default_factory=list)
    chunk_size: int = 0
    lengths: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)

    def add(self, document: RawDocument) -> None:
        self.chunk.append(document)
        self.chunk_size += len(document.text)
        if self.chunk_size >= CHUNK:
            self.flush()

    def flush(self) -> None:
        for document, tokens in zip(self.chunk, self.cutter.cut(self.chunk), strict=True):
            content = document.text.encode()
            self.tokens.append(tokens)
            self.text.append(np.frombuffer(content, np.uint8))
            if self.labels is not None and document.label is not None:
                self.labels.append(np.array([self.classes.index(document.label)]))
            row = Document(
                id=hashlib.sha256(content).hexdigest(),
                name=document.name,
                slice=document.slice if document.label is None else document.label,
                size_bytes=len(content),
                tokens=len(tokens) - 1,
            )
            self.lines.write(row.line)
            self.lengths.append(len(tokens))
            self.parts.append(document.part)
        self.chunk, self.chunk_size = [], 0

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files written."""
        labels = () if self.labels is None else (f"{self.split}.labels.npy",)
        named = (f"{self.split}.text.npy", f"{self.split}.documents.jsonl")
        return (*self.tokens.files, *named, *labels)

    def sizes(self, parts: int) -> list[NDArray[np.int64]]:
        """Tokens of each document with its end mark, part by part."""
        lengths, owners = np.array(self.lengths, np.int64), np.array(self.parts, np.int64)
        return [lengths[owners == part] for part in range(parts)]

    def counts(self, kind: str) -> Split:
        """What the split holds."""
        samples = self.tokens.rows if kind == "language" else len(self.lengths)
        return Split(documents=len(self.lengths), samples=samples, size_bytes=self.text.rows)


@contextmanager
def _split_writer(
    folder: Path, split: SplitName, cutter: _Cutter, classes: tuple[str, ...], shard_bytes: int
) -> Iterator[_SplitWriter]:
    highest = max(cutter.tokenizer.get_vocab().values())
    dtype = np.uint16 if highest < 2**16 else np.uint32
    with ExitStack() as stack:
        name = f"{split}.tokens"
        tokens = stack.enter_context(StreamWriter(folder, name, dtype, shard_bytes=shard_bytes))
        text = stack.enter_context(ArrayWriter(folder / f"{split}.text.npy", np.uint8))
        lines = stack.enter_context((folder / f"{split}.documents.jsonl").open("wb"))
        labels = (
            stack.enter_context(ArrayWriter(folder / f"{split}.labels.npy", np.int32))
            if classes
            else None
        )
        writer = _SplitWriter(split, cutter, tokens, text, lines, labels, classes)
        yield writer
        writer.flush()
