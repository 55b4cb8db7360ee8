"""Means of few seeds, with the interval in which they are known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether nothing was found."""
        return self.low <= 0 <= self.high


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean: ``m +- t(n - 1) s / sqrt(n)``, 95 %.

    Args:
        values: at least two, independent, of about a normal distribution.

    Raises:
        ValueError: fewer than two values.

    Source: Student 1908, "The probable error of a mean".
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values; got {len(values)}.")
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    factor = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    half = factor * spread / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_difference(own: Sequence[float], base: Sequence[float]) -> Interval:
    """Interval of the mean of ``own - base``, seed by seed; both in the same order of seeds."""
    return interval([a - b for a, b in zip(own, base, strict=True)])
