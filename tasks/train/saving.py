"""Saving behind the training: the loop goes on while a thread hashes, syncs and renames."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from tasks.train.checkpoints import Checkpoints, Ledger, check_finite, parts_of
from tasks.train.engine import EngineState
from tasks.train.shards import deal


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is safely on the disk.

    Attributes:
        step: optimizer steps in it.
        blocked_s: how long the training waited to hand its state over.
        writing_s: how long the thread worked behind it.
    """

    step: int
    blocked_s: float
    writing_s: float


def unwatched(saved: Saved) -> None:
    """Nobody is told of a saved checkpoint."""


class Saver:
    """One worker's part in saving: at most one write is under way, and a later one waits for it.

    A write that fails is told as the event `checkpoint_failed`; its error comes up in the next
    `save`, or in `close`. Leaving the block waits for the write under way.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        rank: int = 0,
        writers: int = 1,
        told: Callable[[Saved], None] = unwatched,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start a thread.

        Args:
            rank: of this worker, 0 .. writers - 1.
            writers: workers that share the writing; each has a saver.
            told: called in the thread after a checkpoint is safe, by the first worker's saver.
        """
        self._checkpoints, self._rank, self._writers = checkpoints, rank, writers
        self._told, self._clock = told, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._write: Future[None] | None = None
        self._abandoned = threading.Event()

    def save(
        self,
        state: Callable[[], EngineState],
        *,
        step: int,
        samples: int,
        backend: Literal["flax", "torch"],
        workers: int,
        ledger: Ledger,
        validation_loss: float | None = None,
    ) -> None:
        """Take a state and return; the writing goes on behind.

        Args:
            state: gives copies on the host that no later step changes, the same on every worker.

        Raises:
            FloatingPointError: a value is not finite; nothing is written.
            OSError: the write before this one failed.
        """
        began = self._clock()
        self.wait()
        held = state()
        check_finite(held)
        shares = deal(parts_of(held), rank=self._rank, workers=self._writers)
        blocked_s = self._clock() - began

        def write() -> None:
            started = self._clock()
            try:
                self._checkpoints.save_shares(
                    shares,
                    step=step,
                    samples=samples,
                    backend=backend,
                    workers=workers,
                    ledger=ledger,
                    validation_loss=validation_loss,
                    rank=self._rank,
                    writers=self._writers,
                    abandoned=self._abandoned,
                )
            except (OSError, ValueError) as error:
                message = f"step {step} could not be saved: {error}; what was saved before stays"
                # A full disk takes no event either; the error itself goes up.
                with contextlib.suppress(OSError):
                    self._checkpoints.events.write(
                        "checkpoint_failed", message, step=step, rank=self._rank
                    )
                raise
            if self._rank == 0:
                self._told(Saved(step, blocked_s, self._clock() - started))

        self._write = self._thread.submit(write)

    def wait(self) -> None:
        """Wait until what was handed over is safe.

        Raises:
            OSError: it could not be written.
        """
        write, self._write = self._write, None
        if write is not None:
            write.result()

    def close(self) -> None:
        """Wait for the write under way and end the thread.

        Raises:
            OSError: it could not be written.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            # A failure of the write has its event; the error that ends the run goes first, and the
            # other workers may be gone.
            self._abandoned.set()
            self._thread.shutdown()
