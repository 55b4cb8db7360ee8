"""Every key of the `data` section changes what it says it changes."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from models.spec import Spec
from tasks.artifacts import DataManifest
from tasks.prepare import prepare
from tasks.prepare.dataset import open_split
from tasks.prepare.draw import draw
from tasks.prepare.sources import find_text
from tasks.prepare.spec import (
    ByteBpe,
    DataSpec,
    Digits,
    FrameClasses,
    GivenTokenizer,
    HuggingFaceDisk,
    ImageClasses,
    ImageFolder,
    Language,
    Mixture,
    NumpyFiles,
    Packed,
    Padded,
    Part,
    RowFiles,
    SortedByLength,
    SplitShares,
    StandardLibrary,
    TextClasses,
    TextFiles,
)
from tasks.prepare.splits import split_of
from tasks.prepare.tokenizer import open_tokenizer
from tasks.snapshot import snapshot
from tests.knobs.witness import Witness, turn, unproven

Pair = Witness[DataSpec]
SHARES = SplitShares(validation=0.2, test=0.2)
BPE = ByteBpe(vocabulary=300)
CONTEXT = 16


def data(source: Spec, task: Spec = Language(tokenizer=BPE)) -> DataSpec:
    """A section, a fifth of it for each held-out split."""
    return DataSpec.model_validate({"source": source, "task": task, "split": SHARES})


def files(kind: str) -> RowFiles:
    """Rows of one folder, which holds files of every kind."""
    return RowFiles.model_validate({"kind": kind, "path": "files"})


TEXT = TextFiles(path="files/more")
FOLDERS = TextFiles(path="folders")
DISK = HuggingFaceDisk(path="files/disk")
MIXTURE = Mixture(parts=(Part(weight=1.0, source=TEXT), Part(weight=3.0, source=files("jsonl"))))
PICTURES = ImageFolder(path="pictures", height=4, width=4)
ARRAYS = NumpyFiles(path="arrays")
GIVEN = GivenTokenizer(path="one.json", end="<end>")
CLASSES = TextClasses(tokenizer=BPE)
SORTED = files("jsonl").model_copy(update={"label": "sort"})
UNEVEN = data(TextFiles(path="uneven"), Language(tokenizer=BPE, packing=Padded(length=CONTEXT)))
WITNESSES: tuple[Pair, ...] = (
    *turn(
        "data",
        data(TEXT),
        {
            "source": [files("jsonl"), files("csv"), files("parquet"), DISK, StandardLibrary()]
            + [MIXTURE],
            "source.path": "folders",
            "task.tokenizer": GIVEN,
            "task.tokenizer.vocabulary": 280,
            "task.packing": [Packed(length=CONTEXT), Padded(length=CONTEXT)],
            "split.validation": 0.4,
            "split.test": 0.4,
        },
    ),
    *turn("data", data(files("jsonl")), {"source.path": "files/more", "source.field": "other"}),
    *turn("data", data(SORTED, CLASSES), {"source.label": "size"}),
    *turn("data", data(DISK), {"source.path": "files/disk2", "source.field": "other"}),
    *turn(
        "data",
        data(DISK.model_copy(update={"label": "sort"}), CLASSES),
        {"source.label": "size"},
    ),
    *turn("data", data(SORTED, CLASSES), {"task.tokenizer.vocabulary": 280}),
    *turn("data", data(TEXT, Language(tokenizer=GIVEN)), {"task.tokenizer.path": "other.json"}),
    *turn("data", data(TEXT, Language(tokenizer=GIVEN)), {"task.tokenizer.end": "<other>"}),
    *turn(
        "data",
        data(SORTED, TextClasses(tokenizer=GIVEN)),
        {
            "task.tokenizer": BPE,
            "task.tokenizer.path": "other.json",
            "task.tokenizer.end": "<other>",
        },
    ),
    *turn(
        "data",
        data(TEXT, Language(tokenizer=BPE, packing=Packed(length=CONTEXT))),
        {"task.packing.length": CONTEXT - 4},
    ),
    *turn(
        "data",
        data(TEXT, Language(tokenizer=BPE, packing=Padded(length=CONTEXT))),
        {"task.packing.length": CONTEXT - 4},
    ),
    *turn(
        "data",
        data(Digits(), ImageClasses()),
        {"source": [PICTURES, ARRAYS], "task": FrameClasses()},
    ),
    *turn(
        "data",
        data(PICTURES, ImageClasses()),
        {
            "source.path": "others",
            "source.height": 2,
            "source.width": 2,
            "source.channels": 1,
            "source.filter": ["nearest", "box", "hamming", "bicubic", "lanczos"],
        },
    ),
    *turn("data", data(ARRAYS, ImageClasses()), {"source.path": "others"}),
    *turn("data", UNEVEN, {"order": SortedByLength(batches=4)}),
    *turn(
        "data",
        UNEVEN.model_copy(update={"order": SortedByLength(batches=4)}),
        {"order.batches": 2, "order.lengths": 1},
    ),
    *turn("data", data(MIXTURE), {"source.parts": MIXTURE.parts[::-1]}),
    *turn("data", data(MIXTURE), {"source.parts[*].weight": 2.0}),
    *turn("data", data(MIXTURE), {"source.parts[*].source": TextFiles(path="folders")}),
    # Classes and a label go together: each is refused without the other.
    Witness(
        "data.source[text].label",
        data(FOLDERS),
        data(FOLDERS.model_copy(update={"label": "folder"}), CLASSES),
    ),
    Witness("data.task.kind", data(files("jsonl")), data(SORTED, CLASSES)),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of every kind."""
    root = tmp_path_factory.mktemp("root")
    folder = root / "files"
    (folder / "more").mkdir(parents=True)
    rows = [
        {
            "text": f"row {n} in words",
            "other": f"{n} else",
            "sort": f"{n % 2}",
            "size": f"{n // 20}",
        }
        for n in range(40)
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "more" / "rows.jsonl").write_text("\n".join(lines[:30]))
    (folder / "rows.jsonl").write_text("\n".join(lines[30:]))
    with (folder / "rows.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:10])
    pa.parquet.write_table(pa.Table.from_pylist(rows[:20]), folder / "rows.parquet")
    for name, part in (("disk", rows[:25]), ("disk2", rows[25:])):
        datasets.Dataset.from_list(part).save_to_disk(str(folder / name))
    for number in range(30):
        (folder / "more" / f"{number}.txt").write_text(f"text {number} of many words " * 3)
        sort = root / "folders" / f"sort{number % 2}"
        sort.mkdir(parents=True, exist_ok=True)
        (root / "uneven").mkdir(exist_ok=True)
        (root / "uneven" / f"{number}.txt").write_text(f"{number} " * (number % 6 + 1))
        (sort / f"{number}.txt").write_text(f"sorted text {number} " * 3)
    write_arrays(root)
    for name in ("one", "other"):
        write_tokenizer(root / f"{name}.json", reverse=name == "other")
    return root


def write_arrays(root: Path) -> None:
    """Two sets of images as NumPy files and as folders of PNG files."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 3), np.uint8)
    for name, own in (("arrays", pixels[:30]), ("others", pixels[30:])):
        (root / name).mkdir()
        np.save(root / name / "x.npy", own)
        np.save(root / name / "y.npy", np.arange(len(own)) % 2)
        for number, image in enumerate(own):
            place = root / ("pictures" if name == "arrays" else name) / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number}.png")


def write_tokenizer(path: Path, *, reverse: bool) -> None:
    """A byte-level tokenizer without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=reverse)
    vocabulary = {token: place for place, token in enumerate([*alphabet, "<end>", "<other>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def make(spec: DataSpec, root: Path, folder: Path) -> DataManifest:
    """Snapshot and prepare into the folder."""
    snapshot(spec.source, task=spec.task, out=folder / "snapshot", root=root)
    return prepare(spec, snapshot=folder / "snapshot", out=folder / "data")


def taken(spec: DataSpec, root: Path, out: Path) -> object:
    """The documents or arrays that a snapshot of the source holds."""
    if spec.source.kind == "standard_library":
        # Its ten thousand files are read by the tests of `prepare`.
        return find_text(spec.source, root=root).title
    return snapshot(spec.source, out=out, root=root).digest


def shown_in(observable: str) -> list[Pair]:
    return [pair for pair in WITNESSES if pair.seen == {observable}]


def test_every_key_and_every_choice_has_a_witness() -> None:
    assert unproven("data", WITNESSES) == set()


@pytest.mark.parametrize("pair", shown_in("snapshot"), ids=str)
def test_a_key_changes_what_is_taken(pair: Pair, root: Path, tmp_path: Path) -> None:
    before, after = (
        taken(spec, root, tmp_path / str(number))
        for number, spec in enumerate((pair.before, pair.after))
    )
    assert before != after


@pytest.mark.parametrize("pair", shown_in("tokens"), ids=str)
def test_a_key_changes_the_tokens(pair: Pair, root: Path, tmp_path: Path) -> None:
    streams: list[Any] = []
    for number, spec in enumerate((pair.before, pair.after)):
        folder = tmp_path / str(number)
        manifest = make(spec, root, folder)
        assert open_tokenizer(folder / "data").get_vocab_size() == manifest.vocabulary
        streams.append(np.load(folder / "data" / "train.tokens.npy").tolist())
    assert streams[0] != streams[1]


@pytest.mark.parametrize("pair", shown_in("samples"), ids=str)
def test_a_key_changes_what_samples_hold(pair: Pair, root: Path, tmp_path: Path) -> None:
    seen = []
    for number, spec in enumerate((pair.before, pair.after)):
        folder = tmp_path / str(number)
        manifest = make(spec, root, folder)
        context = CONTEXT if manifest.vocabulary else None
        samples = open_split(folder / "data", "train", context=context)
        batch = samples.read(np.arange(3))
        if pair.key.startswith("data.order"):
            drawn = (draw(samples, seed=0, step=step, batch=2) for step in range(8))
            batch = min(
                (each.samples.read(each.indices) for each in drawn),
                key=lambda own: own.inputs.shape[1],
            )
        lengths = None if batch.lengths is None else batch.lengths.tolist()
        seen.append((batch.inputs.shape, batch.targets.tolist(), lengths))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("pair", shown_in("batches"), ids=str)
def test_a_key_changes_which_samples_a_step_reads(pair: Pair, root: Path, tmp_path: Path) -> None:
    orders = []
    for number, spec in enumerate((pair.before, pair.after)):
        folder = tmp_path / str(number)
        make(spec, root, folder)
        samples = open_split(folder / "data", "train", context=CONTEXT)
        orders.append([draw(samples, seed=0, step=n, batch=4).indices.tolist() for n in range(25)])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("pair", shown_in("splits"), ids=str)
def test_a_key_deals_documents_to_other_splits(pair: Pair) -> None:
    documents = [hashlib.sha256(b"%d" % number).digest() for number in range(500)]
    dealt = [
        [split_of(document, spec.split) for document in documents]
        for spec in (pair.before, pair.after)
    ]
    moved = {names for names in zip(*dealt, strict=True) if names[0] != names[1]}
    if pair.key == "data.split.validation":
        assert moved == {("train", "validation")}
    else:
        assert moved == {("validation", "test"), ("train", "validation")}
