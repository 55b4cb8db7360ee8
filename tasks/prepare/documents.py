"""Prepared data as the evaluation reads it: document by document, with the raw bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.record import canonical_json
from tasks.artifacts import SplitName
from tasks.prepare.arrays import Stream, open_array, open_stream
from tasks.prepare.dataset import Images, Sequences, open_arrays, verified_manifest


@dataclass(frozen=True)
class Document:
    """One row of `SPLIT.documents.jsonl`.

    Attributes:
        id: SHA-256 of the content, 64 hex digits; the split was decided by it.
        name: where the document came from, for people.
        slice: the group that it is reported under.
        size_bytes: bytes of its text, or of its values.
        tokens: its tokens without the end mark; 0 for an image or a sequence.
    """

    id: str
    name: str
    slice: str
    size_bytes: int
    tokens: int

    @property
    def line(self) -> bytes:
        """The document as a line of JSON."""
        return canonical_json(vars(self)) + b"\n"


@dataclass(frozen=True)
class TextDocuments:
    """The texts of one split, in stored order.

    Attributes:
        documents: what is known of each.
        vocabulary: tokens in the tokenizer.
        end: token of the end mark; in the stream it follows every document.
        token_stream: all tokens of the split, mapped.
        text_stream: all bytes of the split, mapped.
        token_starts: place of each document's first token.
        text_starts: place of each document's first byte.
        labels: (documents,) int32; None without classes.
        classes: name of each class; none without classes.
    """

    documents: tuple[Document, ...]
    vocabulary: int
    end: int
    token_stream: Stream
    text_stream: NDArray[np.uint8]
    token_starts: NDArray[np.int64]
    text_starts: NDArray[np.int64]
    labels: NDArray[np.int32] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    def tokens(self, index: int) -> NDArray[np.int32]:
        """The tokens of one document, without the end mark, (tokens,)."""
        start = self.token_starts[index]
        return self.token_stream[start : start + self.documents[index].tokens].astype(np.int32)

    def text(self, index: int) -> bytes:
        """The bytes of one document, exactly as they came."""
        start = self.text_starts[index]
        return self.text_stream[start : start + self.documents[index].size_bytes].tobytes()


@dataclass(frozen=True)
class ArrayDocuments:
    """The images or sequences of one split, in stored order; document i is sample i.

    Attributes:
        documents: what is known of each; the slice is the class.
        samples: their values.
        labels: (documents,) int32.
        classes: name of each class.
    """

    documents: tuple[Document, ...]
    samples: Images | Sequences
    labels: NDArray[np.int32]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.documents)


def open_documents(folder: Path, split: SplitName) -> TextDocuments | ArrayDocuments:
    """Open one split document by document, memory-mapped, after verifying its files.

    Raises:
        ValueError: a file is missing or damaged.
    """
    manifest = verified_manifest(folder, split)
    with (folder / f"{split}.documents.jsonl").open("rb") as lines:
        documents = tuple(Document(**json.loads(line)) for line in lines)
    classes = manifest.classes or ()
    if manifest.kind in ("images", "frames"):
        samples = open_arrays(folder, split, manifest)
        return ArrayDocuments(documents, samples, samples.labels, classes)
    return TextDocuments(
        documents=documents,
        vocabulary=manifest.vocabulary or 0,
        end=manifest.end or 0,
        token_stream=open_stream(folder, f"{split}.tokens", [file.path for file in manifest.files]),
        text_stream=open_array(folder / f"{split}.text.npy"),
        token_starts=_starts([document.tokens + 1 for document in documents]),
        text_starts=_starts([document.size_bytes for document in documents]),
        labels=open_array(folder / f"{split}.labels.npy") if classes else None,
        classes=classes,
    )


def _starts(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
