"""The nouns of the pipeline: frozen records that stages hand to one another as JSON files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.record import FileDigest, Record
from models.spec import Spec

SplitName = Literal["train", "validation", "test"]


class Split(Spec):
    """Counts of one split."""

    documents: int
    samples: int = Field(description="tokens for language, else documents, images or sequences")
    size_bytes: int = Field(description="bytes of raw text, or of raw values")


class SnapshotManifest(Record):
    """The source as it was read from outside: `artifacts/snapshot/manifest.json`.

    Text is in `documents.jsonl`: a line of `name`, `slice`, `text`, `label` and `part` for each
    document. Images and sequences are in `values.npy`, `labels.npy` and, if ragged, `lengths.npy`.
    Equal content gives equal bytes, on any machine.
    """

    kind: Literal["text", "arrays"]
    source: str = Field(description="where the data came from, for people")
    files: tuple[FileDigest, ...]
    documents: int
    size_bytes: int = Field(description="bytes of raw text, or of values")
    skipped: dict[str, int] = Field(description="reason -> files left out")
    columns: dict[str, str] = Field(description="what was read -> what it is")
    classes: tuple[str, ...] | None = Field(description="class names; None without classes")


class PackedRows(Spec):
    """Documents that were packed or padded into rows."""

    length: int = Field(description="tokens of a row")
    several: bool = Field(description="whether a row may hold several documents")
    waste: dict[SplitName, float] = Field(description="share of the places that no token fills")


class MixturePart(Spec):
    """One source of a mixture."""

    weight: float = Field(description="share of the samples, against the other parts'")
    samples: dict[SplitName, int] = Field(
        description="of each split: tokens of a stream, packed rows, or documents"
    )


class LengthOrder(Spec):
    """Batches of samples of about one length."""

    batches: int = Field(description="whose samples are sorted together")
    lengths: int = Field(description="that batches are cut to, at most")


class DataManifest(Record):
    """What `prepare` made: `artifacts/data/manifest.json`."""

    kind: Literal["tokens", "text_classes", "images", "frames"]
    source: str = Field(description="where the data came from, for people")
    snapshot: str = Field(description="digest of the snapshot that it was made from")
    files: tuple[FileDigest, ...]
    splits: dict[SplitName, Split]
    vocabulary: int | None = Field(description="tokens in the tokenizer; None without text")
    shape: tuple[int, ...] | None = Field(
        description="(height, width, channels) of an image, (longest, features) of sequences"
    )
    classes: tuple[str, ...] | None = Field(description="class names; None for tokens")
    end: int | None = Field(None, description="token of the end mark; None without text")
    rows: PackedRows | None = Field(None, description="documents in rows; None for a stream")
    parts: tuple[MixturePart, ...] | None = Field(None, description="None for a single source")
    order: LengthOrder | None = Field(None, description="None: samples come whatever their length")


class TrainingReport(Record):
    """What a finished training run measured: `artifacts/training.json`, a DVC metrics file."""

    backend: Literal["flax", "torch"]
    steps: int
    samples: int
    tokens: int = Field(description="positions trained on")
    parameters: int
    seconds: float = Field(description="time inside the loop, resumed parts added up")
    tokens_per_s: float
    train_loss: float = Field(description="mean over the last logged interval, nats")
    validation_loss: float = Field(description="nats per target")
    resumed_from_step: int | None


class Champion(Record):
    """The version that a challenger has to beat: `artifacts/champion.json`."""

    version: str | None = Field(description="registry digest; None before the first promotion")


class SliceScore(Spec):
    """Sums over the documents of one slice, for each candidate."""

    documents: int
    weight: float = Field(description="bytes of text, or samples of a class")
    loss: dict[str, float] = Field(description="candidate -> summed loss in nats")
    correct: dict[str, float] | None = Field(description="candidate -> right answers; classes only")


class Evaluation(Record):
    """What `evaluate` measured: `artifacts/evaluation/evaluation.json`.

    Candidates are `challenger`, `baseline` and, if there is one, `champion`. Scores of single
    documents are in `documents.parquet`: document, slice, weight, and `loss.CANDIDATE` columns.
    """

    model: str = Field(description="digest of the ModelManifest that was measured")
    data: str = Field(description="digest of the DataManifest")
    champion: str | None = Field(description="registry digest of the champion measured beside it")
    unit: Literal["bits_per_byte", "nats_per_image", "nats_per_sample"]
    scores: dict[str, float] = Field(description="candidate -> loss in the unit; lower is better")
    accuracy: dict[str, float] | None = Field(description="candidate -> share right; classes only")
    slices: dict[str, SliceScore]
    files: tuple[FileDigest, ...]


class Comparison(Spec):
    """Challenger against one opponent: differences below zero favour the challenger."""

    opponent: Literal["baseline", "champion"]
    difference: float
    low: float = Field(description="lower end of the interval")
    high: float = Field(description="upper end of the interval")
    smallest_detectable: float = Field(description="smallest effect this test set could show")
    documents: int


class Verdict(Record):
    """What the gate decided: `artifacts/verdict.json`."""

    outcome: Literal["PROMOTE", "REJECT", "INCONCLUSIVE"]
    reasons: tuple[str, ...]
    model: str = Field(description="digest of the ModelManifest judged")
    evaluation: str = Field(description="digest of the Evaluation judged")
    champion: str | None
    unit: str
    confidence: float
    comparisons: tuple[Comparison, ...]


class RolloutStep(Spec):
    """One step of a rollout, as it was judged."""

    share: float = Field(description="traffic share of the new version while it was judged")
    requests: int = Field(description="its answers in that step")
    errors: int
    median_s: float | None = Field(description="its median latency")
    champion_median_s: float | None = Field(description="of the version that it replaces")
    seconds: float = Field(description="how long the step took")
    decision: str = Field(description="what was done then, and why")


class Rollout(Record):
    """How a version got the traffic, or why it did not: what `rollout` hands back."""

    version: str = Field(description="registry digest")
    outcome: Literal["RELEASED", "RETURNED"]
    reason: str
    replaced: str | None = Field(description="digest of the version that had the traffic before")
    serving: str | None = Field(description="digest of the version that has the traffic now")
    endpoint: str = Field(description="URL of the server")
    steps: tuple[RolloutStep, ...]
