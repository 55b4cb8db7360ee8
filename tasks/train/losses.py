"""Why workers are gone: what Ray raises, in a word and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

# What Ray raises for a worker whose process is gone.
GONE = (RayActorError, OutOfMemoryError, NodeDiedError)
LESS_MEMORY = "Try a larger train.accumulation or train.zero_stage, or a machine with more memory."

Cause = Literal["memory", "machine", "other"]


class Loss(NamedTuple):
    """Why workers are gone.

    Attributes:
        cause: `memory`, where none was left; `machine`, where it was taken away; or `other`.
        reason: for people.
    """

    cause: Cause
    reason: str


def loss_of(errors: Mapping[int, Exception]) -> Loss:
    """The loss behind the errors of some ranks, of which most only miss a fellow.

    Memory and a machine that was taken away are told first, then the first rank's error.
    """
    losses = [_of_one(error) for _, error in sorted(errors.items())]
    return min(losses, key=lambda loss: ("memory", "machine", "other").index(loss.cause))


def uncounted(error: Exception) -> Loss | None:
    """The loss that ended `fit`, if it is none that Ray counts among the failures it allows.

    Machines that were taken away, of which Ray allows none here, and workers that are gone before
    the training function began, for which it has no second try (Ray 2.60).
    """
    match error:
        case PreemptionError():
            return Loss("machine", _first_line(error))
        case WorkerGroupError():
            preempted = map(_is_preempted, error.worker_failures.values())
            return loss_of(error.worker_failures) if any(preempted) else None
        case ControllerError() if isinstance(error.controller_failure, GONE):
            return _of_one(error.controller_failure)
    return None


def last_words(error: Exception) -> str:
    """Why `fit` failed, in a line."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return loss_of(error.worker_failures).reason
    if isinstance(error, GONE):
        return _of_one(error).reason
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _of_one(error: Exception) -> Loss:
    found = _bare(error)
    if isinstance(found, OutOfMemoryError | MemoryError):
        return Loss(
            "memory", f"no memory was left: {_first_line(found).rstrip('.')}. {LESS_MEMORY}"
        )
    if _is_preempted(found):
        return Loss("machine", f"its machine was taken away: {_first_line(found)}")
    return Loss("other", _first_line(found))


def _is_preempted(error: Exception) -> bool:
    found = _bare(error)
    return isinstance(found, RayActorError) and bool(found.preempted)


def _bare(error: Exception) -> Exception:
    """What a worker's health check met, if that is how it was noticed."""
    found: Exception = getattr(error, "health_check_failure", error)
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
