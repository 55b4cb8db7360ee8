"""Samples that go through the model together."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Rows of a step.

    Attributes:
        inputs: (B, T) int32 tokens; (B, height, width, channels) float32 pixels in 0..1; or
            (B, frames, features) float32.
        targets: (B, T) int32 next tokens, `IGNORED` where none is scored; or (B,) int32 classes.
        samples: index of each sample in its split, (B,) int64; keys dropout, named in events.
        lengths: tokens or frames of each row that count, 1..T, (B,); what stands behind them is
            padding. None: all of them.
        others: second targets of mixed samples, like the targets; None: nothing is mixed.
        shares: of the first target in the cost of each mixed sample, 0..1, (B,).
        again: the inputs as a second view shows them; None: there is one view.
    """

    inputs: NDArray[Any]
    targets: NDArray[np.int32]
    samples: NDArray[np.int64]
    lengths: NDArray[np.int64] | None = None
    others: NDArray[np.int32] | None = None
    shares: NDArray[np.float64] | None = None
    again: NDArray[Any] | None = None

    def rows(self, part: slice) -> Batch:
        """Some of the samples."""
        held: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        cut = {name: rows[part] for name, rows in held.items() if rows is not None}
        return replace(self, **cut)
