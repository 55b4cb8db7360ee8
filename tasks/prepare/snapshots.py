"""What a snapshot holds: raw documents or arrays, as `tasks.snapshot` wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.record import verify_files
from tasks.artifacts import SnapshotManifest

MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
VALUES = "values.npy"
LABELS = "labels.npy"
LENGTHS = "lengths.npy"
GIVEN_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class RawDocument:
    """A document as its source holds it: one line of `documents.jsonl`.

    Attributes:
        name: where it came from, for people.
        slice: the group that it is reported under.
        text: its characters; empty where the source has none.
        label: name of its class; None in a source without classes.
        part: which source of a mixture it came from; 0 outside of mixtures.
    """

    name: str
    slice: str
    text: str
    label: str | None = None
    part: int = 0


def verified_snapshot(folder: Path) -> SnapshotManifest:
    """The manifest of a snapshot, after every file was compared with it.

    Raises:
        ValueError: a file is missing or damaged; it is named.
    """
    manifest = SnapshotManifest.read(folder / MANIFEST)
    verify_files(folder, manifest.files)
    return manifest
