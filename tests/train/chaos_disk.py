"""Saves checkpoints while `strace` kills the writer, or refuses it, at a chosen system call.

`python -m tests.train.chaos_disk ROOT WHAT` forks a writer without a framework for each
attempt. It saves step 1 and 2 in peace, then `strace` watches while it saves step 3, which removes
step 1, and step 4. WHAT is `kills`: SIGKILL at the N-th call of a name, before the call acts;
`faults`: the N-th call of a name fails with an error; or `nothing`. All N of all calls that touch
the disk are tried, for saves at once and behind the training. A line of JSON for each attempt tells
the call, the folder and what the writer had reported by then. Calls of a writer that nobody
disturbed are in ROOT/at_once-watched.calls and ROOT/behind-watched.calls.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from tasks.train.saving import Saver
from tests.train.bigram import checkpoints
from tests.train.writer import ABOUT, state

How = Literal["at_once", "behind"]
What = Literal["kills", "faults", "nothing"]
PEACEFUL, WATCHED = (1, 2), (3, 4)
# Calls that this machine's kernel may have under several names; `strace` skips unknown ones.
KILLED_AT = (
    *("openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "close"),
    *("mkdir", "mkdirat", "rename", "renameat", "renameat2"),
    *("unlink", "unlinkat", "rmdir", "getdents64"),
)
REFUSED_AT = {
    "openat": ("ENOSPC", "EMFILE"),
    "write": ("ENOSPC", "EIO"),
    "pwrite64": ("ENOSPC", "EIO"),
    "fsync": ("EIO", "ENOSPC"),
    "fdatasync": ("EIO",),
    "mkdir": ("ENOSPC",),
    "mkdirat": ("ENOSPC",),
    "rename": ("EIO", "ENOSPC"),
    "renameat": ("EIO",),
    "renameat2": ("EIO",),
    "unlink": ("EIO",),
    "unlinkat": ("EIO",),
    "rmdir": ("EIO",),
    "close": ("EIO",),
}
PR_SET_PTRACER, ANY = 0x59616D61, -1


@dataclass(frozen=True)
class Attempt:
    """What a writer that was disturbed had done.

    Attributes:
        call: name of the system call.
        number: which of the thread's calls of this name, from 1.
        error: what it was refused with; None for a kill.
        saved: steps that were reported as saved.
        failed: steps whose failure was reported.
        hit: whether anything was done to the writer.
    """

    how: How
    call: str
    number: int
    error: str | None
    folder: str
    saved: list[int]
    failed: list[int]
    hit: bool


def write(folder: Path, how: How, *, tell: Callable[[int], object], go: int) -> None:
    """Save every step and tell of it: its number where it is safe, minus that where it failed."""
    held = checkpoints(folder)
    with Saver(held) as saver:

        def save(step: int) -> None:
            if how == "at_once":
                held.save(state(step), step=step, **ABOUT)
            else:
                saver.save(partial(state, step), step=step, **ABOUT)
                saver.wait()

        for step in PEACEFUL:
            save(step)
        tell(0)
        os.read(go, 1)
        for step in WATCHED:
            try:
                save(step)
            except OSError:
                tell(-step)
            else:
                tell(step)


def disturb(
    folder: Path, how: How, *, call: str, number: int = 0, error: str | None = None
) -> tuple[Attempt, Counter[str]]:
    """Run a writer under `strace`; also how often its busiest thread made each call.

    Args:
        call: a name, or several with commas between them.
        number: 0 only watches.
    """
    heard, telling = os.pipe()
    go, going = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            # Where only ancestors may look into a process.
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
            # `writev`, which no attempt disturbs.
            write(folder, how, tell=lambda step: os.writev(telling, [bytes([step + 128])]), go=go)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(telling)
    assert os.read(heard, 1) == bytes([128])
    log = folder.with_suffix(".calls")
    doing = "error=" + error if error else "signal=SIGKILL"
    how_to = ["-e", f"inject={call}:{doing}:when={number}"] if number else []
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-o", str(log), "-e", f"trace={call}", *how_to],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        raise PermissionError(f"strace cannot watch a process: {said.strip()}")
    os.write(going, b".")
    _, status = os.waitpid(pid, 0)
    tracer.communicate()
    told = [byte - 128 for byte in os.read(heard, 100)]
    for end in (heard, go, going):
        os.close(end)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"{folder}: the writer did not survive {call} {number} {error}")
    calls = Counter[tuple[str, str]]()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        if found := re.match(r"(\d+) +(\w+)\(", line):
            calls[found[1], found[2]] += 1
    most = Counter[str]()
    for (_, name), count in calls.items():
        most[name] = max(most[name], count)
    hit = os.WIFSIGNALED(status) or any("(INJECTED)" in line for line in lines)
    saved, failed = [step for step in told if step > 0], [-step for step in told if step < 0]
    return Attempt(how, call, number, error, str(folder), saved, failed, hit), most


def attempts(root: Path, what: What) -> Iterator[Attempt]:
    """Every call of a save, one after the other."""
    hows: tuple[How, ...] = ("at_once", "behind")
    for how in hows:
        names: dict[What, Sequence[str]] = {
            "kills": KILLED_AT,
            "faults": tuple(REFUSED_AT),
            "nothing": (*KILLED_AT, "writev"),
        }
        every = ",".join(f"?{name}" for name in names[what])
        _, most = disturb(root / f"{how}-watched", how, call=every)
        if what == "nothing":
            continue
        for call, count in sorted(most.items()):
            for error in (None,) if what == "kills" else REFUSED_AT[call]:
                for number in range(1, count + 1):
                    name = f"{how}-{call}-{number}" + (f"-{error}" if error else "")
                    yield disturb(root / name, how, call=call, number=number, error=error)[0]


def main(root: Path, what: What) -> None:
    """Try all, and tell."""
    for attempt in attempts(root, what):
        print(json.dumps(asdict(attempt)), flush=True)


if __name__ == "__main__":
    root_, what_ = sys.argv[1:]
    main(Path(root_), TypeAdapter[What](What).validate_python(what_))
