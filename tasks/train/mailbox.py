"""What the workers of one attempt and its driver tell each other, as files in one folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Literal

from models.record import Record
from tasks.progress import Progress
from tasks.train.events import Events

LOG = logging.getLogger("tandem.train")
ENDING, STATUS = "ending.json", "status.json"

# Events of every run; the others are worth a person's attention.
EXPECTED = ("started", "finished")


class Ending(Record):
    """How an attempt ended, as rank 0 or the worker that refused wrote it.

    Of workers that are lost the driver tells, where Ray does not count it as a failure.
    """

    status: Literal["finished", "stopped", "lost", "refused"]
    step: int | None = None
    message: str = ""


class StatusFile:
    """Progress that the driver reads; written at most five times a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._scratch = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._next_s = 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s or done == total:
            self._next_s = now_s + 0.2
            # Not synced: it is worth nothing after a crash.
            self._scratch.write_text(json.dumps([done, total, note]), encoding="utf-8")
            os.replace(self._scratch, self._path)


class Relay:
    """Passes the workers' figures and events on to the driver's progress and log."""

    def __init__(self, status: Path, events: Events, progress: Progress) -> None:
        self._status, self._events, self._progress = status, events, progress
        self._told = len(events.read())
        self._last = ""

    def tell(self) -> None:
        """Pass on what is new."""
        new = self._events.read(after=self._told)
        self._told += len(new)
        for event in new:
            level = logging.INFO if event["event"] in EXPECTED else logging.WARNING
            LOG.log(level, event["message"])
        with contextlib.suppress(FileNotFoundError):
            text = self._status.read_text(encoding="utf-8")
            if text != self._last:
                self._last = text
                done, total, note = json.loads(text)
                self._progress(done, total, note)
