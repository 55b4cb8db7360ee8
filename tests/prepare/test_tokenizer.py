"""A tokenizer that is given: cuts text as it did, and does nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tasks.artifacts import DataManifest
from tasks.prepare.documents import TextDocuments, open_documents
from tasks.prepare.spec import DataSpec, GivenTokenizer, Language
from tasks.prepare.splits import SPLITS
from tasks.prepare.tokenizer import END_MARK, open_tokenizer
from tests.prepare.conftest import make, text_spec, texts

END = "<|endoftext|>"


def tokenizer_file(path: Path) -> Path:
    """Byte-level BPE with truncation, padding and a template, its end mark last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts()[:50], trainer)
    tokenizer.add_special_tokens([END])
    number = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A {END}", special_tokens=[(END, number)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9, pad_id=number, pad_token=END)
    tokenizer.save(str(path))
    return path


def given(corpus: Path, path: Path, **fields: Any) -> DataSpec:
    spec = text_spec(corpus)
    tokenizer = GivenTokenizer.model_validate({"path": str(path), "end": END} | fields)
    return spec.model_copy(update={"task": Language(tokenizer=tokenizer)})


def test_text_is_cut_as_before_and_the_end_mark_keeps_its_number(
    corpus: Path, tmp_path: Path
) -> None:
    path = tokenizer_file(tmp_path / "tokenizer.json")
    manifest = make(given(corpus, path), tmp_path)
    original = Tokenizer.from_file(str(path))
    original.no_truncation()
    original.no_padding()
    number = original.token_to_id(END)
    assert (manifest.end, manifest.vocabulary) == (number, 401)
    assert open_tokenizer(tmp_path / "data").token_to_id(END_MARK) == number
    for split in SPLITS:
        documents = open_documents(tmp_path / "data", split)
        assert isinstance(documents, TextDocuments)
        for row in range(len(documents)):
            text = documents.text(row).decode()
            own = original.encode(text, add_special_tokens=False).ids
            assert documents.tokens(row).tolist() == own
        stream = np.asarray(documents.token_stream[:])
        assert (stream == number).sum() == len(documents) and stream[-1] == number


def test_a_document_that_spells_the_end_mark_has_no_end_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for row in range(40):
        (folder / f"{row}.txt").write_text(f"{row}: {END} and {END_MARK} are words")
    make(given(folder, tokenizer_file(tmp_path / "tokenizer.json")), tmp_path)
    number = DataManifest.read(tmp_path / "data" / "manifest.json").end
    for split in SPLITS:
        documents = open_documents(tmp_path / "data", split)
        assert isinstance(documents, TextDocuments)
        for row in range(len(documents)):
            assert number not in documents.tokens(row)


def test_a_changed_tokenizer_outside_changes_nothing_until_the_next_snapshot(
    corpus: Path, tmp_path: Path
) -> None:
    path = tokenizer_file(tmp_path / "tokenizer.json")
    spec = given(corpus, path)
    first = make(spec, tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer.json"):
        make(spec, tmp_path / "again")
    assert DataManifest.read(tmp_path / "data" / "manifest.json") == first


def edit(**changes: Any) -> Callable[[Path], None]:
    def plant(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return plant


def lossy(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(path))


def silent(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizers.Replace("x", "")
    tokenizer.save(str(path))


@pytest.mark.parametrize(
    ("plant", "fields", "message"),
    [
        (lambda path: path.unlink(), {}, r"tokenizer\.path must name a tokenizer\.json; got"),
        (lambda path: path.write_bytes(b"\x80\x04pickle"), {}, r"is not a tokenizer\.json"),
        (edit(model={"vocab": {END: 0}, "type": "None"}), {}, r"is not a tokenizer\.json"),
        (edit(model=None), {}, r"is not a tokenizer\.json"),
        (lambda path: None, {"end": "</s>"}, r"tokenizer\.end must be a token .* got '</s>'"),
        (lossy, {}, r"does not give back .*txt as it was.* byte-level"),
        (silent, {}, r"makes no token of .*txt"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_one_clear_line(
    plant: Callable[[Path], None], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for row in range(40):
        content = "x" * (row + 1) if plant is silent else f"Text {row}"
        (folder / f"{row}.txt").write_text(content)
    path = tokenizer_file(tmp_path / "tokenizer.json")
    plant(path)
    with pytest.raises(ValueError, match=message) as error:
        make(given(folder, path, **fields), tmp_path)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "data").exists()
