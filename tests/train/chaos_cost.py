"""What a checkpoint costs the training: `python -m tests.train.chaos_cost BACKEND FOLDER`.

The model of `params.yaml` trains for some steps, with a save in the middle and without, in turns.
A line of JSON for each turn tells the seconds of both and how long the save kept the training
waiting.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tasks.params import Params
from tasks.prepare.dataset import Windows
from tasks.train.callbacks import Step
from tasks.train.checkpoints import Checkpoints
from tasks.train.engine import Engine
from tasks.train.events import Events
from tasks.train.identity import run_identity
from tasks.train.loop import run_loop
from tasks.train.run_spec import CheckpointSpec
from tasks.train.saving import Saved
from tasks.train.stopping import Stopping
from tasks.train.worker import build_engine
from tests.train.chaos_counts import ROOT

TURNS = 5
# The save has half of the steps to be written behind.
STEPS, SAVED, FIRST = 12, 5, 2


class Stopwatch:
    """Hears when steps are done."""

    def __init__(self) -> None:
        self.done_s: dict[int, float] = {}

    def after_step(self, step: Step) -> None:
        self.done_s[step.done] = time.perf_counter()

    def after_validation(self, done: int, loss: float) -> bool:
        return False


def timed(engine: Engine, params: Params, folder: Path, *, every: int) -> tuple[float, list[Saved]]:
    """Seconds of the steps after the first ones, and the saves; the one at the end is not timed."""
    inputs = params.model.inputs
    assert inputs.kind == "tokens"
    draw = np.random.default_rng(0)
    stream = draw.integers(0, inputs.vocabulary, 400 * inputs.context).astype(np.uint16)
    changes = {
        "steps": STEPS,
        "checkpoint": CheckpointSpec(every_steps=every),
        "validation_batches": 1,
    }
    train = params.train.model_copy(update=changes)
    identity = run_identity(params.model, params.optim, train, data="d" * 64)
    watch, saves = Stopwatch(), list[Saved]()
    run_loop(
        engine,
        train=train,
        optim=params.optim,
        training=Windows(stream, inputs.context),
        validation=Windows(stream[: 9 * inputs.context], inputs.context),
        positions=inputs.context,
        checkpoints=Checkpoints(folder, identity, 2, Events(folder / "events.jsonl")),
        start=None,
        stopping=Stopping(folder),
        callbacks=[watch],
        told=saves.append,
    )
    return watch.done_s[STEPS] - watch.done_s[FIRST], saves


def main(backend: str, scratch: Path) -> None:
    """Take turns."""
    params = Params.read(ROOT / "params.yaml")
    spec = params.train.model_copy(update={"backend": backend})
    params = params.model_copy(update={"train": spec})
    engine = build_engine(params.model, params.optim, spec)
    never = STEPS + 1
    for turn in range(TURNS + 1):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            timings = {
                every: timed(engine, params, Path(folder) / str(every), every=every)
                # Whoever comes second finds a warmer machine.
                for every in ((never, SAVED) if turn % 2 else (SAVED, never))
            }
        (without_s, _), (with_s, saves) = timings[never], timings[SAVED]
        (save,) = (each for each in saves if each.step == SAVED)
        # The first turn compiles.
        if turn:
            told = {"without_s": without_s, "with_s": with_s, "blocked_s": save.blocked_s}
            about = {
                "writing_s": save.writing_s,
                "steps": STEPS - FIRST,
                "every": spec.checkpoint.every_steps,
            }
            print(json.dumps(told | about), flush=True)
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
