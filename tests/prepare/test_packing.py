"""Documents in rows: every target once, no document cut that fits, little waste."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.inputs import IGNORED
from tasks.artifacts import DataManifest
from tasks.prepare.dataset import Rows, open_split
from tasks.prepare.packing import best_fit, joined, rows_of
from tasks.prepare.spec import DataSpec, Language, Packed, Padded, StandardLibrary
from tasks.prepare.splits import SPLITS
from tests.prepare.conftest import make, text_spec

END = 0
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def stream_of(sizes: list[int]) -> NDArray[np.uint16]:
    """Documents of different tokens; the last of each is the end mark."""
    ends = np.cumsum(sizes) - 1
    stream = np.arange(1, sum(sizes) + 1)
    stream[ends] = END
    return stream.astype(np.uint16)


def rows_in(sizes: list[int], *, length: int, several: bool) -> Rows:
    index = rows_of(np.array(sizes), start=0, length=length, several=several)
    return Rows(stream_of(sizes), index, length, END)


@given(sizes=SIZES, length=st.integers(2, 32), several=st.booleans())
def test_every_token_is_a_target_once_unless_it_begins_a_later_piece_behind_another(
    sizes: list[int], length: int, several: bool
) -> None:
    rows = rows_in(sizes, length=length, several=several)
    batch = rows.read(np.arange(len(rows)))
    scored = batch.targets[batch.targets != IGNORED]
    found = np.bincount(scored, minlength=sum(sizes) + 1)
    assert found[0] == len(sizes) or several and found[0] <= len(sizes)
    assert found[1:].max(initial=0) <= 1
    left_out = sum(sizes) - len(scored)
    # Only the first token of a piece that goes on with a document, behind another piece.
    assert left_out <= sum((size - 1) // length for size in sizes)
    if not several:
        assert left_out == 0
    assert rows.index.waste(length) == pytest.approx(1 - len(scored) / batch.targets.size)


@given(sizes=SIZES, length=st.integers(2, 32), several=st.booleans())
def test_a_row_holds_whole_documents_behind_end_marks(
    sizes: list[int], length: int, several: bool
) -> None:
    rows = rows_in(sizes, length=length, several=several)
    batch = rows.read(np.arange(len(rows)))
    stream = rows.tokens
    assert batch.lengths is not None
    for inputs, targets, used, first, last in zip(
        batch.inputs,
        batch.targets,
        batch.lengths,
        rows.index.rows,
        rows.index.rows[1:],
        strict=False,
    ):
        assert 1 <= used <= length
        assert (inputs[used:] == END).all() and (targets[used:] == IGNORED).all()
        place = 0
        for number, (start, count, begins) in enumerate(rows.index.pieces[first:last]):
            own = stream[start : start + count]
            assert inputs[place + 1 : place + count].tolist() == own[:-1].tolist()
            assert targets[place + 1 : place + count].tolist() == own[1:].tolist()
            # What stands before a piece is its own document's token or an end mark.
            if begins or number:
                assert inputs[place] == END
            else:
                assert inputs[place] == stream[start - 1]
            assert targets[place] == (own[0] if begins or not number else IGNORED)
            place += count
        assert place == used
    # A document that fits into a row is in one piece.
    ends = np.cumsum(sizes)
    for size, start in zip(sizes, ends - sizes, strict=True):
        own = rows.index.pieces[(rows.index.pieces[:, 0] >= start)]
        pieces = own[own[:, 0] < start + size]
        assert len(pieces) == -(-size // length)
        assert pieces[:, 1].sum() == size


@given(sizes=st.lists(st.integers(1, 20), max_size=60), capacity=st.integers(20, 40))
def test_no_row_overflows_and_no_two_rows_would_fit_into_one(
    sizes: list[int], capacity: int
) -> None:
    rows = best_fit(np.array(sizes, np.int64), capacity)
    filled = np.bincount(rows, weights=sizes) if sizes else np.zeros(0)
    assert (filled <= capacity).all()
    if len(filled) > 1:
        two = np.sort(filled)[:2].sum()
        assert two > capacity


def test_a_piece_goes_into_the_fullest_row_with_room_for_it() -> None:
    # 4 fills the row of 6, though the row of 5 has more room.
    assert best_fit(np.array([4, 6, 5, 3, 2]), 10).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("length", [128, 512, 2048])
def test_packing_wastes_less_than_a_fiftieth_on_documents_of_many_lengths(length: int) -> None:
    sizes = np.random.default_rng(0).lognormal(5.5, 1.2, 3000).astype(np.int64) + 1
    packed = rows_of(sizes, start=0, length=length, several=True).waste(length)
    padded = rows_of(sizes, start=0, length=length, several=False).waste(length)
    assert packed < 0.02 < padded


def test_parts_are_packed_apart_and_joined() -> None:
    first = rows_of(np.array([3, 5]), start=0, length=8, several=True)
    second = rows_of(np.array([4, 9]), start=8, length=8, several=True)
    both = joined([first, second])
    assert (len(first), len(second), len(both)) == (1, 2, 3)
    for row, own in ((0, first), (1, second)):
        start, stop = both.rows[row], both.rows[row + 1]
        assert both.pieces[start:stop].tolist() == own.pieces[: own.rows[1]].tolist()


@pytest.mark.parametrize("packing", [Packed(length=64), Padded(length=64)])
def test_a_prepared_data_set_has_rows(
    corpus: Path, tmp_path: Path, packing: Packed | Padded
) -> None:
    spec = text_spec(corpus)
    assert isinstance(spec.task, Language)
    task = spec.task.model_copy(update={"packing": packing})
    manifest = make(spec.model_copy(update={"task": task}), tmp_path)
    assert manifest.rows is not None and manifest.rows.several == (packing.kind == "packed")
    for split in SPLITS:
        rows = open_split(tmp_path / "data", split, context=100)
        assert isinstance(rows, Rows)
        batch = rows.read(np.arange(len(rows)))
        assert batch.inputs.shape == (len(rows), 64)
        unfilled = (batch.targets == IGNORED).mean()
        assert manifest.rows.waste[split] == pytest.approx(unfilled)
        scored = int((batch.targets != IGNORED).sum())
        assert scored <= manifest.splits[split].samples
        if packing.kind == "padded":
            assert scored == manifest.splits[split].samples


@pytest.mark.slow
def test_the_standard_library_is_packed_with_little_waste(tmp_path: Path) -> None:
    spec = text_spec(tmp_path, vocabulary=2048)
    assert isinstance(spec.task, Language)
    task = spec.task.model_copy(update={"packing": Packed(length=256)})
    make(DataSpec(source=StandardLibrary(), task=task), tmp_path)
    manifest = DataManifest.read(tmp_path / "data" / "manifest.json")
    assert manifest.rows is not None
    assert max(manifest.rows.waste.values()) < 0.02
