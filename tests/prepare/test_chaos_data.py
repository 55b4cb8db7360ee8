"""Data that a disk or a stranger changed: no batch of it is read, and no code in it runs."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from models.record import FileDigest, digest_of_file
from tasks.artifacts import DataManifest
from tasks.prepare.dataset import MANIFEST, open_split
from tasks.prepare.spec import (
    ByteBpe,
    DataSpec,
    FrameClasses,
    GivenTokenizer,
    HuggingFaceDisk,
    ImageClasses,
    ImageFolder,
    Language,
    NumpyFiles,
    RowFiles,
    SplitShares,
    TextFiles,
)
from tasks.snapshot import snapshot
from tasks.train import worker
from tasks.train.checkpoints import CheckpointManifest
from tasks.train.loop import Seat, alone
from tasks.train.stopping import Stopping
from tests.prepare.conftest import make
from tests.train import runs
from tests.train.bigram import checkpoints
from tests.train.chaos import job
from tests.train.chaos_counts import ROUNDS, tell
from tests.train.writer import ABOUT, state

FLIPS = 300 * ROUNDS


def flip(path: Path, *, at: int, bit: int) -> None:
    """Turn a bit of a file over; its time of change stays, as on a disk that rots."""
    times, mode = path.stat(), stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    path.chmod(mode)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["prepared", "digits"])
def test_a_flipped_bit_anywhere_in_a_split_stops_before_the_first_batch(
    kind: str,
    request: pytest.FixtureRequest,
    copy_of: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    data = copy_of(request.getfixturevalue(kind))
    context = 32 if kind == "prepared" else None
    engines: list[object] = []
    monkeypatch.setattr(worker, "build_engine", lambda *about: engines.append(about))
    draw = np.random.default_rng(0)
    files = [
        file
        for file in DataManifest.read(data / MANIFEST).files
        if file.path.startswith(("train.", "validation."))
    ]
    counts: Counter[str] = Counter()
    for number in range(FLIPS):
        file = files[number % len(files)]
        at, bit = int(draw.integers(file.size_bytes)), int(draw.integers(8))
        flip(data / file.path, at=at, bit=bit)
        split: Any = file.path.split(".")[0]
        with pytest.raises(ValueError, match=f"{file.path} is damaged"):
            open_split(data, split, context=context)
        counts["splits refused"] += 1
        if kind == "prepared" and number % 10 == 0:
            started = job("torch", data, tmp_path / str(number))
            with pytest.raises(ValueError, match=f"{file.path} is damaged"):
                worker.work(
                    started, seat=Seat(), stopping=Stopping(tmp_path), agree=alone, progress=none
                )
            assert [event["event"] for event in started.events.read()] == ["started"]
            counts["workers refused"] += 1
        flip(data / file.path, at=at, bit=bit)
        assert engines == []
    tell(record_property, f"flipped bits, {kind}", **counts)
    open_split(data, "train", context=context)
    assert counts["splits refused"] == FLIPS


def none(done: int, total: int, note: str = "") -> None:
    """Progress that must never be told."""
    raise AssertionError(f"step {done} of {total} was taken")


@pytest.mark.proof
def test_a_flipped_bit_in_a_read_only_object_of_dvc_stops_the_train_stage(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """DVC takes its cache for good, unread; the whole verb, on real Ray, does not."""
    data = runs.small_data(tmp_path)

    def dvc(*words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    dvc("init", "-q", "--no-scm")
    dvc("config", "cache.type", "hardlink")
    dvc("add", "-q", "data")
    linked = data / "train.tokens.npy"
    objects = (path for path in (tmp_path / ".dvc" / "cache").rglob("*") if path.is_file())
    (held,) = (path for path in objects if path.samefile(linked))
    assert not held.stat().st_mode & 0o222
    before = digest_of_file(linked)
    flip(held, at=held.stat().st_size // 2, bit=0)
    assert digest_of_file(linked) != before
    assert "up to date" in dvc("status")

    with pytest.raises(ValueError, match="train.tokens.npy is damaged"):
        runs.run(data, tmp_path, changes={}, progress=none)
    told = [event["event"] for event in runs.events(tmp_path)]
    assert told == ["started", "refused"]
    assert list((tmp_path / "scratch").rglob("step-*")) == []
    assert not (tmp_path / "model").exists()
    # It was this bit alone.
    flip(held, at=held.stat().st_size // 2, bit=0)
    open_split(data, "train", context=32)
    tell(record_property, "an object of DVC", flipped=1, batches=0)


class Bomb:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


Hostile = Callable[[Path, "Weapons"], DataSpec]


class Weapons:
    """Files that run code where someone is careless.

    Attributes:
        mark: the file that the code leaves.
        binary, text: pickles; the second is ASCII.
        array: an array of objects, as `numpy.save` writes it.
        checkpoint: what `torch.save` writes, a pickle in an archive.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        self.mark = folder / "it-ran"
        bomb = Bomb(self.mark)
        self.binary = pickle.dumps(bomb)
        self.text = pickle.dumps(bomb, protocol=0).decode("ascii")
        arrays, archive = io.BytesIO(), io.BytesIO()
        np.save(arrays, np.array([bomb] * 20, object), allow_pickle=True)
        torch.save({"weights": bomb}, archive)
        self.array, self.checkpoint = arrays.getvalue(), archive.getvalue()

    def check_live(self) -> None:
        """Each goes off where pickles are loaded, and none has."""
        import torch

        assert not self.mark.exists()
        careless: list[Callable[[], object]] = [
            lambda: pickle.loads(self.binary),
            lambda: pickle.loads(self.text.encode()),
            lambda: np.load(io.BytesIO(self.array), allow_pickle=True),
            lambda: torch.load(io.BytesIO(self.checkpoint), weights_only=False),
        ]
        for load in careless:
            load()
            assert self.mark.exists()
            self.mark.unlink()


def language(source: Any, given: GivenTokenizer | None = None) -> DataSpec:
    """A language task on a source."""
    task = Language(tokenizer=given or ByteBpe(vocabulary=300))
    return DataSpec(source=source, task=task, split=SplitShares(validation=0.2, test=0.2))


def arrays(name: str, content: Callable[[Weapons], bytes], *, frames: bool = False) -> Hostile:
    """Arrays of which one is something else."""

    def plant(folder: Path, weapons: Weapons) -> DataSpec:
        np.save(folder / "x.npy", np.zeros((20, 8, 8), np.uint8))
        np.save(folder / "y.npy", np.arange(20) % 2)
        if frames:
            np.save(folder / "lengths.npy", np.full(20, 8))
        (folder / name).write_bytes(content(weapons))
        task = FrameClasses() if frames else ImageClasses()
        return DataSpec(source=NumpyFiles(path=str(folder)), task=task)

    return plant


def file(name: str, kind: str, content: Callable[[Weapons], bytes]) -> Hostile:
    """A file that is not what its name says."""

    def plant(folder: Path, weapons: Weapons) -> DataSpec:
        (folder / name).write_bytes(content(weapons))
        source: Any = {
            "text": TextFiles(path=str(folder)),
            "hugging_face": HuggingFaceDisk(path=str(folder)),
        }.get(kind) or RowFiles.model_validate({"kind": kind, "path": str(folder / name)})
        return language(source)

    return plant


def pictures(folder: Path, weapons: Weapons) -> DataSpec:
    for place in ("cat", "dog"):
        (folder / place).mkdir()
        (folder / place / "a.png").write_bytes(weapons.binary)
    source = ImageFolder(path=str(folder), height=8, width=8)
    return DataSpec(source=source, task=ImageClasses())


def arrow(folder: Path, weapons: Weapons) -> DataSpec:
    (folder / "data.arrow").write_bytes(weapons.checkpoint)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return language(HuggingFaceDisk(path=str(folder)))


def tokenizer(folder: Path, weapons: Weapons) -> DataSpec:
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"harmless {number}\n" * 9)
    path = folder.parent / "tokenizer.json"
    path.write_bytes(weapons.binary)
    return language(TextFiles(path=str(folder)), GivenTokenizer(path=str(path), end="x"))


REFUSED: dict[str, Hostile] = {
    "objects as images": arrays("x.npy", lambda weapons: weapons.array),
    "objects as classes": arrays("y.npy", lambda weapons: weapons.array),
    "objects as lengths": arrays("lengths.npy", lambda weapons: weapons.array, frames=True),
    "a pickle as images": arrays("x.npy", lambda weapons: weapons.binary),
    "a .pt as images": arrays("x.npy", lambda weapons: weapons.checkpoint),
    "a .pt as classes": arrays("y.npy", lambda weapons: weapons.checkpoint),
    "a .pt among texts": file("model.pt", "text", lambda weapons: weapons.checkpoint),
    "a pickle among texts": file("model.pkl", "text", lambda weapons: weapons.binary),
    "a pickle as JSON lines": file("a.jsonl", "jsonl", lambda weapons: weapons.binary),
    "an ASCII pickle as JSON lines": file("a.jsonl", "jsonl", lambda one: one.text.encode()),
    "a .pt as CSV": file("a.csv", "csv", lambda weapons: weapons.checkpoint),
    "a .pt as Parquet": file("a.parquet", "parquet", lambda weapons: weapons.checkpoint),
    "a pickle as Parquet": file("a.parquet", "parquet", lambda weapons: weapons.binary),
    "a .pt as Arrow": arrow,
    "a pickled data set": file("dataset.pkl", "hugging_face", lambda weapons: weapons.binary),
    "pickles as pictures": pictures,
    "a pickle as tokenizer": tokenizer,
}


@pytest.mark.parametrize("plant", REFUSED.values(), ids=REFUSED)
def test_a_file_that_would_run_code_is_refused(plant: Hostile, tmp_path: Path) -> None:
    weapons = Weapons(tmp_path)
    (tmp_path / "source").mkdir()
    spec = plant(tmp_path / "source", weapons)
    with pytest.raises(ValueError) as error:
        make(spec, tmp_path)
    weapons.check_live()
    # The file, or the key that leads to it.
    assert str(tmp_path) in str(error.value) or "data.source" in str(error.value)
    assert not (tmp_path / "data").exists()


def hostile_rows(weapons: Weapons) -> list[str]:
    """Texts that a careless reader takes for orders."""
    touch = f"touch {weapons.mark}"
    return [
        weapons.text,
        f'{{"py/object/apply:os.system": ["{touch}"]}}',
        f'{{"__reduce__": ["os.system", ["{touch}"]]}}',
        f'!!python/object/apply:os.system ["{touch}"]',
        f"=cmd|' /C {touch}'!A0",
        f"$({touch}) `{touch}`",
        f'__import__("os").system("{touch}")',
        *(f"harmless {number}" for number in range(20)),
    ]


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "parquet"])
def test_text_that_reads_like_an_order_is_text(kind: str, tmp_path: Path) -> None:
    weapons = Weapons(tmp_path)
    rows = hostile_rows(weapons)
    folder = tmp_path / "source"
    folder.mkdir()
    source: Any = TextFiles(path=str(folder))
    if kind == "text":
        for number, row in enumerate(rows):
            (folder / f"{number}.txt").write_text(row, encoding="utf-8", newline="")
    else:
        path = folder / f"a.{kind}"
        source = RowFiles.model_validate({"kind": kind, "path": str(path)})
        if kind == "jsonl":
            orders = {"__reduce__": ["os.system", "true"], "py/object": "os.system"}
            written = (json.dumps({"text": row, **orders}) for row in rows)
            path.write_text("\n".join(written), encoding="utf-8")
        elif kind == "csv":
            with path.open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows([["text"], *([row] for row in rows)])
        else:
            metadata = {
                name: weapons.binary
                for name in (b"pandas", b"huggingface", b"ARROW:extension:metadata")
            }
            metadata[b"ARROW:extension:name"] = b"arrow.py_extension_type"
            field = pa.field("text", pa.string(), metadata=metadata)
            table = pa.table([rows], schema=pa.schema([field], metadata=metadata))
            pa.parquet.write_table(table, path)
    snapshot(source, out=tmp_path / "snapshot")
    lines = (tmp_path / "snapshot" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["text"] for line in lines) == sorted(rows)
    make(language(source), tmp_path)
    open_split(tmp_path / "data", "train", context=8)
    weapons.check_live()


@pytest.mark.parametrize("content", ["binary", "array", "checkpoint"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_pickle_by_the_name_of_a_shard_is_damage(
    content: str, signed: bool, tmp_path: Path
) -> None:
    """Also where its digest was put into a manifest that was sealed again."""
    weapons = Weapons(tmp_path)
    held = checkpoints(tmp_path / "run")
    for step in (1, 2):
        held.save(state(step), step=step, **ABOUT)
    folder = held.folder / "step-00000002"
    shard = "weights-000-00000.safetensors"
    (folder / shard).write_bytes(getattr(weapons, content))
    if signed:
        manifest = CheckpointManifest.read(folder / "manifest.json")
        files = tuple(
            FileDigest.of(folder, shard) if each.path == shard else each for each in manifest.files
        )
        changed = manifest.model_copy(update={"files": files})
        changed.model_copy(update={"seal": changed.expected_seal}).write(folder / "manifest.json")
    found = held.newest()
    assert found is not None and found.manifest.step == 1
    (event,) = held.events.read()
    assert event["event"] == "checkpoint_damaged" and shard in event["message"]
    weapons.check_live()
