"""Keys of `train` that say what a run goes on from, when it ends, and what it tells of itself."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

from models.presets import tiny_language
from optim.controls import Controls
from tasks.prepare.batch import Batch
from tasks.prepare.order import sample_indices
from tasks.train.callbacks import Step
from tasks.train.engine import StepResult
from tasks.train.loop import Seat, run_loop
from tasks.train.recovery import BadNumbers
from tasks.train.resume import settle
from tasks.train.run_spec import Across, EarlyStopping, Fresh, ProfileSpec, Require, Resume
from tasks.train.spec import TrainSpec
from tasks.train.stopping import Stopping
from tasks.train.worker import Job, peak_of, watched
from tests.knobs.witness import Witness, turn
from tests.train.bigram import CONTEXT, OPTIM, Bigram, Bumpy, checkpoints, tokens
from tests.train.writer import ABOUT, state

PORT, PEAK = 41839, 1e12


def run_witnesses(spec: TrainSpec) -> tuple[Witness[TrainSpec], ...]:
    """Pairs for the keys of `tasks.train.run_spec` and those that stand beside them."""
    told = spec.model_copy(update={"peak_flops": PEAK})
    frequent = spec.model_copy(update={"validate_every_steps": 2})
    impatient = frequent.model_copy(update={"early_stopping": EarlyStopping(patience=1)})
    traced = told.model_copy(update={"profile": ProfileSpec(start=2)})
    across = spec.model_copy(update={"resume": Across(fields=("code",))})
    return (
        *turn("train", spec, {"resume": [Require(), Fresh(), Across(fields=("code",))]}),
        *turn("train", across, {"resume.fields": [("data",)]}),
        *turn("train", frequent, {"early_stopping": EarlyStopping(patience=1)}),
        *turn(
            "train", impatient, {"early_stopping.patience": 2, "early_stopping.least_change": 1.5}
        ),
        *turn("train", told, {"profile": ProfileSpec(start=2), "metrics_port": PORT}),
        *turn("train", traced, {"profile.start": 3, "profile.steps": 2}),
        *turn("train", spec, {"peak_flops": PEAK}),
    )


def recovery_witnesses(spec: TrainSpec) -> tuple[Witness[TrainSpec], ...]:
    """Pairs for what a run does about bad steps, and about overflows of float16."""
    spiky = spec.model_copy(update={"bad_numbers": BadNumbers(spike=3.0, window=10)})
    half = spec.model_copy(update={"precision": "mixed_float16"})
    return (
        *turn("train", spec, {"bad_numbers.action": ["skip", "stop"], "bad_numbers.times": 1}),
        *turn("train", spec, {"bad_numbers.spike": 3.0}),
        *turn("train", spiky, {"bad_numbers.window": 20}),
        *turn("train", half, {"loss_scale.initial": 8.0, "loss_scale.growth_steps": 4}),
    )


def recovered(spec: TrainSpec, folder: Path) -> list[tuple[object, ...]]:
    """What is told of a run with bad gradients and spikes, and the scales of its losses."""

    def first_of(place: int) -> int:
        return int(sample_indices(200, seed=spec.seed, step=place, batch=spec.batch)[0])

    bad = [first_of(8), first_of(10)] if spec.bad_numbers.spike is None else []
    engine, held = Sick(bad, first_of(22)), checkpoints(folder, train=spec)
    try:
        run_loop(
            engine,
            train=spec,
            optim=OPTIM,
            training=tokens(200),
            validation=tokens(9, seed=1),
            positions=CONTEXT,
            checkpoints=held,
            start=None,
            stopping=Stopping(folder),
        )
    except ValueError as error:
        engine.told.append((str(error).split(":")[0],))
    told = [(event["event"], event.get("step")) for event in held.events.read()]
    return [*told, *engine.told]


class Sick(Bigram):
    """Has no gradient for some samples, and a spike for another."""

    def __init__(self, bad: Sequence[int], spiky: int) -> None:
        super().__init__()
        self.bad, self.spiky, self.told = set(bad), spiky, list[tuple[object, ...]]()

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        self.told.append((loss_scale,))
        samples = set(batch.samples.tolist())
        if samples & self.bad:
            return StepResult(2.0, float("inf"), objective=2.0, taken=False)
        result = super().step(batch, controls, loss_scale=loss_scale)
        # Losses rise step by step, so that a longer window has a lower median.
        loss = 1.0 + 0.25 * controls.step
        return replace(result, loss=2.2 * loss if self.spiky in samples else loss)


def begun(resume: Resume, folder: Path) -> list[int | str | None]:
    """The step that a run goes on from: one that was interrupted, and one beside another run."""
    started: list[int | str | None] = []
    for name, steps in (("interrupted", [1]), ("new", [])):
        own = checkpoints(folder / name / "own")
        other = checkpoints(folder / name / "other", changed={"code": "0"})
        for held, saved in ((own, steps), (other, [2])):
            held.folder.mkdir(parents=True)
            for step in saved:
                held.save(state(step), step=step, **ABOUT)
        try:
            settle(resume, own)
        except ValueError:
            started.append("refused")
        else:
            found = own.newest()
            started.append(found.manifest.step if found else None)
    return started


def ended(spec: TrainSpec, folder: Path) -> int:
    """The step after which a run ends whose validation loss falls and rises."""
    return run_loop(
        Bumpy(),
        train=spec,
        optim=OPTIM,
        training=tokens(31),
        validation=tokens(9, seed=1),
        positions=CONTEXT,
        checkpoints=checkpoints(folder, train=spec),
        start=None,
        stopping=Stopping(folder),
    ).step


def watching(spec: TrainSpec, folder: Path) -> dict[str, Any]:
    """What a run of some steps tells, by the key that asks for it."""
    folder.mkdir()
    job = Job(
        model=tiny_language(),
        optim=OPTIM,
        train=spec,
        data="",
        folder=str(folder),
        identity={},
    )
    peak, answers = peak_of(job, Seat()), False
    with watched(job, seat=Seat(), peak=peak, done=0) as (callbacks, _):
        for done in range(1, 9):
            step = Step(done, StepResult(2.0, 1.0, 2.0), 0.1, 16, 1.0, 0.0)
            for callback in callbacks:
                callback.after_step(step)
        with suppress(URLError):
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=5) as answer:
                answers = b"tandem_train_step" in answer.read()
    return {
        "profile": sorted(path.name for path in folder.rglob("steps-*")),
        "metrics_port": answers,
        "peak_flops": peak.flops_per_s == PEAK,
    }
