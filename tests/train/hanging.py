"""A process whose training makes some steps and then stands still: `python -m tests.train.hanging`.

Arguments: the file of events, the timeout of the watchdog, seconds, and the steps.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from tasks.train.callbacks import Step
from tasks.train.engine import StepResult
from tasks.train.events import Events
from tasks.train.watchdog import guarded


def waits_for_ever() -> None:
    """Where the stack must show the thread."""
    threading.Event().wait()


def main() -> None:
    """Steps and validations by turns; the timeout allows for one of them, not for two."""
    path, timeout_s, steps = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    with guarded(Events(path), rank=1, timeout_s=timeout_s) as (watchdog,):
        for done in range(1, steps + 1):
            time.sleep(0.6 * timeout_s)
            watchdog.after_step(Step(done, StepResult(1.0, 1.0, 1.0), 0.1, 1, 1.0, 0.0))
            time.sleep(0.6 * timeout_s)
            watchdog.after_validation(done, 1.0)
        waits_for_ever()


if __name__ == "__main__":
    main()
