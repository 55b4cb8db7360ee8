"""Attempt after attempt of a run, until it is finished or comes no further."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tasks.train.events import Events
from tasks.train.mailbox import Ending

LOG = logging.getLogger("tandem.train")


def until_finished(
    attempt: Callable[[], Ending],
    *,
    saved: Callable[[], int],
    restarts: int,
    events: Events,
) -> int | None:
    """Start workers again that were told to leave, or were lost as nobody's failure.

    An attempt that ends so counts against nothing where more is saved after it than ever before.
    Others count, in a row: they may be as many as `restarts`. So workers that are told to leave
    again and again before they get anywhere end the run, and so does one that always falls back.

    Args:
        attempt: starts workers and tells how that ended; losses that it allows are its own.
        saved: newest step on the disk, 0 where nothing is saved.
        restarts: attempts in a row that may save nothing new before the run is given up.

    Returns:
        The step after which the run is finished, as its workers told it.

    Raises:
        ValueError: the run refuses to go on; the message says why.
        ChildProcessError: too many attempts saved nothing new; the same command goes on later.
    """
    furthest, idle = saved(), 0
    while (ending := attempt()).status != "finished":
        if ending.status == "refused":
            raise ValueError(ending.message)
        step = saved()
        idle = 0 if step > furthest else idle + 1
        furthest = max(furthest, step)
        if idle > restarts:
            raise ChildProcessError(
                f"workers had to leave {idle} times in a row before they had saved more than step "
                f"{furthest}{_because(ending)}. What is saved stays. Run the same command again, "
                f"or raise train.restarts, now {restarts}."
            )
        # A worker, not the driver, was told to leave: its machine goes, another one takes over.
        message = f"workers that had to leave are replaced after step {step}{_because(ending)}"
        LOG.warning(message)
        events.write("replaced", message, step=step, idle=idle)
    return ending.step


def _because(ending: Ending) -> str:
    return f" ({ending.message})" if ending.message else ""
