"""Silent corruption: copies that should be alike and are not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tasks.train.events import Events

Sums = Mapping[str, NDArray[np.int64]]


class CorruptReplica(RuntimeError):
    """A worker or device holds other values than its fellows; nothing of them is saved."""


def odd_ones(sums: NDArray[np.int64]) -> list[int]:
    """The copies that are not what more than half of all are; all, where there is no such half.

    >>> odd_ones(np.array([7, 7, 8]))
    [2]
    >>> odd_ones(np.array([7, 8]))
    [0, 1]
    """
    values, counts = np.unique(sums, return_counts=True)
    most = counts.argmax()
    if 2 * counts[most] <= len(sums):
        return list(range(len(sums)))
    return np.flatnonzero(sums != values[most]).tolist()


def check_replicas(sums: Sums, *, step: int, workers: int, events: Events | None) -> None:
    """Compare the copies that `Engine.replicas` tells of; the same on every worker.

    Args:
        sums: name -> checksum of each copy, in the order of the workers.
        step: steps done.
        events: where it is told; None where another worker tells it.

    Raises:
        CorruptReplica: copies differ; the message names workers and arrays.
    """
    odd = {name: odd_ones(each) for name, each in sums.items()}
    odd = {name: copies for name, copies in odd.items() if copies}
    if not odd:
        return
    found = sorted({copy for copies in odd.values() for copy in copies})
    copies = len(next(iter(sums.values())))
    devices = copies // workers
    ranks = sorted({copy // devices for copy in found})
    who = f"rank {', '.join(map(str, ranks))}"
    if devices > 1:
        who += f" (device {', '.join(map(str, found))} of {copies})"
    names = ", ".join([*odd][:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
    undecided = "; which of them is right cannot be said" if len(found) == copies else ""
    message = (
        f"after step {step} {who} holds other values of {names} than the others{undecided}. "
        "Nothing of it is saved: the run goes on from the checkpoint before. Should the same rank "
        "come up again, its machine is broken."
    )
    if events is not None:
        events.write("corrupt", message, step=step, ranks=ranks, copies=found, arrays=[*odd])
    raise CorruptReplica(message)
