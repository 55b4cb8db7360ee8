"""Where raw text comes from: files outside the project, read as documents and never executed."""

from __future__ import annotations

import csv
import json
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tasks.prepare.snapshots import RawDocument
from tasks.prepare.spec import HuggingFaceDisk, RowFiles, TextSource

TESTS = frozenset({"test", "tests", "idle_test"})
ROWS = 256
# The most characters of a cell that the csv module can be told.
LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class FoundText:
    """Files that were found, and how each is read.

    Attributes:
        title: where the data comes from, for people; no path of this machine.
        files: in a fixed order.
        columns: field that is read -> what is taken from it.
        read: the documents of one file.
        skipped: reason -> files left out, counted while reading.
    """

    title: str
    files: tuple[Path, ...]
    columns: dict[str, str]
    read: Callable[[Path], Iterator[RawDocument]]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files)


def find_text(source: TextSource, *, root: Path) -> FoundText:
    """Look for the files of a source, in the same order on any machine.

    Args:
        root: where a relative `data.source.path` starts.

    Raises:
        ValueError: nothing is there, or it is of another kind.
    """
    if source.kind == "standard_library":
        return _standard_library(Path(sysconfig.get_path("stdlib")))
    path = root / source.path
    if not path.exists():
        raise ValueError(
            f"data.source.path must name a file or a folder; got {source.path}, which does not "
            f"exist in {root.resolve()}."
        )
    if source.kind == "hugging_face":
        return _hugging_face(path, source)
    pattern = "*" if source.kind == "text" else f"*.{source.kind}"
    folder = path if path.is_dir() else path.parent
    files = _files(path, pattern) if path.is_dir() else (path,)
    if not files:
        raise ValueError(
            f"data.source.path must hold {pattern} files for kind={source.kind}; "
            f"got {source.path}, which holds none."
        )
    title = f"{source.kind} files of {Path(source.path).name or '.'}"
    if source.kind == "text":
        return _whole_files(
            title, folder, files, single="single files", labelled=source.label is not None
        )
    values = {"jsonl": _jsonl_rows, "csv": _csv_rows, "parquet": _parquet_rows}[source.kind]

    def read(file: Path) -> Iterator[RawDocument]:
        name = file.relative_to(folder).as_posix()
        return _documents(values(file, _keys(source)), source, name=name, group=name)

    return FoundText(title, files, _columns(source), read)


def _standard_library(folder: Path) -> FoundText:
    """Modules that belong to Python itself: no packages of the machine, no tests."""
    files = tuple(
        file
        for file in _files(folder, "*.py")
        if (parts := file.relative_to(folder).parts)[0].removesuffix(".py")
        in sys.stdlib_module_names
        and not TESTS & set(parts)
    )
    if not files:
        raise ValueError(
            "data.source.kind=standard_library needs the library's source text, and "
            f"{folder} holds none. Install Python with its .py files, or use kind=text."
        )
    title = f"standard library of Python {platform.python_version()}"
    return _whole_files(title, folder, files, single="single modules")


def _whole_files(
    title: str, folder: Path, files: tuple[Path, ...], *, single: str, labelled: bool = False
) -> FoundText:
    """One document a file; the slice is the first folder. Files that are not UTF-8 are skipped."""
    skipped: dict[str, int] = {}

    def read(file: Path) -> Iterator[RawDocument]:
        path = file.relative_to(folder)
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            skipped["not UTF-8"] = skipped.get("not UTF-8", 0) + 1
            return
        group = path.parts[0] if len(path.parts) > 1 else single
        if labelled and len(path.parts) == 1:
            raise ValueError(
                "data.source.label=folder needs every file in a folder named by its class; got "
                f"{path.name} beside the folders. Move it into one."
            )
        yield RawDocument(path.as_posix(), group, text, group if labelled else None)

    columns = {"file": "text"} | ({"folder": "label"} if labelled else {})
    return FoundText(title, files, columns, read, skipped)


def _hugging_face(path: Path, source: HuggingFaceDisk) -> FoundText:
    """The Arrow files that `save_to_disk` wrote, without the library that wrote them."""
    title = Path(source.path).name or "."
    folders = [path]
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json").get("splits", [])
        folders = [_inside(path, name) for name in sorted(names)]
    files = [
        _inside(folder, shard["filename"])
        for folder in folders
        for shard in _json(folder / "state.json").get("_data_files", [])
    ]
    if not files:
        raise ValueError(f"data.source.path must name data; {source.path} lists no Arrow file.")

    def read(file: Path) -> Iterator[RawDocument]:
        name = file.relative_to(path).as_posix()
        group = file.parent.name if file.parent != path else title
        return _documents(_arrow_rows(file, _keys(source)), source, name=name, group=group)

    return FoundText(f"Hugging Face data set {title}", tuple(files), _columns(source), read)


def _files(folder: Path, pattern: str) -> tuple[Path, ...]:
    found = {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob(pattern)
        if file.is_file()
    }
    hidden = {name for name in found if any(part.startswith(".") for part in name.split("/"))}
    return tuple(found[name] for name in sorted(found.keys() - hidden))


def _inside(folder: Path, name: str) -> Path:
    """An entry of a folder, whatever path the data gives for it."""
    entry = folder / Path(name).name
    if not entry.exists():
        raise ValueError(
            f"data.source.path must be a folder that datasets.save_to_disk wrote; {entry} is "
            "missing."
        )
    return entry


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"data.source.path must be a folder that datasets.save_to_disk wrote; {path} is "
            "missing."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return content


# Line or row of a file, counted from 1, and the values of the columns asked for.
Row = tuple[int, tuple[object, ...]]


def _keys(source: RowFiles | HuggingFaceDisk) -> dict[str, str]:
    """Parameter -> the column that it names."""
    keys = {"data.source.field": source.field}
    return keys if source.label is None else keys | {"data.source.label": source.label}


def _columns(source: RowFiles | HuggingFaceDisk) -> dict[str, str]:
    return {column: key.split(".")[-1] for key, column in _keys(source).items()}


def _jsonl_rows(file: Path, keys: dict[str, str]) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{file}, line {number} must hold an object; got {type(row).__name__}."
                )
            _require_columns(keys, row, f"{file}, line {number}")
            yield number, tuple(row[column] for column in keys.values())


def _csv_rows(file: Path, keys: dict[str, str]) -> Iterator[Row]:
    """Rows below a line of names, quoted as RFC 4180 says; a line break in quotes is kept."""
    # By default a cell of more than 131,072 characters is an error.
    csv.field_size_limit(LONGEST_CELL)
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            names = next(rows, [])
            _require_columns(keys, names, f"the first line of {file}")
            places = [names.index(column) for column in keys.values()]
            for number, row in enumerate(rows, start=1):
                if row and len(row) != len(names):
                    raise ValueError(
                        f"{file}, row {number} (up to line {rows.line_num}) must hold "
                        f"{len(names)} cells like the first line; got {len(row)}."
                    )
                if row:
                    yield number, tuple(row[place] for place in places)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file}, line {rows.line_num} is not CSV in UTF-8: {error}") from None


def _parquet_rows(file: Path, keys: dict[str, str]) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            _require_columns(keys, parquet.schema_arrow.names, str(file))
            columns = list(dict.fromkeys(keys.values()))
            yield from _rows(parquet.iter_batches(batch_size=ROWS, columns=columns), keys)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a Parquet file of UTF-8 text: {error}") from None


def _arrow_rows(file: Path, keys: dict[str, str]) -> Iterator[Row]:
    try:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            _require_columns(keys, stream.schema.names, str(file))
            yield from _rows(stream, keys)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not an Arrow file of UTF-8 text: {error}") from None


def _rows(batches: Iterable[Any], keys: dict[str, str]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        columns = [batch.column(column).to_pylist() for column in keys.values()]
        for values in zip(*columns, strict=True):
            number += 1
            yield number, values


def _require_columns(keys: dict[str, str], columns: Iterable[str], where: str) -> None:
    found = list(columns)
    for key, column in keys.items():
        if column not in found:
            raise ValueError(
                f"{key} must name a field of every row; got {column}, and {where} has "
                f"{', '.join(sorted(found)) or 'none'}."
            )


def _documents(
    rows: Iterator[Row], source: RowFiles | HuggingFaceDisk, *, name: str, group: str
) -> Iterator[RawDocument]:
    """One document a row. A missing text is an empty document, which `prepare` counts."""
    for number, (value, *rest) in rows:
        text = "" if value is None else value
        if not isinstance(text, str):
            raise ValueError(
                f"data.source.field must name a field of text; got {source.field}, which holds "
                f"{type(text).__name__} in row {number} of {name}."
            )
        label = None if source.label is None else _label(rest[0], source.label, number, name)
        yield RawDocument(f"{name}:{number}", group, text, label)


def _label(value: object, column: str, number: int, name: str) -> str:
    """The name of a class: text or a whole number."""
    if not isinstance(value, (str, int)) or value == "":
        held = "nothing" if value is None or value == "" else type(value).__name__
        raise ValueError(
            f"data.source.label must name a field of text or whole numbers; got {column}, which "
            f"holds {held} in row {number} of {name}. Remove the row, or give it a class."
        )
    return str(value)
