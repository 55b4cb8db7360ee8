"""Batches of samples of about one length: the same law of the order, and less padding."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optim.controls import Controls
from tasks.artifacts import LengthOrder
from tasks.prepare.batch import Batch
from tasks.prepare.by_length import ByLength, Ragged, few_lengths
from tasks.prepare.dataset import Rows, Sequences, Texts, open_split
from tasks.prepare.draw import draw
from tasks.prepare.order import indices_by_length, sample_indices
from tasks.prepare.packing import rows_of
from tasks.prepare.spec import DataSpec, Language, Padded, SortedByLength
from tasks.train.engine import LossSum, StepResult
from tasks.train.loop import Seat, run_loop
from tasks.train.stopping import Stopping
from tests.prepare.conftest import make, text_spec
from tests.train.bigram import OPTIM, TRAIN, Bigram, checkpoints

SEEDS = st.integers(0, 2**32 - 1)
END = 0


def text_like(count: int, *, context: int = 512) -> NDArray[np.int64]:
    """Lengths of short texts: half of them below 100 tokens, one in a hundred cut."""
    drawn = np.random.default_rng(0).lognormal(4.6, 0.7, count).astype(np.int64) + 1
    return drawn.clip(max=context)


def texts(lengths: NDArray[np.int64], *, context: int = 512) -> Texts:
    """Documents of these lengths, each with its end mark."""
    starts = np.concatenate([[0], np.cumsum(lengths + 1)])
    tokens = np.random.default_rng(1).integers(1, 300, starts[-1]).astype(np.uint16)
    return Texts(tokens, starts, (np.arange(len(lengths)) % 2).astype(np.int32), context, END)


def rows(lengths: NDArray[np.int64], *, context: int = 512) -> Rows:
    index = rows_of(lengths, start=0, length=context, several=False)
    tokens = np.random.default_rng(1).integers(1, 300, lengths.sum()).astype(np.uint16)
    return Rows(tokens, index, context, END)


def sequences(lengths: NDArray[np.int64]) -> Sequences:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    frames = np.random.default_rng(1).random((starts[-1], 4), np.float32)
    labels = (np.arange(len(lengths)) % 2).astype(np.int32)
    return Sequences(frames, starts, labels, int(lengths.max()))


def ordered(samples: Ragged, *, batches: int = 32, lengths: int = 4) -> ByLength:
    return ByLength.of(samples, LengthOrder(batches=batches, lengths=lengths))


def step_of(
    lengths: NDArray[np.int64], *, seed: int, step: int, batch: int, together: int
) -> NDArray[np.int64]:
    return indices_by_length(
        len(lengths),
        lengths=lengths.__getitem__,
        seed=seed,
        step=step,
        batch=batch,
        together=together,
    )


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=80),
    seed=SEEDS,
    batch=st.integers(1, 90),
    together=st.integers(2, 9),
)
@settings(max_examples=60)
def test_each_sample_comes_exactly_once_per_epoch(
    lengths: list[int], seed: int, batch: int, together: int
) -> None:
    held, count = np.array(lengths), len(lengths)
    steps = -(-3 * count // batch)
    order = np.concatenate(
        [step_of(held, seed=seed, step=n, batch=batch, together=together) for n in range(steps)]
    )
    for epoch in order[: 3 * count].reshape(3, count):
        assert np.array_equal(np.sort(epoch), np.arange(count))


@given(seed=SEEDS, step=st.integers(0, 2**20), batch=st.integers(1, 64))
@settings(max_examples=40)
def test_a_window_holds_the_samples_of_the_shuffled_walk(seed: int, step: int, batch: int) -> None:
    held, together = text_like(2000), 5
    first = step * together
    ours = [
        step_of(held, seed=seed, step=first + n, batch=batch, together=together)
        for n in range(together)
    ]
    theirs = [sample_indices(2000, seed=seed, step=first + n, batch=batch) for n in range(together)]
    assert sorted(np.concatenate(ours)) == sorted(np.concatenate(theirs))
    # Whichever two steps of a window: all of one are at most as long as all of the other.
    if first * batch // 2000 == ((first + together) * batch - 1) // 2000:
        for one, other in itertools.combinations([held[own] for own in ours], 2):
            assert one.max() <= other.min() or other.max() <= one.min()


def test_short_and_long_batches_come_in_an_order_that_is_drawn() -> None:
    held = text_like(32 * 8 * 60)
    mean = [
        held[step_of(held, seed=0, step=step, batch=8, together=32)].mean()
        for step in range(32 * 60)
    ]
    places = np.argsort(np.argsort(np.array(mean).reshape(60, 32), axis=1), axis=1)
    # Each place of a window expects the mean rank 15.5 with deviation 9.2 / sqrt(60) = 1.2.
    assert abs(places.mean(axis=0) - 15.5).max() < 5 * 1.2
    assert len({tuple(window) for window in places.tolist()}) == 60


def test_epochs_and_seeds_have_batches_of_their_own() -> None:
    held = text_like(1024)

    def batches(seed: int, epoch: int) -> set[tuple[int, ...]]:
        steps = range(epoch * 64, (epoch + 1) * 64)
        found = (step_of(held, seed=seed, step=n, batch=16, together=8) for n in steps)
        return {tuple(sorted(own.tolist())) for own in found}

    assert not batches(0, 0) & batches(0, 1)
    assert not batches(0, 0) & batches(1, 0)


def test_the_order_never_changes() -> None:
    # A resume on a newer version goes on in the old order.
    order = step_of(text_like(1000), seed=42, step=31, batch=6, together=8)
    assert order.tolist() == [108, 278, 663, 178, 339, 557]


def test_memory_does_not_grow_with_the_data() -> None:
    tracemalloc.start()
    indices_by_length(2**32, lengths=lambda own: own % 512, seed=0, step=7, batch=16, together=32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30), most=st.integers(1, 4))
def test_no_other_few_lengths_leave_less_padding(lengths: list[int], most: int) -> None:
    def places(cuts: NDArray[np.int64]) -> int:
        return int(cuts[np.searchsorted(cuts, lengths)].sum())

    found = few_lengths(np.bincount(lengths), most=most)
    assert len(found) <= most and found[-1] == max(lengths)
    others = itertools.combinations(range(1, max(lengths)), min(most, max(lengths)) - 1)
    best = min(places(np.array([*other, max(lengths)])) for other in others)
    assert places(found) == best


def padded(samples: ByLength, *, batch: int, steps: int) -> tuple[float, float, set[int]]:
    """Share of the places that are padding, with the batches cut and whole; the lengths."""
    filled = places = 0
    seen = set()
    for step in range(steps):
        drawn = draw(samples, seed=0, step=step, batch=batch)
        own = drawn.samples.read(drawn.indices)
        assert own.lengths is not None and drawn.lengths is not None
        assert own.lengths.tolist() == drawn.lengths.tolist()
        filled += int(own.lengths.sum())
        places += own.inputs.shape[0] * own.inputs.shape[1]
        seen.add(own.inputs.shape[1])
    return 1 - filled / places, 1 - filled / (steps * batch * int(samples.cuts[-1])), seen


@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("make_samples", [texts, rows, sequences])
def test_most_padding_is_gone_and_a_run_has_few_lengths(make_samples: Any, batch: int) -> None:
    # Measured on text-like lengths of at most 512: 75 % of the places before, 31 % after.
    samples = ordered(make_samples(text_like(batch * 256)))
    cut, whole, seen = padded(samples, batch=batch, steps=256)
    assert whole > 0.74
    assert cut < 0.33
    assert seen == set(samples.cuts.tolist()) and len(seen) == 4


def test_more_lengths_and_wider_windows_leave_less_padding() -> None:
    samples = texts(text_like(8 * 512))
    wastes = [
        padded(ordered(samples, batches=batches, lengths=lengths), batch=8, steps=512)[0]
        for batches, lengths in ((32, 1), (2, 4), (32, 4), (32, 8), (128, 8))
    ]
    assert wastes == sorted(wastes, reverse=True)
    assert wastes[0] > 0.74 and wastes[-1] < 0.17


@pytest.mark.parametrize("workers", [2, 4])
def test_every_workers_share_of_a_batch_has_one_length(workers: int) -> None:
    samples = ordered(rows(text_like(800)))
    for step in range(20):
        drawn = draw(samples, seed=3, step=step, batch=8)
        whole = drawn.samples.read(drawn.indices)
        parts = [
            drawn.samples.read(Seat(rank, workers).rows(drawn.indices)) for rank in range(workers)
        ]
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
        assert np.array_equal(np.concatenate([part.targets for part in parts]), whole.targets)


class Recorder(Bigram):
    """Learns nothing, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[int], int]] = []

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        self.seen.append((batch.samples.tolist(), batch.inputs.shape[1]))
        return StepResult(1.0, 1.0, objective=1.0)

    def loss(self, batch: Batch) -> LossSum:
        return LossSum(1.0, 1)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def recorded(folder: Path, *, killed_at: int | None = None) -> Recorder:
    """Train with batches by length, going on from the newest checkpoint."""
    engine, held = Recorder(), checkpoints(folder)

    def progress(done: int, total: int, note: str = "") -> None:
        if done == killed_at:
            raise Killed

    samples = texts(text_like(31, context=64), context=64)
    run_loop(
        engine,
        train=TRAIN,
        optim=OPTIM,
        training=ordered(samples, batches=4),
        validation=samples,
        positions=64,
        checkpoints=held,
        start=held.newest(),
        stopping=Stopping(folder),
        progress=progress,
    )
    return engine


@pytest.mark.parametrize("kill", [3, 7, 14])
def test_a_resumed_run_sees_the_same_batches_cut_alike(tmp_path: Path, kill: int) -> None:
    whole = recorded(tmp_path / "whole").seen
    assert len({length for _, length in whole}) > 1
    with pytest.raises(Killed):
        recorded(tmp_path / "killed", killed_at=kill)
    rest = recorded(tmp_path / "killed").seen
    assert rest == whole[kill // 6 * 6 :]


def test_a_curve_counts_the_places_that_are_no_padding(tmp_path: Path) -> None:
    engine = recorded(tmp_path)
    lengths = text_like(31, context=64)
    used = np.cumsum([lengths[samples].sum() for samples, _ in engine.seen])
    last = checkpoints(tmp_path).newest()
    assert last is not None
    ledger = last.manifest.ledger
    assert [row.tokens for row in ledger.curve] == [used[row.step - 1] for row in ledger.curve]
    assert ledger.tokens == used[-1] < len(used) * TRAIN.batch * 64


def by_length(spec: DataSpec) -> DataSpec:
    assert isinstance(spec.task, Language)
    task = spec.task.model_copy(update={"packing": Padded(length=64)})
    order = SortedByLength(batches=8, lengths=3)
    return spec.model_copy(update={"task": task, "order": order})


def test_only_the_training_split_of_a_prepared_data_set_comes_by_length(
    corpus: Path, tmp_path: Path
) -> None:
    make(by_length(text_spec(corpus)), tmp_path)
    training = open_split(tmp_path / "data", "train", context=100)
    assert isinstance(training, ByLength) and training.together == 8
    assert len(training.cuts) <= 3 and training.cuts[-1] == 64
    assert isinstance(open_split(tmp_path / "data", "validation", context=100), Rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "packing.kind=padded; got data.task.kind=language"),
        ({"task": {"kind": "images"}, "source": {"kind": "digits"}}, "kind=images"),
    ],
)
def test_samples_of_one_length_are_refused(changes: dict[str, Any], message: str) -> None:
    section = text_spec(Path("x")).model_dump() | {"order": {"kind": "by_length"}} | changes
    with pytest.raises(ValueError, match=message):
        DataSpec.model_validate(section)


def test_mixtures_are_refused() -> None:
    section = by_length(text_spec(Path("x"))).model_dump()
    parts = tuple({"weight": 1.0, "source": {"kind": "text", "path": name}} for name in "xy")
    with pytest.raises(ValueError, match="needs a single source"):
        DataSpec.model_validate(section | {"source": {"kind": "mixture", "parts": parts}})
