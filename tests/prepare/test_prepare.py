"""What `prepare` makes of a snapshot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.record import digest_of_file
from tasks.artifacts import DataManifest, SnapshotManifest, SplitName
from tasks.prepare import prepare
from tasks.prepare.documents import ArrayDocuments, TextDocuments, open_documents
from tasks.prepare.spec import (
    END_TOKEN,
    ByteBpe,
    DataSpec,
    Digits,
    ImageClasses,
    Language,
    SplitShares,
    StandardLibrary,
)
from tasks.prepare.splits import SPLITS, split_of
from tasks.prepare.tokenizer import open_tokenizer
from tasks.snapshot import snapshot
from tests.prepare.conftest import make, text_spec, texts


def documents_of(folder: Path, split: SplitName) -> TextDocuments:
    """The text documents of one split."""
    documents = open_documents(folder, split)
    assert isinstance(documents, TextDocuments)
    return documents


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder with its SHA-256."""
    return {
        file.relative_to(folder).as_posix(): digest_of_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def write_texts(folder: Path, contents: list[str]) -> Path:
    """One file for each text."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"{number:04}.txt").write_bytes(content.encode())
    return folder


def test_every_byte_round_trips(prepared: Path) -> None:
    tokenizer = open_tokenizer(prepared)
    seen = []
    for split in SPLITS:
        documents = documents_of(prepared, split)
        for index in range(len(documents)):
            tokens = documents.tokens(index)
            assert END_TOKEN not in tokens
            decoded = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
            assert decoded.encode() == documents.text(index)
            seen.append(decoded)
    assert sorted(seen) == sorted(texts())


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_unseen_text_round_trips(prepared: Path, text: str) -> None:
    tokenizer = open_tokenizer(prepared)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert END_TOKEN not in tokens
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text


def test_the_stream_is_documents_and_end_marks(prepared: Path) -> None:
    for split in SPLITS:
        documents = documents_of(prepared, split)
        parts = [[*documents.tokens(index), END_TOKEN] for index in range(len(documents))]
        assert np.array_equal(documents.token_stream[:], np.concatenate(parts))
        assert documents.token_stream.dtype == np.uint16


def test_no_document_is_in_two_splits_and_none_is_lost(prepared: Path) -> None:
    found = Counter(
        documents.text(index)
        for split in SPLITS
        for documents in [documents_of(prepared, split)]
        for index in range(len(documents))
    )
    assert found == Counter(text.encode() for text in texts())


def test_a_document_is_known_by_its_content(prepared: Path) -> None:
    for split in SPLITS:
        documents = documents_of(prepared, split)
        for index, document in enumerate(documents.documents):
            content = documents.text(index)
            assert document.id == hashlib.sha256(content).hexdigest()
            assert document.size_bytes == len(content)
            assert document.tokens == len(documents.tokens(index))


def test_more_documents_never_move_one_to_another_split(tmp_path: Path, prepared: Path) -> None:
    third = write_texts(tmp_path / "third", texts()[::-3])
    make(text_spec(third), tmp_path)
    for split in SPLITS:
        ids = {document.id for document in documents_of(tmp_path / "data", split).documents}
        assert ids < {document.id for document in documents_of(prepared, split).documents}


def test_the_tokenizer_never_sees_validation_or_test(tmp_path: Path) -> None:
    shares = SplitShares(validation=0.2, test=0.2)
    others = [
        text
        for number in range(400)
        if split_of(hashlib.sha256((text := f"zebraword {number}").encode()).digest(), shares)
        != "train"
    ]
    folder = write_texts(tmp_path / "texts", [*texts(), *others])
    make(text_spec(folder, vocabulary=2000), tmp_path)
    assert not any("zeb" in token for token in open_tokenizer(tmp_path / "data").get_vocab())


@given(st.data())
def test_split_shares_are_near_the_asked_ones(data: st.DataObject) -> None:
    test = data.draw(st.floats(0.01, 0.6))
    validation = data.draw(st.floats(0.01, 0.98 - test))
    shares = SplitShares(validation=validation, test=test)
    start = data.draw(st.integers(0, 10**9))
    identities = [hashlib.sha256(b"%d" % (start + number)).digest() for number in range(2000)]
    counts = Counter(split_of(identity, shares) for identity in identities)
    # Six deviations of a binomial with 2,000 draws.
    assert abs(counts["test"] / 2000 - test) < 6 * 0.5 / 2000**0.5
    assert abs(counts["validation"] / 2000 - validation) < 6 * 0.5 / 2000**0.5


def test_empty_and_repeated_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts", [*texts(), "", "", texts()[0], *texts()[50:60]])
    manifest = make(text_spec(folder), tmp_path)
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert report["documents"] == {
        "found": 313,
        "empty": 2,
        "duplicates": 11,
        "duplicates_of_another_class": 0,
        "kept": 300,
    }
    assert sum(split.documents for split in manifest.splits.values()) == 300
    for split in SPLITS:
        lengths = report["splits"][split]["bytes_at_most"]
        assert sum(lengths.values()) == manifest.splits[split].documents


def test_counts_in_the_manifest_are_those_of_the_files(prepared: Path) -> None:
    manifest = DataManifest.read(prepared / "manifest.json")
    assert manifest.kind == "tokens"
    assert manifest.vocabulary == open_tokenizer(prepared).get_vocab_size() == 320
    for split in SPLITS:
        documents = documents_of(prepared, split)
        counts = manifest.splits[split]
        assert counts.documents == len(documents)
        assert counts.samples == len(documents.token_stream)
        assert counts.size_bytes == len(documents.text_stream)
    listed = {file.path for file in manifest.files}
    assert listed == {file.name for file in prepared.iterdir()} - {"manifest.json", "report.html"}


def test_the_manifest_names_its_snapshot(prepared: Path) -> None:
    taken = SnapshotManifest.read(prepared.parent / "snapshot" / "manifest.json")
    assert DataManifest.read(prepared / "manifest.json").snapshot == taken.digest


def test_equal_input_gives_equal_bytes_in_another_process(prepared: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tasks.prepare import prepare\n"
        "from tasks.prepare.spec import DataSpec\n"
        "spec = DataSpec.model_validate_json(sys.argv[1])\n"
        "prepare(spec, snapshot=Path(sys.argv[2]), out=Path(sys.argv[3]))\n"
    )
    spec = text_spec(tmp_path).model_dump_json()
    snapshot_folder = str(prepared.parent / "snapshot")
    subprocess.run(
        [sys.executable, "-c", program, spec, snapshot_folder, str(tmp_path / "again")], check=True
    )
    assert digests(tmp_path / "again") == digests(prepared)


def test_no_file_names_a_place_of_this_machine(prepared: Path, corpus: Path) -> None:
    for folder in (prepared, prepared.parent / "snapshot"):
        for file in folder.iterdir():
            assert str(corpus.parent).encode() not in file.read_bytes()


def test_digits_keep_their_pixels_and_classes(digits: Path) -> None:
    manifest = DataManifest.read(digits / "manifest.json")
    assert manifest.kind == "images"
    assert manifest.shape == (8, 8, 1)
    assert manifest.classes == tuple("0123456789")
    assert manifest.vocabulary is None
    assert sum(split.documents for split in manifest.splits.values()) == 1797
    for split in SPLITS:
        images = open_documents(digits, split)
        assert isinstance(images, ArrayDocuments)
        pixels = images.samples.read(np.arange(len(images))).inputs
        assert pixels.dtype == np.float32
        assert pixels.min() == 0 and pixels.max() == 1
        assert set(images.labels.tolist()) == set(range(10))
        for document, label in zip(images.documents, images.labels, strict=True):
            assert document.slice == manifest.classes[label]


def test_images_never_leak(digits: Path) -> None:
    ids = [d.id for split in SPLITS for d in open_documents(digits, split).documents]
    assert len(ids) == len(set(ids))


def test_a_split_without_a_document_is_refused(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts", ["one", "two", "three"])
    with pytest.raises(ValueError, match=r"(train|validation|test) got none of 3 with a share"):
        make(text_spec(folder), tmp_path)
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_failed_run_leaves_the_last_good_data(
    prepared: Path, tmp_path: Path, copy_of: Callable[[Path], Path]
) -> None:
    out = copy_of(prepared)
    few = write_texts(tmp_path / "texts", ["one", "two", "three"])
    spec = text_spec(few)
    snapshot(spec.source, out=tmp_path / "snapshot")
    with pytest.raises(ValueError, match="got none of 3"):
        prepare(spec, snapshot=tmp_path / "snapshot", out=out)
    assert digests(out) == digests(prepared)


@pytest.mark.parametrize("file", ["documents.jsonl", "manifest.json"])
def test_a_missing_snapshot_file_is_named(
    file: str, prepared: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    taken = copy_of(prepared.parent / "snapshot")
    (taken / file).unlink()
    with pytest.raises(ValueError, match=f"{file} is missing"):
        prepare(text_spec(tmp_path), snapshot=taken, out=tmp_path / "out")


def test_a_flipped_byte_in_the_snapshot_is_refused(
    prepared: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    taken = copy_of(prepared.parent / "snapshot")
    file = taken / "documents.jsonl"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="documents.jsonl is damaged"):
        prepare(text_spec(tmp_path), snapshot=taken, out=tmp_path / "out")


def test_a_snapshot_of_another_kind_is_refused(prepared: Path, tmp_path: Path) -> None:
    spec = DataSpec(source=Digits(), task=ImageClasses())
    with pytest.raises(ValueError, match="source.kind=digits and the snapshot must fit"):
        prepare(spec, snapshot=prepared.parent / "snapshot", out=tmp_path / "out")


def test_progress_reaches_its_total(prepared: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    taken = prepared.parent / "snapshot"

    def note(done: int, total: int, note: str = "") -> None:
        calls.append((done, total))

    prepare(text_spec(tmp_path), snapshot=taken, out=tmp_path / "out", progress=note)
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
    assert len({total for _, total in calls}) == 1


@pytest.mark.slow
def test_the_standard_library_is_prepared(tmp_path: Path) -> None:
    spec = DataSpec(source=StandardLibrary(), task=Language(tokenizer=ByteBpe(vocabulary=4096)))
    manifest = make(spec, tmp_path)
    assert manifest.vocabulary == 4096
    assert sum(split.size_bytes for split in manifest.splits.values()) > 5e6
    test = documents_of(tmp_path / "data", "test")
    assert len({document.slice for document in test.documents}) > 5
    # Merges pay: a token stands for more than two bytes of text that the tokenizer never saw.
    assert len(test.text_stream) / len(test.token_stream) > 2
