"""Documents with classes: every text source names them, and every mistake is one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tasks.artifacts import DataManifest
from tasks.prepare.dataset import Texts, open_split
from tasks.prepare.documents import TextDocuments, open_documents
from tasks.prepare.spec import ByteBpe, DataSpec, SplitShares, TextClasses
from tasks.prepare.splits import SPLITS
from tasks.snapshot import snapshot
from tests.prepare.conftest import make
from tests.prepare.test_snapshot import documents, source_of

ROWS = [
    {"text": f"{'good' if number % 3 else 'bad'} text, number {number}", "stars": number % 3}
    for number in range(90)
]


def write_rows(folder: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    """The rows as files of a kind."""
    folder.mkdir(parents=True)
    if kind == "jsonl":
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    elif kind == "hugging_face":
        datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    elif kind == "csv":
        with (folder / "rows.csv").open("w", newline="") as table:
            writer = csv.DictWriter(table, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        for number, row in enumerate(rows):
            file = folder / str(row["stars"]) / "deeper" / f"{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(row["text"])
    return folder


def label_of(kind: str) -> str:
    return "folder" if kind == "text" else "stars"


def classes_spec(kind: str, path: Path) -> DataSpec:
    """A section of text classes."""
    return DataSpec(
        source=source_of(kind, path, label=label_of(kind)),
        task=TextClasses(tokenizer=ByteBpe(vocabulary=300)),
        split=SplitShares(validation=0.2, test=0.2),
    )


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "parquet", "hugging_face"])
def test_every_source_of_text_names_classes(kind: str, tmp_path: Path) -> None:
    spec = classes_spec(kind, write_rows(tmp_path / "rows", ROWS, kind))
    manifest = snapshot(spec.source, out=tmp_path / "out")
    assert manifest.classes == ("0", "1", "2")
    found = {document["text"]: document["label"] for document in documents(tmp_path / "out")}
    assert found == {row["text"]: str(row["stars"]) for row in ROWS}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of texts with classes; read only."""
    folder = tmp_path_factory.mktemp("labelled")
    make(classes_spec("jsonl", write_rows(folder / "rows", ROWS, "jsonl")), folder)
    return folder / "data"


def test_a_text_is_its_first_tokens_its_length_and_its_class(labelled: Path) -> None:
    manifest = DataManifest.read(labelled / "manifest.json")
    names = ("0", "1", "2")
    assert (manifest.kind, manifest.classes, manifest.end) == ("text_classes", names, 0)
    for context in (8, 64):
        for split in SPLITS:
            texts = open_documents(labelled, split)
            assert isinstance(texts, TextDocuments)
            samples = open_split(labelled, split, context=context)
            assert isinstance(samples, Texts) and len(samples) == len(texts)
            order = np.arange(len(texts))[::-1]
            batch = samples.read(order)
            assert batch.inputs.shape == (len(texts), context)
            assert batch.lengths is not None
            for row, index in enumerate(order):
                own = texts.tokens(index)[:context]
                assert batch.lengths[row] == len(own)
                assert batch.inputs[row, : len(own)].tolist() == own.tolist()
                assert (batch.inputs[row, len(own) :] == manifest.end).all()
                number = int(texts.text(index).decode().split()[-1])
                assert names[batch.targets[row]] == str(number % 3)
                assert texts.documents[index].slice == str(number % 3)


def rows_with(place: int, **changes: Any) -> list[dict[str, Any]]:
    return [row | changes if number == place else row for number, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_with(4, stars=None), "got stars, which holds nothing in row 5 of rows.jsonl"),
        (rows_with(6, stars=0.5), "got stars, which holds float in row 7 of rows.jsonl"),
        (rows_with(2, stars=[1]), "got stars, which holds list in row 3 of rows.jsonl"),
        (
            [{"text": row["text"]} for row in ROWS],
            r"data\.source\.label must name a field of every",
        ),
        (
            [row | {"stars": 1} for row in ROWS],
            "must name at least two classes; every document of jsonl files of rows is of class 1",
        ),
    ],
)
def test_a_row_without_a_class_is_named(
    rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    spec = classes_spec("jsonl", write_rows(tmp_path / "rows", rows, "jsonl"))
    with pytest.raises(ValueError, match=message) as error:
        snapshot(spec.source, out=tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1


def test_a_file_beside_the_folders_of_classes_is_named(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows", ROWS, "text")
    (folder / "stray.txt").write_text("of no class")
    with pytest.raises(ValueError, match=r"data\.source\.label=folder .* got stray.txt beside"):
        snapshot(classes_spec("text", folder).source, out=tmp_path / "out")


def test_a_class_without_a_training_document_is_refused(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "the only one of its kind 7", "stars": 9}]
    spec = classes_spec("jsonl", write_rows(tmp_path / "rows", rows, "jsonl"))
    # It is dealt by its content; move the shares until it is held out.
    held = spec.model_copy(update={"split": SplitShares(validation=0.49, test=0.49)})
    with pytest.raises(ValueError, match="every class must have a document in the training split"):
        make(held, tmp_path)


def test_the_same_text_under_two_classes_is_counted(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0] | {"stars": 2}, ROWS[1]]
    make(classes_spec("jsonl", write_rows(tmp_path / "rows", rows, "jsonl")), tmp_path)
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert report["documents"]["duplicates"] == 2
    assert report["documents"]["duplicates_of_another_class"] == 1
    assert report["dropped"]["conflicts"] == ["rows.jsonl:91"]


def no_label(section: dict[str, Any]) -> None:
    del section["source"]["label"]


def language(section: dict[str, Any]) -> None:
    section["task"]["kind"] = "language"


def library(section: dict[str, Any]) -> None:
    section["source"] = {"kind": "standard_library"}


def images(section: dict[str, Any]) -> None:
    section["task"] = {"kind": "images"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_label, r"data\.source\.label must name the class .* got null"),
        (language, r"data\.source\.label must be null for data\.task\.kind=language.* got stars"),
        (library, r"data\.task\.kind=text_classes needs .* got standard_library"),
        (images, r"data\.task\.kind=images needs data\.source\.kind digits, .* got jsonl"),
    ],
)
def test_a_task_without_its_source_is_refused(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    section = classes_spec("jsonl", Path("rows")).model_dump()
    change(section)
    with pytest.raises(ValueError, match=message):
        DataSpec.model_validate(section)
