"""The scale of a float16 run's loss: host numbers, so that both frameworks decide alike."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from models.spec import Spec


class LossScaleSpec(Spec):
    """How the scale moves (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2)."""

    initial: float = Field(65536.0, ge=1, description="first scale")
    growth_steps: int = Field(2000, ge=1, description="steps without an overflow, then it doubles")


class LossScale(NamedTuple):
    """The scale of the next step.

    Attributes:
        value: what the objective is multiplied by; a power of two times the first one.
        steps: without an overflow since it last moved.
    """

    value: float = 1.0
    steps: int = 0


def moved(spec: LossScaleSpec, scale: LossScale, *, finite: bool) -> LossScale:
    """The scale after a step: halved by an overflow, down to 1, doubled after many without.

    >>> spec = LossScaleSpec(initial=8.0, growth_steps=2)
    >>> moved(spec, LossScale(8.0, 0), finite=False), moved(spec, LossScale(8.0, 1), finite=True)
    (LossScale(value=4.0, steps=0), LossScale(value=16.0, steps=0))
    """
    if not finite:
        return LossScale(max(1.0, scale.value / 2), 0)
    if scale.steps + 1 >= spec.growth_steps:
        return LossScale(scale.value * 2, 0)
    return LossScale(scale.value, scale.steps + 1)
