"""What a run does when its numbers turn bad: decided on the host, alike on every worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from models.spec import Spec
from tasks.train.engine import StepResult

# Losses that must be known before one of them is a spike.
FEWEST = 10


class BadNumbers(Spec):
    """A loss, a gradient or a weight that is no number, or a loss that is a spike.

    `rollback` goes back to the newest checkpoint and passes over the batches since then, the bad
    one included (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1). `skip` passes over the
    batch whose gradient is no number, which has changed nothing. Either way the samples are told.
    """

    action: Literal["stop", "skip", "rollback"] = Field("rollback", description="what to do")
    times: int = Field(3, ge=1, description="times in one run, then it stops")
    spike: float | None = Field(
        None, gt=1, description="a loss above this many medians of those before is bad"
    )
    window: int = Field(50, ge=FEWEST, description="losses that the median is of, the newest")

    @model_validator(mode="after")
    def _can_be_undone(self) -> Self:
        if self.action == "skip" and self.spike is not None:
            raise ValueError(
                "train.bad_numbers.spike needs action=rollback or stop: a step has changed the "
                f"weights when its loss is known; got action=skip, spike={self.spike}. "
                "optim.gradient.skip leaves out spikes of the gradient."
            )
        return self


def what_is_bad(spec: BadNumbers, result: StepResult, losses: Sequence[float]) -> str | None:
    """Why a step's figures are bad; None where they are not.

    Args:
        losses: of the steps before, the newest last.
    """
    if not all(map(math.isfinite, (result.loss, result.objective, result.gradient_norm))):
        return (
            f"the loss is {result.loss}, the objective {result.objective} and the gradient norm "
            f"{result.gradient_norm}"
        )
    if spec.spike is not None and len(losses) >= FEWEST:
        median = float(np.median(losses))
        if result.loss > spec.spike * median:
            return (
                f"the loss is {result.loss:.4g}, more than train.bad_numbers.spike={spec.spike:g} "
                f"times {median:.4g}, the median of the {len(losses)} before"
            )
    return None
