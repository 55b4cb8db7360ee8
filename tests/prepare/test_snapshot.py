"""Reading the outside world: every kind of source, and every way it can be wrong."""

from __future__ import annotations

import ast
import csv
import json
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from models.spec import Spec
from tasks.artifacts import SnapshotManifest
from tasks.prepare.spec import Digits, HuggingFaceDisk, RowFiles, Source, StandardLibrary, TextFiles
from tasks.snapshot import snapshot
from tests.prepare.conftest import HARD
from tests.prepare.test_prepare import digests

ROWS = [{"id": number, "text": text, "other": None} for number, text in enumerate(HARD)]


def documents(folder: Path) -> list[dict[str, str]]:
    """The documents of a snapshot."""
    with (folder / "documents.jsonl").open("rb") as lines:
        return [json.loads(line) for line in lines]


def jsonl(folder: Path) -> Source:
    """JSONL files with a blank line and escapes."""
    folder.mkdir()
    for name, rows in (("a.jsonl", ROWS[:4]), ("b.jsonl", ROWS[4:])):
        lines = [json.dumps(row, ensure_ascii=name == "a.jsonl") for row in rows]
        (folder / name).write_bytes("\n\n".join(lines).encode() + b"\n")
    return RowFiles(kind="jsonl", path=str(folder))


def csv_files(folder: Path) -> Source:
    """CSV files, one of them with a byte order mark as spreadsheets write it."""
    folder.mkdir()
    for name, encoding, rows in (
        ("a.csv", "utf-8-sig", ROWS[:4]),
        ("b.csv", "utf-8", [{**row, "other": "x" * 200_000} for row in ROWS[4:]]),
    ):
        with (folder / name).open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, ["text", "id", "other"])
            writer.writeheader()
            writer.writerows(rows)
    return RowFiles(kind="csv", path=str(folder))


def parquet(folder: Path) -> Source:
    """Parquet files."""
    folder.mkdir()
    for name, rows in (("a.parquet", ROWS[:4]), ("b.parquet", ROWS[4:])):
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / name)
    return RowFiles(kind="parquet", path=str(folder))


def hugging_face(folder: Path) -> Source:
    """One data set."""
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder), num_shards=2)
    return HuggingFaceDisk(path=str(folder))


def hugging_face_splits(folder: Path) -> Source:
    """A dictionary of data sets, one of them filtered, so that it has an index."""
    whole = datasets.Dataset.from_list(ROWS)
    parts = {
        "train": whole.filter(lambda row: row["id"] < 4),
        "test": whole.select(range(4, len(ROWS))),
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return HuggingFaceDisk(path=str(folder))


def text(folder: Path) -> Source:
    """Text files."""
    folder.mkdir()
    for row in ROWS:
        (folder / f"{row['id']}.txt").write_bytes(str(row["text"]).encode())
    return TextFiles(kind="text", path=str(folder))


KINDS: dict[str, tuple[Callable[[Path], Source], set[str]]] = {
    "text": (text, {"single files"}),
    "jsonl": (jsonl, {"a.jsonl", "b.jsonl"}),
    "csv": (csv_files, {"a.csv", "b.csv"}),
    "parquet": (parquet, {"a.parquet", "b.parquet"}),
    "hugging_face": (hugging_face, {"source"}),
    "hugging_face_splits": (hugging_face_splits, {"train", "test"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_keeps_every_character(kind: str, tmp_path: Path) -> None:
    write, slices = KINDS[kind]
    manifest = snapshot(write(tmp_path / "source"), out=tmp_path / "out")
    found = documents(tmp_path / "out")
    assert Counter(document["text"] for document in found) == Counter(HARD)
    assert {document["slice"] for document in found} == slices
    assert len({document["name"] for document in found}) == len(HARD)
    assert manifest.documents == len(HARD)
    assert manifest.size_bytes == sum(len(hard.encode()) for hard in HARD)
    assert SnapshotManifest.read(tmp_path / "out" / "manifest.json") == manifest


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_content_elsewhere_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    write, _ = KINDS[kind]
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        snapshot(write(tmp_path / place / "source"), out=tmp_path / place / "out")
    assert digests(tmp_path / "here" / "out") == digests(tmp_path / "there" / "out")


def test_the_order_of_creation_changes_nothing(tmp_path: Path) -> None:
    for place, step in (("here", 1), ("there", -1)):
        folder = tmp_path / place / "source"
        folder.mkdir(parents=True)
        for number in list(range(40))[::step]:
            (folder / f"{number}.txt").write_text(f"text {number}")
        snapshot(TextFiles(kind="text", path=str(folder)), out=tmp_path / place / "out")
    assert digests(tmp_path / "here" / "out") == digests(tmp_path / "there" / "out")
    names = [document["name"] for document in documents(tmp_path / "here" / "out")]
    assert names == sorted(names)


def test_another_character_gives_another_digest(tmp_path: Path) -> None:
    source = text(tmp_path / "source")
    before = snapshot(source, out=tmp_path / "out")
    (tmp_path / "source" / "3.txt").write_text("changed")
    assert snapshot(source, out=tmp_path / "out").digest != before.digest


def test_touching_a_file_changes_nothing(tmp_path: Path) -> None:
    source = text(tmp_path / "source")
    snapshot(source, out=tmp_path / "out")
    before = digests(tmp_path / "out")
    for file in (tmp_path / "source").iterdir():
        os.utime(file, (1, 1))
    snapshot(source, out=tmp_path / "out")
    assert digests(tmp_path / "out") == before


def test_a_relative_path_starts_at_the_root(tmp_path: Path) -> None:
    text(tmp_path / "source")
    manifest = snapshot(TextFiles(kind="text", path="source"), out=tmp_path / "out", root=tmp_path)
    assert manifest.documents == len(HARD)


def test_a_single_file_is_a_source_whatever_its_name(tmp_path: Path) -> None:
    jsonl(tmp_path / "source")
    file = (tmp_path / "source" / "a.jsonl").rename(tmp_path / "rows.data")
    manifest = snapshot(RowFiles(kind="jsonl", path=str(file)), out=tmp_path / "out")
    assert manifest.documents == 4


def test_another_field_may_hold_the_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"body": "one", "text": 5}\n{"body": null}\n')
    source = RowFiles(kind="jsonl", path=str(file), field="body")
    snapshot(source, out=tmp_path / "out")
    assert [document["text"] for document in documents(tmp_path / "out")] == ["one", ""]


def test_hidden_files_are_left_alone(tmp_path: Path) -> None:
    source = text(tmp_path / "source")
    (tmp_path / "source" / ".git").mkdir()
    (tmp_path / "source" / ".git" / "config").write_text("secret")
    (tmp_path / "source" / ".env").write_text("secret")
    assert snapshot(source, out=tmp_path / "out").documents == len(HARD)


def test_files_that_are_not_utf8_are_skipped_and_counted(tmp_path: Path) -> None:
    source = text(tmp_path / "source")
    (tmp_path / "source" / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "source" / "latin.txt").write_bytes("é".encode("latin-1"))
    manifest = snapshot(source, out=tmp_path / "out")
    assert manifest.skipped == {"not UTF-8": 2}
    assert manifest.documents == len(HARD)


def test_the_old_snapshot_is_replaced_as_a_whole(tmp_path: Path) -> None:
    snapshot(Digits(), out=tmp_path / "out")
    snapshot(text(tmp_path / "source"), out=tmp_path / "out")
    assert set(digests(tmp_path / "out")) == {"documents.jsonl", "manifest.json"}


def test_the_standard_library_is_pythons_own_source(tmp_path: Path) -> None:
    manifest = snapshot(StandardLibrary(), out=tmp_path / "out")
    found = documents(tmp_path / "out")
    names = {document["name"] for document in found}
    assert {"asyncio/events.py", "json/decoder.py", "typing.py"} <= names
    assert manifest.size_bytes > 5e6
    for document in found:
        first = document["name"].split("/")[0].removesuffix(".py")
        assert first in sys.stdlib_module_names
        assert "site-packages" not in document["name"] and "/test/" not in document["name"]
        assert document["slice"] in (first, "single modules")
    # What is left out on purpose: files that the build wrote for one machine.
    assert not any("sysconfigdata" in name for name in names)
    shortest = min(found, key=lambda document: len(document["text"]) or 1e9)
    ast.parse(shortest["text"])


def test_digits_are_written_as_sixteenths(tmp_path: Path) -> None:
    manifest = snapshot(Digits(), out=tmp_path / "out")
    assert manifest.kind == "arrays"
    assert manifest.documents == 1797
    assert manifest.classes == tuple("0123456789")


def source_of(kind: str, path: Path, **fields: Any) -> Source:
    """A source of files, as `params.yaml` names it."""
    section = {"source": {"kind": kind, "path": str(path)} | fields}
    return Sourced.model_validate(section).source


class Sourced(Spec):
    """A section with a source."""

    source: Source


def write(content: bytes, name: str = "rows.jsonl") -> Callable[[Path], Path]:
    """Writes one file."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def empty_folder(folder: Path) -> Path:
    """A folder without a file."""
    (folder / "empty").mkdir()
    return folder / "empty"


def huge_file(folder: Path) -> Path:
    """A sparse file that no disk here could hold a copy of."""
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(2**43)
    return folder / "huge.txt"


def numbers_in_parquet(folder: Path) -> Path:
    """A Parquet file whose text column holds numbers."""
    pa.parquet.write_table(pa.table({"text": [1, 2]}), folder / "numbers.parquet")
    return folder / "numbers.parquet"


def bytes_that_say_they_are_text(folder: Path) -> Path:
    """A Parquet file whose text column is not UTF-8."""
    raw = pa.array([b"\xff\xfe"], pa.binary())
    column = pa.StringArray.from_buffers(1, raw.buffers()[1], raw.buffers()[2])
    pa.parquet.write_table(pa.table({"text": column}), folder / "raw.parquet")
    return folder / "raw.parquet"


def damaged_hugging_face(folder: Path) -> Path:
    """A data set whose Arrow file was cut."""
    hugging_face(folder / "set")
    file = next((folder / "set").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:100])
    return folder / "set"


MISTAKES: list[tuple[str, str, Callable[[Path], Path], str]] = [
    (
        "missing path",
        "text",
        lambda folder: folder / "nowhere",
        r"must name a file or a folder.*nowhere, which does not",
    ),
    ("empty folder", "text", empty_folder, r"must hold \* files for kind=text"),
    ("no such files", "parquet", empty_folder, r"must hold \*\.parquet files for kind=parquet"),
    ("nothing but empties", "text", write(b""), "must hold text; got 1 documents without a byte"),
    ("nothing is UTF-8", "text", write(b"\xff"), r"got 0 documents.*\(1 files not UTF-8\)"),
    ("not JSON", "jsonl", write(b'{"text": "a"}\n{"text": '), r"line 2 is not JSON"),
    ("not UTF-8", "jsonl", write(b'{"text": "\xff"}\n'), r"line 1 is not JSON"),
    ("nested too deep", "jsonl", write(b"[" * 100_000), r"line 1 is not JSON"),
    ("not an object", "jsonl", write(b"[1]\n"), r"line 1 must hold an object; got list"),
    (
        "CSV without the field",
        "csv",
        write(b"body,id\na,1\n", "a.csv"),
        r"data\.source\.field .* got text, and the first line of .*a\.csv has body, id",
    ),
    (
        "CSV row too short",
        "csv",
        write(b"id,text\n1,a\n2\n", "a.csv"),
        r"a\.csv, row 2 \(up to line 3\) must hold 2 cells like the first line; got 1",
    ),
    (
        "CSV that is not UTF-8",
        "csv",
        write(b"id,text\n1,\xff\n", "a.csv"),
        r"a\.csv, line \d is not CSV in UTF-8",
    ),
    (
        "CSV with an open quote",
        "csv",
        write(b'id,text\n1,"a\n', "a.csv"),
        r"a\.csv, line 2 is not CSV in UTF-8: unexpected end",
    ),
    (
        "missing field",
        "jsonl",
        write(b'{"body": "a", "id": 1}\n'),
        r"data\.source\.field .* got text, and .* has body, id",
    ),
    (
        "field of numbers",
        "jsonl",
        write(b'{"text": 5}\n'),
        r"a field of text; got text, which holds int in row 1",
    ),
    (
        "lone surrogate",
        "jsonl",
        write(b'{"text": "\\ud800"}\n'),
        r"rows\.jsonl:1 holds text that UTF-8 cannot write",
    ),
    ("not Parquet", "parquet", write(b"no", "a.parquet"), r"a\.parquet is not a Parquet file"),
    (
        "Parquet without the field",
        "parquet",
        lambda folder: folder / "other.parquet",
        r"data\.source\.field .* has body",
    ),
    ("Parquet of numbers", "parquet", numbers_in_parquet, r"which holds int in row 1"),
    (
        "Parquet that is not UTF-8",
        "parquet",
        bytes_that_say_they_are_text,
        r"is not a Parquet file of UTF-8 text",
    ),
    (
        "not a data set",
        "hugging_face",
        empty_folder,
        r"must be a folder that datasets\.save_to_disk wrote",
    ),
    ("damaged data set", "hugging_face", damaged_hugging_face, r"is not an Arrow file"),
    ("no free disk", "text", huge_file, r"needs about 8,796,093 MB and its disk has .* MB left"),
]


@pytest.mark.parametrize(
    ("kind", "make", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_bad_input_gets_one_clear_line(
    kind: str, make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    pa.parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "other.parquet")
    source = source_of(kind, make(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        snapshot(source, out=tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


class Bomb:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_in_a_source_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    bomb = pickle.dumps(Bomb(mark))
    # How extension types of Python were stored when pyarrow still loaded them.
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": bomb,
        b"pandas": bomb,
        b"huggingface": bomb,
    }
    field = pa.field("text", pa.string(), metadata=metadata)
    table = pa.table([["harmless"]], schema=pa.schema([field], metadata=metadata))
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    folder = tmp_path / "set"
    folder.mkdir()
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (folder / "dataset.pkl").write_bytes(bomb)
    for source in (
        RowFiles(kind="parquet", path=str(tmp_path / "a.parquet")),
        HuggingFaceDisk(path=str(folder)),
    ):
        snapshot(source, out=tmp_path / "out")
        assert [document["text"] for document in documents(tmp_path / "out")] == ["harmless"]
    assert not mark.exists()


def test_a_data_set_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    hugging_face(tmp_path / "outside")
    shard = next((tmp_path / "outside").glob("*.arrow")).name
    folder = tmp_path / "set"
    folder.mkdir()
    state = {"_data_files": [{"filename": f"../outside/{shard}"}]}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"data-00000-of-00002\.arrow is missing"):
        snapshot(HuggingFaceDisk(path=str(folder)), out=tmp_path / "out")
