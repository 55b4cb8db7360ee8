"""Who listens to a run: two moments, and what is decided from the validation losses alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tasks.train.engine import StepResult
from tasks.train.run_spec import EarlyStopping


@dataclass(frozen=True)
class Step:
    """A step that is done.

    Attributes:
        done: optimizer steps so far, this one included.
        result: its figures, the same on every worker.
        rate: its learning rate.
        positions: that all workers trained on in it, padding left out.
        seconds: that it took on this worker.
        data_wait_s: of these, spent on waiting for samples.
    """

    done: int
    result: StepResult
    rate: float
    positions: int
    seconds: float
    data_wait_s: float


class Callback(Protocol):
    """Hears of a run. Every worker has its own; the arguments differ in times only."""

    def after_step(self, step: Step) -> None:
        """A step is done."""

    def after_validation(self, done: int, loss: float) -> bool:
        """The validation loss after `done` steps is known, nats per target.

        Returns:
            Whether the run is to end here, finished. All workers must decide alike, and a run that
            was resumed as one that was not: from the arguments, not from times or randomness.
        """


def run_dry(spec: EarlyStopping | None, losses: Sequence[float]) -> bool:
    """Whether the last `patience` validations brought nothing better.

    Args:
        losses: of all validations so far, the oldest first.

    Source: Prechelt 1998, "Early stopping - but when?", criterion UP_s, with a least change.

    >>> run_dry(EarlyStopping(patience=2), [3.0, 2.0, 2.5, 2.0])
    True
    >>> run_dry(EarlyStopping(patience=2), [3.0, 2.0, 2.5, 1.9])
    False
    """
    if spec is None or not losses:
        return False
    best, since = losses[0], 0
    for loss in losses[1:]:
        if loss < best - spec.least_change:
            best, since = loss, 0
        else:
            since += 1
    return since >= spec.patience


def is_best(losses: Sequence[float]) -> bool:
    """Whether the last validation is better than every one before it.

    >>> is_best([2.0, 1.0]), is_best([1.0, 1.0]), is_best([])
    (True, False, False)
    """
    return bool(losses) and all(losses[-1] < earlier for earlier in losses[:-1])
