"""Batches of samples of about one length, cut to the longest: less padding is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts import LengthOrder
from tasks.prepare.batch import Batch
from tasks.prepare.order import Share

Integers = NDArray[np.int64]

# A length that batches are cut to is a multiple of this share of the longest sample.
GRID = 64
# Samples whose lengths are looked at together.
CHUNK = 1 << 20


class Ragged(Protocol):
    """Samples of different lengths, padded to one."""

    def __len__(self) -> int:
        """Number of samples."""

    @property
    def shares(self) -> tuple[Share, ...]:
        """The sources that the samples come from."""

    def read(self, indices: Integers) -> Batch:
        """The samples at these indices, padded."""

    def lengths(self, indices: Integers) -> Integers:
        """Places of these samples that count, at least 1."""

    def cut_to(self, length: int) -> Self:
        """The same samples padded to another length; none that is longer may be read."""


@dataclass(frozen=True)
class ByLength:
    """Samples that come in batches of about one length.

    Attributes:
        samples: of a single source.
        together: batches whose samples are sorted together.
        cuts: lengths that batches are cut to, ascending; the last one is the longest sample's.
    """

    samples: Ragged
    together: int
    cuts: Integers

    @classmethod
    def of(cls, samples: Ragged, order: LengthOrder) -> Self:
        """Look at every length once, and choose what to cut to."""
        tally = np.zeros(1, np.int64)
        for start in range(0, len(samples), CHUNK):
            stop = min(start + CHUNK, len(samples))
            more = np.bincount(samples.lengths(np.arange(start, stop)), minlength=len(tally))
            more[: len(tally)] += tally
            tally = more
        return cls(samples, order.batches, few_lengths(tally, most=order.lengths))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shares(self) -> tuple[Share, ...]:
        """One source."""
        return self.samples.shares

    def read(self, indices: Integers) -> Batch:
        """The samples at these indices, padded to the longest of all."""
        return self.samples.read(indices)

    def lengths(self, indices: Integers) -> Integers:
        """Places of these samples that count."""
        return self.samples.lengths(indices)

    def cut_for(self, longest: int) -> Ragged:
        """The samples, padded no further than a batch whose longest sample is this needs."""
        return self.samples.cut_to(int(self.cuts[np.searchsorted(self.cuts, longest)]))


def few_lengths(tally: Integers, *, most: int) -> Integers:
    """The lengths to cut to that leave the least padding if each sample is cut for itself.

    Exact, by dynamic programming over the multiples of a 64th of the longest sample.

    Args:
        tally: samples of each length 0, 1, ..., at least one of them longer than 0.
        most: lengths, at least 1.

    Returns:
        At most `most` lengths, ascending; the last one is the longest sample's.

    >>> few_lengths(np.bincount([1, 1, 2, 2, 7, 8]), most=2).tolist()
    [2, 8]
    """
    longest = int(np.flatnonzero(tally)[-1])
    step = -(-longest // GRID)
    ends = np.unique([*range(step, longest, step), longest])
    held = np.cumsum(tally)[ends]
    # cost[j]: places if samples up to ends[j] are cut to the lengths so far, the last one ends[j].
    cost, ways = held * ends, []
    more = (held[None, :] - held[:, None]) * ends[None, :]
    for _ in range(most - 1):
        # From a shorter length, or from the same one, which adds none.
        longer = np.triu(cost[:, None] + more) + np.tril(np.full(more.shape, cost.max() + 1), -1)
        ways.append(longer.argmin(axis=0))
        cost = longer.min(axis=0)
    place, chosen = len(ends) - 1, [longest]
    for way in reversed(ways):
        place = int(way[place])
        chosen.append(int(ends[place]))
    return np.unique(chosen)
