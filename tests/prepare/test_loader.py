"""The loader is fast, needs little memory, reads streams in several files, and trusts nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.record import FileDigest
from tasks.artifacts import DataManifest, LengthOrder
from tasks.prepare.arrays import Shards, StreamWriter, open_stream
from tasks.prepare.by_length import ByLength
from tasks.prepare.dataset import Rows, Samples, Texts, Windows, open_split
from tasks.prepare.documents import TextDocuments, open_documents
from tasks.prepare.draw import draw
from tasks.prepare.packing import rows_of
from tasks.prepare.splits import SPLITS, Sorter
from tasks.prepare.snapshots import verified_snapshot
from tasks.prepare.text import write_text
from tasks.progress import silent
from tests.prepare.conftest import text_spec

# What training consumes on two cores without a GPU, in tokens a second, and ten times that.
NEEDED = 10 * 20_000
CONTEXT = 256


def stream(tokens: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.random.default_rng(0).integers(1, 4096, tokens).astype(np.uint16)


def windows() -> Samples:
    return Windows(stream(2**21), CONTEXT)


def shards() -> Samples:
    parts = tuple(np.split(stream(2**21), 4))
    return Windows(Shards(parts, np.cumsum([len(part) for part in parts])), CONTEXT)


def packed() -> Samples:
    sizes = np.random.default_rng(1).integers(2, 200, 20_000)
    index = rows_of(sizes, start=0, length=CONTEXT, several=True)
    return Rows(stream(int(sizes.sum())), index, CONTEXT, 0)


def texts() -> Samples:
    starts = np.arange(4001) * 300
    return Texts(stream(4000 * 300), starts, np.zeros(4000, np.int32), CONTEXT, 0)


def by_length() -> Samples:
    held = texts()
    assert isinstance(held, Texts)
    return ByLength.of(held, LengthOrder(batches=32, lengths=4))


@pytest.mark.parametrize("make", [windows, shards, packed, texts, by_length])
def test_batches_come_ten_times_faster_than_training_takes_them(
    make: Callable[[], Samples],
) -> None:
    samples = make()
    began = time.perf_counter()
    for step in range(100):
        drawn = draw(samples, seed=0, step=step, batch=8)
        drawn.samples.read(drawn.indices)
    assert 100 * 8 * CONTEXT / (time.perf_counter() - began) > NEEDED


LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from tasks.prepare.arrays import open_stream
from tasks.artifacts import LengthOrder
from tasks.prepare.by_length import ByLength
from tasks.prepare.dataset import Rows, Texts, Windows
from tasks.prepare.draw import draw
from tasks.prepare.packing import RowIndex

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
folder = Path(sys.argv[1])
tokens = open_stream(folder, "tokens", sorted(f.name for f in folder.iterdir()))
starts = np.linspace(0, len(tokens), 10_001).astype(np.int64)
pieces = np.stack([starts[:-1], np.full(10_000, 256), np.ones(10_000, np.int64)], axis=1)
texts = Texts(tokens, starts, np.zeros(10_000, np.int32), 256, 0)
for samples in (
    Windows(tokens, 256),
    Rows(tokens, RowIndex(pieces, np.arange(10_001)), 256, 0),
    ByLength.of(texts, LengthOrder(batches=32, lengths=4)),
):
    for step in range(20):
        drawn = draw(samples, seed=0, step=step, batch=16)
        assert drawn.samples.read(drawn.indices).inputs.shape == (16, 256)
print(len(tokens) * 2)
try:
    # What a loader that reads its file would do: the limit is a real one.
    np.array(tokens[: limit // 2 + 1])
except MemoryError:
    print("limited")
"""


@pytest.mark.parametrize("files", [1, 3])
def test_data_larger_than_memory_is_read_under_a_limit(files: int, tmp_path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = 2**29
    each = (memory // files) // 2 * 2 + 2**20
    for number in range(files):
        name = f"tokens.{number}" if number else "tokens"
        with StreamWriter(tmp_path, name, np.uint16):
            pass
        path = tmp_path / f"{name}.npy"
        # Sparse: it takes no room on the disk, and its pages read as zeros.
        header = path.read_bytes()
        count = f"({each // 2},)"
        text = header.decode("latin-1").replace("(0,)", count)
        kept = text.rstrip("\n")[: len(header) - 1].ljust(len(header) - 1)[: len(header) - 1]
        path.write_bytes((kept + "\n").encode("latin-1"))
        os.truncate(path, len(header) + each)
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(limit)],
        check=True,
        capture_output=True,
        text=True,
    )
    size, limited = result.stdout.split()
    assert int(size) > memory > limit and limited == "limited"


@given(sizes=st.lists(st.integers(0, 30), max_size=8), most=st.integers(1, 20), data=st.data())
def test_a_stream_in_several_files_reads_as_one(
    sizes: list[int], most: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    whole = np.arange(sum(sizes), dtype=np.uint16)
    with StreamWriter(folder, "tokens", np.uint16, shard_bytes=2 * most) as writer:
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            writer.append(whole[end - size : end])
    assert writer.rows == len(whole)
    assert len(writer.files) == max(1, -(-len(whole) // most))
    assert all((folder / file).stat().st_size <= 128 + 2 * most for file in writer.files)
    found = open_stream(folder, "tokens", writer.files)
    assert len(found) == len(whole) and found.dtype == np.uint16
    assert np.array_equal(found[:], whole)
    if len(whole):
        places = data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=4, max_size=4))
        wanted = np.array(places).reshape(2, 2)
        assert np.array_equal(found[wanted], whole[wanted])
        assert np.array_equal(found[places[0] : places[1]], whole[places[0] : places[1]])
        assert found[places[0]] == whole[places[0]]


@pytest.fixture(scope="module")
def in_shards(prepared: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared corpus with streams in files of at most 1000 bytes; read only."""
    folder = tmp_path_factory.mktemp("shards")
    spec = text_spec(corpus)
    assert spec.task.kind == "language"
    taken = prepared.parent / "snapshot"
    written = write_text(
        spec.task,
        Sorter(spec.split),
        verified_snapshot(taken),
        weights=[1.0],
        snapshot=taken,
        out=folder,
        progress=silent,
        shard_bytes=1000,
    )
    files = tuple(FileDigest.of(folder, file) for file in written.files)
    manifest = DataManifest.read(prepared / "manifest.json").model_copy(update={"files": files})
    manifest.write(folder / "manifest.json")
    return folder


def test_a_large_split_goes_on_in_more_files_with_the_same_samples(
    in_shards: Path, prepared: Path
) -> None:
    for split in SPLITS:
        assert len(list(in_shards.glob(f"{split}.tokens*.npy"))) > 3
        one, many = (open_split(folder, split, context=32) for folder in (prepared, in_shards))
        assert len(one) == len(many)
        whole = np.arange(len(one))
        assert np.array_equal(one.read(whole).inputs, many.read(whole).inputs)
        documents, others = (open_documents(folder, split) for folder in (prepared, in_shards))
        assert isinstance(documents, TextDocuments) and isinstance(others, TextDocuments)
        for row in range(len(documents)):
            assert np.array_equal(documents.tokens(row), others.tokens(row))


def test_a_flipped_byte_in_any_file_is_refused_before_a_batch(
    in_shards: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(in_shards)
    for path in sorted(folder.glob("train.*")):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        path.write_bytes(flipped)
        # As a cache leaves it: what cannot be written can still be wrong.
        path.chmod(0o444)
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            open_split(folder, "train", context=32)
        path.chmod(0o644)
        path.write_bytes(content)
    open_split(folder, "train", context=32)
