"""A worker whose training stands still gives itself up, so that another takes its place."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from tasks.train.callbacks import Callback, Step
from tasks.train.events import Events

# Telling of it may hang as well, where a disk is what the training waits for.
TELLING_S = 5.0


class Watchdog:
    """Ends this process when the thread that made it does nothing for `timeout_s`.

    A step and a validation are progress. The event `hung` tells where the thread stood. A process
    that is stopped as a whole cannot watch itself; Ray's own check finds that one.
    """

    def __init__(self, events: Events, *, rank: int, timeout_s: float) -> None:
        self._events, self._rank, self.timeout_s = events, rank, timeout_s
        self._thread = threading.get_ident()
        self._over = threading.Event()
        self._last_s = time.monotonic()
        self._done: int | None = None

    def after_step(self, step: Step) -> None:
        """A step is done."""
        self._last_s, self._done = time.monotonic(), step.done

    def after_validation(self, done: int, loss: float) -> bool:
        """A validation is done; it ends no run."""
        self._last_s = time.monotonic()
        return False

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        while (left_s := self._last_s + self.timeout_s - time.monotonic()) > 0:
            if self._over.wait(left_s):
                return
        self._give_up(time.monotonic() - self._last_s)

    def _give_up(self, seconds: float) -> None:
        threading.Timer(TELLING_S, os._exit, (1,)).start()
        # One reading of what the other thread may change.
        done = self._done
        where = "before its first step" if done is None else f"after step {done}"
        message = f"worker {self._rank} did nothing for {seconds:.1f} s {where}, and is given up"
        details: dict[str, Any] = {} if done is None else {"step": done}
        frame = sys._current_frames().get(self._thread)
        with contextlib.suppress(OSError):
            self._events.write(
                "hung",
                message,
                rank=self._rank,
                seconds=seconds,
                stack="".join(traceback.format_stack(frame)),
                **details,
            )
        # Not an exception: the thread that hangs would not hear it.
        os._exit(1)


@contextlib.contextmanager
def guarded(events: Events, *, rank: int, timeout_s: float | None) -> Iterator[Sequence[Callback]]:
    """Watch this thread until the end of the block.

    Args:
        timeout_s: without progress; None watches nothing.

    Yields:
        Callbacks that must hear of the run.
    """
    if timeout_s is None:
        yield ()
        return
    with Watchdog(events, rank=rank, timeout_s=timeout_s) as watchdog:
        yield (watchdog,)
