"""Tokenizers: byte-level BPE (Sennrich et al. 2016) trained here, or one that is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.record import verify_files
from models.store import TOKENIZER
from tasks.artifacts import DataManifest
from tasks.prepare.spec import ByteBpe, GivenTokenizer

END_MARK = "<|end|>"


def train_tokenizer(spec: ByteBpe, texts: Iterator[str]) -> Tokenizer:
    """Learn merges from the training documents; equal texts give an equal tokenizer.

    The vocabulary is the end mark, the 256 bytes, and merges up to `spec.vocabulary`; a small
    corpus may give fewer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocabulary,
        special_tokens=[END_MARK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _plain(tokenizer)


def adopt_tokenizer(spec: GivenTokenizer, path: Path) -> Tokenizer:
    """A given tokenizer that cuts text and does nothing else.

    Truncation would drop text in silence, and padding and templates would add tokens, so they are
    left out. The token that ends a document keeps its number and is renamed to `END_MARK`, which
    evaluation and serving look for. The file is JSON and nothing in it is executed.

    Args:
        path: the copy in the snapshot, verified.

    Raises:
        ValueError: the file is no tokenizer, or has no such token.
    """
    try:
        content = json.loads(path.read_bytes())
        vocabulary, added = content["model"]["vocab"], content.setdefault("added_tokens", [])
        names = {token["content"]: token["id"] for token in added}
        for number, entry in enumerate(vocabulary):
            name = entry if isinstance(entry, str) else entry[0]
            names[name] = vocabulary[name] if isinstance(vocabulary, dict) else number
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"data.task.tokenizer.path={spec.path} is not a tokenizer.json: {error!r}."
        ) from None
    if spec.end not in names:
        raise ValueError(
            f"data.task.tokenizer.end must be a token of {spec.path}; got {spec.end!r}, which is "
            f"none of its {len(names)}."
        )
    if spec.end != END_MARK and END_MARK in names:
        raise ValueError(
            f"data.task.tokenizer.end must be {END_MARK}, which {spec.path} has; got {spec.end!r}."
        )
    _rename(content, spec.end, names[spec.end])
    content |= {"truncation": None, "padding": None, "post_processor": None}
    try:
        return _plain(Tokenizer.from_str(json.dumps(content)))
    # The library raises nothing more special.
    except Exception as error:
        raise ValueError(
            f"data.task.tokenizer.path={spec.path} is not a tokenizer.json: {error}."
        ) from None


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a prepared data set, verified first.

    Raises:
        ValueError: the file is missing or damaged, or the data set has no tokenizer.
    """
    manifest = DataManifest.read(folder / "manifest.json")
    files = tuple(file for file in manifest.files if file.path == TOKENIZER)
    if not files:
        raise ValueError(f"{folder} holds {manifest.kind}, which need no tokenizer.")
    verify_files(folder, files)
    return read_tokenizer(folder / TOKENIZER)


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer file that was verified before, of a data set or of a model."""
    return _plain(Tokenizer.from_file(str(path)))


def _rename(content: dict[str, Any], end: str, number: int) -> None:
    """Call token `number` the end mark, in the vocabulary and among the special tokens."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        content["model"]["vocab"] = {
            END_MARK if name == end else name: place for name, place in vocabulary.items()
        }
    else:
        for entry in vocabulary:
            entry[0] = END_MARK if entry[0] == end else entry[0]
    kept = [token for token in content["added_tokens"] if token["content"] != end]
    mark = {
        "id": number,
        "content": END_MARK,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    content["added_tokens"] = sorted([*kept, mark], key=lambda token: int(token["id"]))


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    # A document that spells out the end mark means the characters, never the token. The file
    # does not keep this setting.
    tokenizer.encode_special_tokens = True
    return tokenizer
