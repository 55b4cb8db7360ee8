"""Arrays in shares: any number of workers writes them, any number reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.train import shards as module
from tasks.train.checkpoints import WEIGHTS, Checkpoints, Ledger
from tasks.train.shards import Share, check_cover, deal, join
from tests.train.bigram import checkpoints

ABOUT: dict[str, Any] = {
    "step": 5,
    "samples": 20,
    "backend": "flax",
    "workers": 2,
    "ledger": Ledger(),
}
MATRIX = np.arange(35, dtype=np.float32).reshape(5, 7)
CUBE = np.arange(24, dtype=np.float64).reshape(2, 3, 4)


def rectangle(name: str, array: NDArray[Any], *place: slice) -> Share:
    return Share(name, array.shape, tuple(span.start for span in place), array[place])


def stretch(name: str, array: NDArray[Any], low: int, high: int) -> Share:
    """A range of the flattened array, as ZeRO holds it."""
    return Share(name, array.shape, (low,), array.reshape(-1)[low:high])


# What three workers hold of the same arrays: cut along both axes, flat, and whole.
CUT: list[dict[str, list[Share]]] = [
    {
        WEIGHTS: [rectangle("matrix", MATRIX, slice(0, 2), slice(0, 7))],
        "momentum": [stretch("cube", CUBE, 0, 9)],
    },
    {
        WEIGHTS: [rectangle("matrix", MATRIX, slice(2, 5), slice(0, 3))],
        "momentum": [stretch("cube", CUBE, 9, 10)],
        "scale": [Share.whole("cube", np.asarray(2.0))],
    },
    {
        WEIGHTS: [
            rectangle("matrix", MATRIX, slice(2, 5), slice(3, 7)),
            Share.whole("cube", CUBE),
        ],
        "momentum": [stretch("cube", CUBE, 10, 24)],
    },
]


def save_together(held: Checkpoints, shares: list[dict[str, list[Share]]]) -> list[Exception]:
    """Save as so many workers at once; what went wrong."""
    failed: list[Exception] = []

    def write(rank: int) -> None:
        try:
            held.save_shares(shares[rank], rank=rank, writers=len(shares), **ABOUT)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def test_shares_of_several_workers_are_read_as_whole_arrays(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    assert save_together(held, CUT) == []
    found = held.newest()
    assert found is not None
    assert np.array_equal(found.state.weights["matrix"], MATRIX)
    assert np.array_equal(found.state.weights["cube"], CUBE)
    assert np.array_equal(found.state.slots["momentum"]["cube"], CUBE)
    assert found.state.slots["scale"]["cube"].shape == ()
    assert found.state.weights["matrix"].dtype == np.float32
    assert len(found.manifest.parts[WEIGHTS]) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000005"}


def lost(shares: list[Share]) -> list[Share]:
    return []


def doubled(shares: list[Share]) -> list[Share]:
    return [stretch("cube", CUBE, 8, 24)]


def short(shares: list[Share]) -> list[Share]:
    return [stretch("cube", CUBE, 10, 23)]


@pytest.mark.parametrize("mistake", [lost, doubled, short])
def test_shares_that_do_not_make_up_an_array_are_never_saved(
    tmp_path: Path, mistake: Callable[[list[Share]], list[Share]]
) -> None:
    held = checkpoints(tmp_path)
    bad = {**CUT[2], "momentum": mistake(CUT[2]["momentum"])}
    (error,) = save_together(held, [*CUT[:2], bad])
    assert isinstance(error, ValueError) and "cube" in str(error)
    assert held.steps() == []


def test_a_worker_whose_share_does_not_come_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    held = replace(checkpoints(tmp_path), patience_s=0.1)
    held.save_shares({WEIGHTS: [Share.whole("cube", CUBE)]}, **{**ABOUT, "step": 4})
    held.save_shares(CUT[1], rank=1, writers=3, **ABOUT)
    with pytest.raises(TimeoutError, match="worker 2 did not write its share of step 5"):
        held.save_shares(CUT[0], rank=0, writers=3, **ABOUT)
    assert held.steps() == [4]
    # The next start removes the shares that were left over.
    held.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000004"}


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 64),
)
def test_dealt_shares_make_up_the_arrays_for_any_number_of_workers(
    shapes: list[list[int]], workers: int, shard_bytes: int
) -> None:
    draw = np.random.default_rng(0)
    arrays = {str(n): draw.normal(size=shape) for n, shape in enumerate(shapes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_BYTES", shard_bytes)
        shares = [deal({"part": arrays}, rank=rank, workers=workers) for rank in range(workers)]
    held = [share for each in shares for share in each["part"]]
    whole = {share.name: share.shape for share in held if not share.is_whole}
    check_cover([share.key for share in held], whole)
    found = join(({share.key: share.values} for share in held), whole)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_the_bytes_are_dealt_evenly() -> None:
    arrays = {str(n): np.zeros((8, 8)) for n in range(64)}
    shares = [deal({"part": arrays}, rank=rank, workers=4)["part"] for rank in range(4)]
    assert [len(each) for each in shares] == [16, 16, 16, 16]
