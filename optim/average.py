"""Averages of the weights over steps, by which a model is judged: the `optim.average` section.

Both kinds are one rule, ``average += share * (weight - average)`` after each step, with a share
that is a function of the step alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.spec import Spec


class Ema(Spec):
    """Exponential moving average (Polyak & Juditsky 1992 in spirit; Tarvainen & Valpola 2017)."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.999, gt=0, lt=1, description="share of the average that stays")
    warmup: bool = Field(
        True, description="stay less at first: min(decay, (1 + t) / (10 + t)) at step t"
    )


class Swa(Spec):
    """Stochastic weight averaging: the plain mean (Izmailov et al. 2018, arXiv:1803.05407)."""

    kind: Literal["swa"] = "swa"
    start: float = Field(0.75, ge=0, lt=1, description="share of the run before the first one")
    every_steps: int = Field(1, ge=1, description="steps from one averaged model to the next")


Average = Annotated[Ema | Swa, Field(discriminator="kind")]


def average_share(average: Average | None, *, step: int, total_steps: int) -> float:
    """How far the average moves to the weights after a step, 0..1.

    Args:
        step: 0 .. total_steps - 1.

    >>> [average_share(Swa(start=0.5), step=step, total_steps=6) for step in range(6)]
    [1.0, 1.0, 1.0, 1.0, 0.5, 0.3333333333333333]
    """
    match average:
        case None:
            return 0.0
        case Ema():
            stays = (1 + step) / (10 + step) if average.warmup else 1.0
            return 1.0 - min(average.decay, stays)
        case Swa():
            since = step - int(average.start * total_steps)
            if since < 0:
                return 1.0
            taken, rest = divmod(since, average.every_steps)
            return 0.0 if rest else 1.0 / (taken + 1)
