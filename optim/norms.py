"""What the norms of past gradients say about the next one: host float64, no twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optim.gradient import GradientSpec


class Limits(NamedTuple):
    """Bounds of one step's global norm.

    Attributes:
        clip: the gradient is scaled down to it; infinite: never.
        skip: a step above it is left out; infinite: none.
    """

    clip: float = math.inf
    skip: float = math.inf


def limits(spec: GradientSpec, norms: Sequence[float]) -> Limits:
    """The bounds of the next step.

    Args:
        norms: what `remembered` kept, the newest last.

    >>> from optim.gradient import ClipPercentile, SkipSpikes
    >>> skip = SkipSpikes(times=3.0, after=2)
    >>> spec = GradientSpec(skip=skip, clip=ClipPercentile(percentile=50.0))
    >>> limits(spec, []), limits(spec, [1.0, 2.0, 4.0])
    (Limits(clip=1.0, skip=inf), Limits(clip=2.0, skip=6.0))
    """
    clip = skip = math.inf
    if spec.clip is not None and spec.clip.kind == "norm":
        clip = spec.clip.limit
    elif spec.clip is not None:
        held = norms[-spec.clip.window :]
        clip = float(np.percentile(held, spec.clip.percentile)) if held else spec.clip.first
    if spec.skip is not None:
        held = norms[-spec.skip.window :]
        if len(held) >= spec.skip.after:
            skip = spec.skip.times * float(np.median(held))
    return Limits(clip, skip)


def remembered(spec: GradientSpec, norms: Sequence[float], norm: float) -> tuple[float, ...]:
    """The norms that later steps need, after one more.

    A norm that is not finite leaves no trace; a spike counts as what its bound says, so that one
    alone moves nothing and a new level of norms is learned in the end.
    """
    windows, caps = [], []
    if spec.clip is not None and spec.clip.kind == "percentile":
        windows.append(spec.clip.window)
        caps.append(spec.clip.spike)
    if spec.skip is not None:
        windows.append(spec.skip.window)
        caps.append(spec.skip.times)
    if not windows or not math.isfinite(norm):
        return tuple(norms)
    if norms:
        norm = min(norm, min(caps) * float(np.median(norms)))
    return (*norms, norm)[-max(windows) :]
