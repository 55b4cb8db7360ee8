"""What a step reads: the samples of its batch, and how far they are padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.prepare.by_length import ByLength
from tasks.prepare.dataset import Samples
from tasks.prepare.order import batch_indices, indices_by_length


@dataclass(frozen=True)
class Drawn:
    """The batch of a step, before it is read.

    Attributes:
        indices: its samples over all workers, (B,).
        lengths: places of each that count, (B,); None: all of them.
        samples: reads them. Whichever of them a worker reads are padded to one length.
    """

    indices: NDArray[np.int64]
    lengths: NDArray[np.int64] | None
    samples: Samples


def draw(samples: Samples, *, seed: int, step: int, batch: int) -> Drawn:
    """The batch of one step: a function of the seed, the step and the batch size alone.

    Args:
        samples: a split.
        seed: 0 .. 2**32 - 1.
        step: counts from 0.
        batch: samples of one step over all workers, B.

    Raises:
        ValueError: an argument is out of range.
    """
    if not isinstance(samples, ByLength):
        indices = batch_indices(samples.shares, seed=seed, step=step, batch=batch)
        return Drawn(indices, samples.lengths(indices), samples)
    indices = indices_by_length(
        len(samples),
        lengths=samples.lengths,
        seed=seed,
        step=step,
        batch=batch,
        together=samples.together,
    )
    lengths = samples.lengths(indices)
    return Drawn(indices, lengths, samples.cut_for(int(lengths.max())))
