"""A small corpus with everything in it that text can do to a tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts import DataManifest
from tasks.prepare import prepare
from tasks.prepare.spec import (
    ByteBpe,
    DataSpec,
    Digits,
    ImageClasses,
    Language,
    RowFiles,
    SplitShares,
    TextFiles,
)
from tasks.snapshot import snapshot

HARD = (
    "windows\r\nlines\r\n",
    " leading and trailing ",
    "\ttabs\n\n\n  and   runs of    spaces\n",
    "Ünïcödé, 日本語, עברית, 🦊👩‍👩‍👧, e\u0301",
    "\ufeffa byte order mark",
    "a NUL \x00 and an escape \x1b[0m",
    "the end mark <|end|> in plain text<|end|>",
    "no newline at the end",
    "\u2028 \x85 \x0b separators",
    "x" * 5000,
)


def texts() -> list[str]:
    """300 different documents, the hard ones first."""
    return [*HARD] + [
        "".join(f"def function_{number}_{line}(): return {line * number}\n" for line in range(9))
        for number in range(300 - len(HARD))
    ]


def text_spec(path: Path, kind: str = "text", *, vocabulary: int = 320) -> DataSpec:
    """The `data` section for files under `path`."""
    source = (
        TextFiles(path=str(path))
        if kind == "text"
        else RowFiles(kind=kind, path=str(path))  # type: ignore[arg-type]
    )
    return DataSpec(
        source=source,
        task=Language(tokenizer=ByteBpe(vocabulary=vocabulary)),
        split=SplitShares(validation=0.2, test=0.2),
    )


def make(spec: DataSpec, folder: Path) -> DataManifest:
    """Snapshot and prepare into `folder/snapshot` and `folder/data`."""
    snapshot(spec.source, task=spec.task, out=folder / "snapshot")
    return prepare(spec, snapshot=folder / "snapshot", out=folder / "data")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files, half of them in packages."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(texts()):
        package = folder / f"package{number % 3}" if number % 2 else folder
        package.mkdir(exist_ok=True)
        (package / f"{number:03}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared corpus; read only."""
    folder = tmp_path_factory.mktemp("prepared")
    make(text_spec(corpus), folder)
    return folder / "data"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared digits; read only."""
    folder = tmp_path_factory.mktemp("digits")
    make(DataSpec(source=Digits(), task=ImageClasses()), folder)
    return folder / "data"


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a prepared data set so that a test may damage it."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copy
