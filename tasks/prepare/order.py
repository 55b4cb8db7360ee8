"""Which samples a step trains on: a function of the seed and the step, without a state.

Every epoch walks through a permutation of its own. The permutation is computed, not stored: a
Feistel network over the next even power of two, walked along its cycles until it lands inside
(Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). A resume, another number of
workers or the other framework sees the same order, and memory does not grow with the data.

In a mixture each source has a walk of its own, and the sources take turns by their weights. How
often each had its turn before a position is computed as well.

Batches of about one length are the same walk, sorted within a window of some batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.random import Site, Words, mix, threefry2x32

Indices = NDArray[np.int64]

ROUNDS = 8
MOST_SAMPLES = 2**32
# Weights are counted in these shares; a position times a share fits into 63 bits.
SHARES = 2**20
MOST_POSITIONS = 2**42


@dataclass(frozen=True)
class Share:
    """A source's part in a split: samples `first` to `first + count - 1`, drawn by `weight`."""

    first: int
    count: int
    weight: float


def batch_indices(
    shares: Sequence[Share], *, seed: int, step: int, batch: int
) -> NDArray[np.int64]:
    """The samples of one step's global batch, from one source or from a mixture.

    From the start on each source has its share of the samples, but for fewer samples than there are
    sources, and its own samples come exactly once before one of them comes again.

    Args:
        shares: what the split holds of each source.
        seed, step, batch: as in `sample_indices`, which this is for a single source.

    Returns:
        (B,), indices into the split.

    Raises:
        ValueError: an argument is out of range.

    >>> halves = (Share(0, 3, weight=1.0), Share(3, 5, weight=1.0))
    >>> [batch_indices(halves, seed=0, step=step, batch=6).tolist() for step in range(2)]
    [[2, 4, 0, 7, 1, 6], [1, 5, 0, 3, 2, 4]]
    """
    if len(shares) == 1:
        return shares[0].first + sample_indices(shares[0].count, seed=seed, step=step, batch=batch)
    positions = _positions(step, batch)
    if positions[-1] >= MOST_POSITIONS:
        raise ValueError(
            f"a mixture has an order of 2**42 samples; got step={step}, batch={batch}."
        )
    owners, turns = _turns([share.weight for share in shares], positions, seed)
    indices = np.empty(batch, np.int64)
    for number, share in enumerate(shares):
        own = owners == number
        if own.any():
            walk = _walk(share.count, turns[own], seed=seed, source=number)
            indices[own] = share.first + walk
    return indices


def sample_indices(count: int, *, seed: int, step: int, batch: int) -> NDArray[np.int64]:
    """The samples of one step's global batch; each sample comes exactly once per epoch.

    Row j of step s is position ``s * batch + j`` of an endless walk, so the walk does not depend
    on the batch size and a batch may reach into the next epoch.

    Args:
        count: samples in the split, 1 .. 2**32.
        seed: 0 .. 2**32 - 1.
        step: counts from 0.
        batch: samples of one step over all workers, B.

    Returns:
        (B,), values 0 .. count - 1.

    Raises:
        ValueError: an argument is out of range.

    >>> [sample_indices(5, seed=0, step=step, batch=5).tolist() for step in range(2)]
    [[2, 4, 0, 1, 3], [2, 3, 1, 0, 4]]
    """
    return _walk(count, _positions(step, batch), seed=seed, source=0)


def indices_by_length(
    count: int,
    *,
    lengths: Callable[[Indices], Indices],
    seed: int,
    step: int,
    batch: int,
    together: int,
) -> Indices:
    """The samples of one step's global batch, which are about equally long.

    The walk of `sample_indices` is cut into windows of `together` batches, and again where an epoch
    ends. The samples of such a piece are sorted by length and dealt in that order to its steps, but
    which step has the shortest and which the longest is drawn. So every sample comes exactly once
    per epoch, and the walk depends on the batch size.

    Args:
        count: samples in the split, 1 .. 2**32.
        lengths: gives the length of each of some samples, (any,) to (any,).
        seed, step, batch: as in `sample_indices`.
        together: batches of a window.

    Returns:
        (B,), values 0 .. count - 1; rows in the order of the walk.

    Raises:
        ValueError: an argument is out of range.

    >>> odd_ones_are_longer = {"lengths": lambda samples: samples % 2, "together": 4}
    >>> asked = {"seed": 0, "batch": 2} | odd_ones_are_longer
    >>> order = [indices_by_length(8, step=step, **asked) for step in range(4)]
    >>> [own.tolist() for own in order]
    [[5, 7], [0, 6], [2, 4], [1, 3]]
    """
    own = _positions(step, batch)
    window = step // together
    positions = np.arange(window * together * batch, (window + 1) * together * batch)
    chosen = []
    for epoch in np.unique(own // count):
        here = positions[positions // count == epoch]
        samples = _walk(count, here, seed=seed, source=0)
        steps, sizes = np.unique(here // batch, return_counts=True)
        drawn, _ = threefry2x32(
            (seed, int(Site.DATA_ORDER)),
            (np.full(1, window, np.uint32), (2**31 + steps % together).astype(np.uint32)),
        )
        turns = np.argsort(drawn, kind="stable")
        turn = int(np.flatnonzero(steps[turns] == step)[0])
        last = int(sizes[turns[: turn + 1]].sum())
        dealt = np.argsort(lengths(samples), kind="stable")[last - sizes[turns[turn]] : last]
        chosen.append(samples[np.sort(dealt)])
    return np.concatenate(chosen)


def _positions(step: int, batch: int) -> NDArray[np.int64]:
    """Places of a step's rows in the endless walk."""
    if step < 0 or batch < 1:
        raise ValueError(
            f"step must be at least 0 and batch at least 1; got step={step}, batch={batch}."
        )
    return step * batch + np.arange(batch, dtype=np.int64)


def _turns(
    weights: Sequence[float], positions: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whose turn each position is, and how many turns that source had before; each (B,).

    The last source takes ``floor((p + 1) w + phase) - floor(p w + phase)`` of position p, 0 or 1,
    and so has had ``floor(p w + phase)`` turns; the sources before it share what is left.
    """
    owners = np.zeros(len(positions), np.int64)
    turns = positions.copy()
    waiting = np.arange(len(positions))
    for number in range(len(weights) - 1, 0, -1):
        exact = weights[number] / sum(weights[: number + 1])
        share = min(max(round(exact * SHARES), 1), SHARES - 1)
        (phase,), _ = threefry2x32(
            (seed, int(Site.DATA_ORDER)),
            (np.full(1, 2**32 - 1, np.uint32), np.full(1, number, np.uint32)),
        )
        own = turns[waiting] * share + int(phase) % SHARES
        before, after = own // SHARES, (own + share) // SHARES
        taken = after > before
        owners[waiting[taken]] = number
        turns[waiting[taken]] = before[taken]
        turns[waiting[~taken]] -= before[~taken]
        waiting = waiting[~taken]
    return owners, turns


def _walk(count: int, positions: NDArray[np.int64], *, seed: int, source: int) -> NDArray[np.int64]:
    """The samples at positions of one source's walk, (B,)."""
    if not 1 <= count <= MOST_SAMPLES:
        raise ValueError(f"a split must hold 1 to 2**32 samples; got count={count}.")
    epochs, places = np.divmod(positions, count)
    half_bits = max((count - 1).bit_length() + 1, 2) // 2
    first, second = _round_keys(seed, epochs, source)
    images = places.copy()
    outside = np.arange(len(positions))
    while outside.size:
        moved = _feistel(images[outside], first[:, outside], second[:, outside], half_bits)
        images[outside] = moved
        outside = outside[moved >= count]
    return images


def _round_keys(seed: int, epochs: NDArray[np.int64], source: int) -> tuple[Words, Words]:
    """Two words for each round and position, each (ROUNDS, B); equal epochs have equal keys."""
    shape = (ROUNDS, len(epochs))
    epoch = np.broadcast_to(epochs.astype(np.uint32), shape)
    own = np.arange(source * ROUNDS, (source + 1) * ROUNDS, dtype=np.uint32)
    rounds = np.broadcast_to(own[:, None], shape)
    return threefry2x32((seed, int(Site.DATA_ORDER)), (epoch, rounds))


def _feistel(
    values: NDArray[np.int64], first: Words, second: Words, half_bits: int
) -> NDArray[np.int64]:
    """A bijection of 0 .. 4**half_bits - 1 for each value's keys."""
    mask = np.uint32(2**half_bits - 1)
    left = (values >> half_bits).astype(np.uint32)
    right = values.astype(np.uint32) & mask
    for keys in zip(first, second, strict=True):
        left, right = right, left ^ (mix(mix(right ^ keys[0]) ^ keys[1]) & mask)
    return (left.astype(np.int64) << half_bits) | right.astype(np.int64)
