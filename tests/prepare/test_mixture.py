"""Several sources with weights: their turns, their epochs, and samples that never mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.artifacts import DataManifest
from tasks.prepare.dataset import Rows, Texts, Windows, open_split
from tasks.prepare.order import Share, batch_indices, sample_indices
from tasks.prepare.spec import (
    ByteBpe,
    CutAnywhere,
    DataSpec,
    Language,
    Mixture,
    Packed,
    Padded,
    Part,
    SplitShares,
    TextClasses,
    TextFiles,
    TokenizerSpec,
)
from tasks.prepare.splits import SPLITS
from tests.prepare.conftest import make

SEEDS = st.integers(0, 2**32 - 1)
WEIGHTS = st.lists(st.floats(0.01, 10), min_size=2, max_size=5)


def shares_of(weights: list[float], counts: list[int]) -> tuple[Share, ...]:
    firsts = np.cumsum([0, *counts]).tolist()
    return tuple(map(Share, firsts, counts, weights))


def source_of(shares: tuple[Share, ...], index: int) -> int:
    return next(n for n, own in enumerate(shares) if own.first <= index < own.first + own.count)


@given(weights=WEIGHTS, seed=SEEDS, data=st.data())
def test_a_source_is_walked_exactly_once_before_it_is_walked_again(
    weights: list[float], seed: int, data: st.DataObject
) -> None:
    counts = [data.draw(st.integers(1, 30)) for _ in weights]
    shares = shares_of(weights, counts)
    walk = batch_indices(shares, seed=seed, step=0, batch=400)
    for share in shares:
        own = walk[(walk >= share.first) & (walk < share.first + share.count)]
        for start in range(0, len(own) - share.count + 1, share.count):
            epoch = own[start : start + share.count]
            assert sorted(epoch) == list(range(share.first, share.first + share.count))


@given(weights=WEIGHTS, seed=SEEDS, stop=st.integers(1, 2000))
def test_every_start_of_the_walk_has_the_asked_shares(
    weights: list[float], seed: int, stop: int
) -> None:
    shares = shares_of(weights, [7] * len(weights))
    walk = batch_indices(shares, seed=seed, step=0, batch=stop)
    for share in shares:
        own = ((walk >= share.first) & (walk < share.first + share.count)).sum()
        asked = stop * share.weight / sum(weights)
        # A weight is counted in 2**20 shares.
        assert abs(own - asked) < len(weights) + stop * len(weights) / 2**20


@given(seed=SEEDS, batch=st.integers(1, 40), steps=st.integers(1, 20))
def test_the_order_does_not_depend_on_the_batch(seed: int, batch: int, steps: int) -> None:
    shares = shares_of([1.0, 2.5, 0.3], [11, 3, 8])
    whole = batch_indices(shares, seed=seed, step=0, batch=batch * steps)
    parts = [batch_indices(shares, seed=seed, step=step, batch=batch) for step in range(steps)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_far_into_a_run_the_order_is_still_computed() -> None:
    shares = shares_of([1.0, 3.0], [1000, 50])
    late = batch_indices(shares, seed=3, step=2**32, batch=1000)
    assert sorted(np.bincount(late < 1000).tolist()) == [250, 750]
    with pytest.raises(ValueError, match=r"order of 2\*\*42 samples; got step="):
        batch_indices(shares, seed=3, step=2**42, batch=1000)


def test_sources_do_not_walk_in_step_and_seeds_differ() -> None:
    shares = shares_of([1.0, 1.0], [50, 50])
    walk = batch_indices(shares, seed=0, step=0, batch=100)
    assert not np.array_equal(walk[walk < 50], walk[walk >= 50] - 50)
    assert not np.array_equal(walk, batch_indices(shares, seed=1, step=0, batch=100))


def test_one_source_has_the_order_that_it_always_had() -> None:
    alone = batch_indices((Share(0, 1000, 7.0),), seed=42, step=3, batch=6)
    assert alone.tolist() == sample_indices(1000, seed=42, step=3, batch=6).tolist()


def test_the_order_of_a_mixture_never_changes() -> None:
    shares = shares_of([1.0, 3.0], [100, 40])
    order = batch_indices(shares, seed=42, step=3, batch=8)
    assert order.tolist() == [109, 101, 50, 116, 131, 123, 24, 137]


BPE: TokenizerSpec = ByteBpe(vocabulary=300)


def mixture_spec(folder: Path, task: Language | TextClasses) -> DataSpec:
    """Letters with weight 1, digits with weight 3, and some of the first again in the second."""
    for name, words in (("letters", "abcdefghij"), ("digits", "0123456789")):
        for number in range(60):
            file = folder / name / f"{words[number % 2]}" / f"{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            word = "".join(words[(number * place) % 10] for place in range(1, 9))
            file.write_text(f"{word}{words[number % 10]} " * (number % 7 + 2) + words[0] * number)
    (folder / "digits" / "0" / "copy.txt").write_bytes(
        (folder / "letters" / "a" / "0.txt").read_bytes()
    )
    label: Literal["folder"] | None = "folder" if task.kind == "text_classes" else None
    parts = tuple(
        Part(weight=weight, source=TextFiles(path=str(folder / name), label=label))
        for name, weight in (("letters", 1.0), ("digits", 3.0))
    )
    shares = SplitShares(validation=0.2, test=0.2)
    return DataSpec(source=Mixture(parts=parts), task=task, split=shares)


@pytest.mark.parametrize(
    "task",
    [
        Language(tokenizer=BPE, packing=CutAnywhere()),
        Language(tokenizer=BPE, packing=Packed(length=16)),
        Language(tokenizer=BPE, packing=Padded(length=16)),
        TextClasses(tokenizer=BPE),
    ],
    ids=["windows", "packed", "padded", "classes"],
)
def test_a_sample_is_of_one_source(task: Language | TextClasses, tmp_path: Path) -> None:
    manifest = make(mixture_spec(tmp_path / "files", task), tmp_path)
    assert manifest.parts is not None and [part.weight for part in manifest.parts] == [1.0, 3.0]
    tokenizer = json.loads((tmp_path / "data" / "tokenizer.json").read_text())
    spelled = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    for split in SPLITS:
        samples = open_split(tmp_path / "data", split, context=16)
        assert isinstance(samples, Windows | Rows | Texts)
        assert sum(share.count for share in samples.shares) == len(samples)
        batch = samples.read(np.arange(len(samples)))
        for index, row in enumerate(batch.inputs):
            letters = "".join(spelled[token] for token in row.tolist() if token)
            digits = any(letter.isdigit() for letter in letters)
            words = any(letter in "abcdefghij" for letter in letters)
            assert digits != words
            assert source_of(samples.shares, index) == int(digits)


def test_a_document_of_two_sources_is_kept_once(tmp_path: Path) -> None:
    make(mixture_spec(tmp_path / "files", Language(tokenizer=BPE)), tmp_path)
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert report["dropped"]["duplicates"] == ["0/copy.txt"]
    assert [part["weight"] for part in report["parts"]] == [1.0, 3.0]


def test_a_part_too_small_for_a_sample_is_refused(tmp_path: Path) -> None:
    spec = mixture_spec(tmp_path / "files", Language(tokenizer=BPE))
    make(spec, tmp_path)
    manifest = DataManifest.read(tmp_path / "data" / "manifest.json")
    assert manifest.parts is not None
    fewest = min(part.samples["train"] for part in manifest.parts)
    open_split(tmp_path / "data", "train", context=fewest - 1)
    with pytest.raises(ValueError, match=r"train split of data\.source\.parts\[\d\] must hold at"):
        open_split(tmp_path / "data", "train", context=fewest)


def test_impossible_mixtures_are_refused() -> None:
    parts = [
        {"weight": w, "source": {"kind": "text", "path": p}} for w, p in ((1.0, "a"), (1e-5, "b"))
    ]
    with pytest.raises(ValueError, match="at least a ten-thousandth of their sum.* for part 1"):
        Mixture.model_validate({"parts": tuple(parts)})
    with pytest.raises(ValueError, match="must name different sources"):
        Mixture.model_validate({"parts": (parts[0], parts[0])})
    with pytest.raises(ValueError, match="parts"):
        Mixture.model_validate({"parts": (parts[0],)})
