"""One contender in a process of its own: it trains as many steps as each line says.

The argument is its task in JSON. It answers each turn with the turn, and after the last line with
what the run was like; both in JSON.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple, TextIO

from benchmarks.train.course import Task
from benchmarks.train.turns import Turn, Turns

# What a contender needs beside this project: modules, and what pip calls them.
NEEDS = {
    "flax": {},
    "torch": {},
    "plain": {},
    "trainer": {"transformers": "transformers", "accelerate": "accelerate"},
    "litgpt": {
        "litgpt": "litgpt",
        "lightning": "lightning",
        "lightning_utilities": "lightning-utilities",
        "torchmetrics": "torchmetrics",
        "jsonargparse": "jsonargparse",
    },
}
# A folder of their own, so that what the lock says stays installed.
RIVALS = "artifacts/rivals"


class Run(NamedTuple):
    """What a contender's run was like.

    Attributes:
        losses: of each step, before its update.
        saving_s: seconds of a checkpoint; 0 where none was written.
    """

    losses: tuple[float, ...]
    saving_s: float


def missing(who: str) -> str | None:
    """How to install what a contender lacks; None where all is there."""
    if who not in NEEDS:
        raise ValueError(f"who must be one of {', '.join(NEEDS)}; got {who!r}.")
    lacks = [pip for name, pip in NEEDS[who].items() if importlib.util.find_spec(name) is None]
    if not lacks:
        return None
    install = f".venv/bin/pip install --no-deps --target {RIVALS} {' '.join(lacks)}"
    return f"{install} && PYTHONPATH={RIVALS} make bench-train"


def train(task: Task, turns: Turns) -> Run:
    """Train until the turns end."""
    saving_s = 0.0
    match task.who:
        case "flax" | "torch":
            from benchmarks.train import tandem

            saving_s = tandem.train(task, turns)
        case "plain":
            from benchmarks.train import plain

            plain.train(task, turns)
        case "trainer":
            from benchmarks.train import trainer_rival

            trainer_rival.train(task, turns)
        case "litgpt":
            from benchmarks.train import litgpt_rival

            litgpt_rival.train(task, turns)
        case _:
            raise ValueError(f"who must be one of {', '.join(NEEDS)}; got {task.who!r}.")
    return Run(tuple(turns.losses), saving_s)


def main() -> None:
    """Answer lines until there are no more."""
    with _answers() as answers:

        def answer(about: Turn | Run) -> None:
            print(json.dumps(about), file=answers, flush=True)

        task = Task(*json.loads(sys.argv[1]))
        answer(train(task, Turns(map(int, sys.stdin), answer)))


@contextlib.contextmanager
def _answers() -> Iterator[TextIO]:
    """Standard output for answers alone: libraries that print do so beside them."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


if __name__ == "__main__":
    main()
