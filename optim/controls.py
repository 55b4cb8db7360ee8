"""What one step is told: every number that changes from step to step, made once, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from optim.average import average_share
from optim.norms import limits
from optim.schedule import decay_share, rate
from optim.spec import OptimSpec


class Controls(NamedTuple):
    """Float64 numbers, the same for both frameworks and every worker.

    Attributes:
        step: from 0.
        rate: the schedule's learning rate.
        decay_share: multiplies every weight's decay.
        average_share: how far the average of the weights moves to them.
        clip: largest global norm of the gradient.
        skip: a step whose norm is above it changes nothing.
    """

    step: int
    rate: float
    decay_share: float
    average_share: float
    clip: float
    skip: float


def controls(
    optim: OptimSpec, *, step: int, total_steps: int, norms: Sequence[float] = ()
) -> Controls:
    """The numbers of one step.

    Args:
        step: 0 .. total_steps - 1.
        norms: of the gradients before, as `optim.norms.remembered` keeps them.
    """
    clip, skip = limits(optim.gradient, norms)
    return Controls(
        step=step,
        rate=rate(optim.schedule, step=step, total_steps=total_steps),
        decay_share=decay_share(optim.decay_schedule, step=step, total_steps=total_steps),
        average_share=average_share(optim.average, step=step, total_steps=total_steps),
        clip=clip,
        skip=skip,
    )
