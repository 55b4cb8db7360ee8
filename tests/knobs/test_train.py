"""Every key of the `train` section changes what it says it changes."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from models.spec import ConstantCurve
from optim.controls import controls
from optim.rules import AdamW
from optim.schedules import Schedule
from optim.spec import OptimSpec
from tasks.prepare.batch import Batch
from tasks.prepare.order import sample_indices
from tasks.train.cluster import HANG_TIMEOUT, noticing_hangs
from tasks.train.deepspeed_config import deepspeed_config
from tasks.train.events import Events
from tasks.train.flax_step import FlaxEngine
from tasks.train.loop import Seat, run_loop, validation_batches
from tasks.train.run_spec import CheckpointSpec
from tasks.train.spec import TrainSpec
from tasks.train.stopping import Stopping
from tasks.train.torch_step import TorchEngine
from tasks.train.watchdog import Watchdog, guarded
from tasks.train.worker import build_engine
from tests.knobs.model import model
from tests.knobs.run import begun, ended, recovered, recovery_witnesses, run_witnesses, watching
from tests.knobs.twins import batch_of
from tests.knobs.witness import Witness, turn, unproven
from tests.train.bigram import CONTEXT, Bigram, checkpoints, tokens
from tests.train.runs import STEPS, Kill, events, run, small_data

Pair = Witness[TrainSpec]
SPEC = TrainSpec(
    backend="torch",
    steps=24,
    batch=4,
    log_every_steps=5,
    validate_every_steps=8,
    validation_batches=2,
    checkpoint=CheckpointSpec(every_steps=6, keep=2),
)
WITNESSES: tuple[Pair, ...] = (
    tuple(
        turn(
            "train",
            SPEC,
            {
                "backend": "flax",
                "steps": 20,
                "batch": 8,
                "accumulation": 2,
                "seed": 1,
                "precision": ["float64", "mixed_bfloat16", "mixed_float16"],
                "workers": 2,
                "zero_stage": [0, 2, 3],
                "compile": True,
                "log_every_steps": 4,
                "validate_every_steps": 6,
                "validation_batches": 1,
                "checkpoint.every_steps": 9,
                "checkpoint.keep": 1,
                "checkpoint.best": True,
                "compare_replicas_every_steps": 7,
                "restarts": 0,
                "hang_timeout_s": [None, 5.0],
            },
        )
    )
    + run_witnesses(SPEC)
    + recovery_witnesses(SPEC)
)
OPTIM = OptimSpec(rule=AdamW(), schedule=Schedule(peak=0.1, curve=ConstantCurve()))
TRAINING, VALIDATION = tokens(31), tokens(20, seed=1)


def witnesses(*seen: str) -> list[Pair]:
    """The witnesses that show in one of these."""
    return [pair for pair in WITNESSES if not pair.seen.isdisjoint(seen)]


class Noted(Bigram):
    """Notes which samples it measures, and when its copies are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.measured_on: list[list[int]] = []
        self.compared_after: list[int] = []

    def replicas(self) -> Any:
        self.compared_after.append(len(self.trained_on))
        return super().replicas()

    def loss(self, batch: Batch) -> Any:
        self.measured_on.append(batch.samples.tolist())
        return super().loss(batch)


def observed(spec: TrainSpec, folder: Path) -> dict[str, Any]:
    """What the loop does, as the first of its workers sees it."""
    held = checkpoints(folder, train=spec)
    engines = [Noted() for _ in range(spec.workers)]
    kept: list[tuple[int, ...]] = []

    def work(rank: int) -> None:
        run_loop(
            engines[rank],
            train=spec,
            optim=OPTIM,
            training=TRAINING,
            validation=VALIDATION,
            positions=CONTEXT,
            checkpoints=held,
            start=None,
            stopping=Stopping(folder, rank, spec.workers),
            seat=Seat(rank, spec.workers),
            told=lambda saved: kept.append(tuple(held.steps())),
            clock=lambda: 0.0,
        )

    with ThreadPoolExecutor(spec.workers) as workers:
        list(workers.map(work, range(spec.workers)))
    last = held.newest()
    assert last is not None
    curve = [(row.step, row.validation_loss is None) for row in last.manifest.ledger.curve]
    return {
        "batches": (engines[0].trained_on[:20], engines[0].measured_on[:2]),
        "curve": curve,
        "checkpoints": [steps for steps in kept if steps[-1] < 20],
        "comparisons": {*engines[0].compared_after} - {step for steps in kept for step in steps},
    }


def test_every_key_and_every_choice_has_a_witness() -> None:
    assert unproven("train", WITNESSES) == set()


SEEN = ("batches", "curve", "checkpoints", "comparisons")


# Steps and validations lie in the curve, whatever else follows from their number.
@pytest.mark.parametrize("pair", witnesses(*SEEN), ids=str)
def test_a_key_changes_what_the_loop_does(pair: Pair, tmp_path: Path) -> None:
    before, after = (
        observed(spec, tmp_path / name)
        for spec, name in ((pair.before, "before"), (pair.after, "after"))
    )
    changed = {name for name in before if before[name] != after[name]}
    assert changed == pair.seen


@pytest.mark.parametrize("pair", witnesses("start"), ids=str)
def test_a_key_changes_what_a_run_goes_on_from(pair: Pair, tmp_path: Path) -> None:
    before, after = (
        begun(spec.resume, tmp_path / name)
        for spec, name in ((pair.before, "before"), (pair.after, "after"))
    )
    assert before != after


@pytest.mark.parametrize("pair", witnesses("end"), ids=str)
def test_a_key_changes_when_a_run_ends(pair: Pair, tmp_path: Path) -> None:
    before, after = (
        ended(spec, tmp_path / name)
        for spec, name in ((pair.before, "before"), (pair.after, "after"))
    )
    assert before != after


@pytest.mark.parametrize("pair", witnesses("watching"), ids=str)
def test_a_key_changes_what_a_run_tells_of_itself(pair: Pair, tmp_path: Path) -> None:
    before, after = (
        watching(spec, tmp_path / name)
        for spec, name in ((pair.before, "before"), (pair.after, "after"))
    )
    assert [name for name in before if before[name] != after[name]] == [pair.key.split(".")[1]]


def test_the_seed_deals_samples_and_draws_weights_and_dropout() -> None:
    orders = [sample_indices(31, seed=seed, step=0, batch=8).tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]
    for backend in ("flax", "torch"):
        states = []
        for seed in (0, 1):
            spec = SPEC.model_copy(update={"backend": backend, "seed": seed, "batch": 3})
            engine = build_engine(model(), OPTIM, spec.model_copy(update={"precision": "float64"}))
            states.append(engine.state().weights["embedding.table.weight"])
        assert (states[0] != states[1]).any()


def test_every_worker_of_two_reads_its_half() -> None:
    (pair,) = (pair for pair in WITNESSES if pair.key == "train.workers")
    indices = np.arange(4)
    whole, half = (Seat(0, spec.workers).rows(indices) for spec in (pair.before, pair.after))
    assert (len(whole), len(half)) == (4, 2)
    assert [len(validation_batches(20, spec)[0]) for spec in (pair.before, pair.after)] == [4, 4]


def test_the_backend_is_the_class_that_computes() -> None:
    spec = SPEC.model_copy(update={"precision": "float64", "batch": 3})
    engines = {
        backend: build_engine(model(), OPTIM, spec.model_copy(update={"backend": backend}))
        for backend in ("flax", "torch")
    }
    assert [type(engine).__name__ for engine in engines.values()] == ["FlaxEngine", "TorchEngine"]


@pytest.mark.parametrize("backend", ["flax", "torch"])
def test_precision_is_of_the_update(backend: str) -> None:
    pairs = [pair for pair in WITNESSES if pair.key == "train.precision"]
    inputs, targets = batch_of(model(), model())
    batch = Batch(inputs.astype(np.int32), targets.astype(np.int32), np.arange(3))
    found = {}
    for spec in (pairs[0].before, *(pair.after for pair in pairs)):
        changes = {"backend": backend, "batch": 3, "zero_stage": 0}
        engine = build_engine(model(), OPTIM, spec.model_copy(update=changes))
        result = engine.step(batch, controls(OPTIM, step=0, total_steps=spec.steps))
        found[spec.precision] = (engine.state().weights["norm.weight"].dtype, result.loss)
        engine.close()
    kinds = {precision: str(dtype) for precision, (dtype, _) in found.items()}
    assert kinds == {
        "float32": "float32",
        "float64": "float64",
        "mixed_bfloat16": "float32",
        "mixed_float16": "float32",
    }
    exact = found["float64"][1]
    away = {precision: abs(loss / exact - 1) for precision, (_, loss) in found.items()}
    assert away["float32"] < 1e-6 < away["mixed_float16"] < away["mixed_bfloat16"] < 1e-2


@pytest.mark.parametrize("pair", witnesses("recovery", "loss scale"), ids=str)
def test_a_key_changes_what_a_run_does_about_bad_steps(pair: Pair, tmp_path: Path) -> None:
    before, after = (
        recovered(spec, tmp_path / name)
        for spec, name in ((pair.before, "before"), (pair.after, "after"))
    )
    assert before != after


@pytest.mark.parametrize("backend", ["flax", "torch"])
def test_accumulation_cuts_the_passes_and_leaves_the_numbers(backend: str) -> None:
    (pair,) = witnesses("passes")
    inputs, targets = batch_of(model(), model())
    rows = np.resize(np.arange(3), pair.before.batch)
    batch = Batch(inputs[rows].astype(np.int32), targets[rows].astype(np.int32), np.arange(4))
    losses = []
    for spec in (pair.before, pair.after):
        changes = {"backend": backend, "precision": "float64"}
        engine = build_engine(model(), OPTIM, spec.model_copy(update=changes))
        sizes = _passes(engine, batch)
        assert sizes == {spec.batch // spec.accumulation}
        losses.append(engine.step(batch, controls(OPTIM, step=1, total_steps=spec.steps)).loss)
        engine.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def _passes(engine: Any, batch: Batch) -> set[int]:
    """How many rows go through the model at a time."""
    if isinstance(engine, FlaxEngine):
        return {engine._cut_rows(batch.samples).shape[1]}
    return {len(part.samples) for part in engine._cut(batch)}


def test_layers_are_compiled_where_that_is_asked_for() -> None:
    (pair,) = witnesses("compilation")
    compiled = []
    for spec in (pair.before, pair.after):
        engine = TorchEngine(model(), OPTIM, spec)
        compiled.append([block._compiled_call_impl is not None for block in engine._model.blocks()])
        engine.close()
    assert compiled == [[False], [True]]


@pytest.mark.parametrize("pair", witnesses("layout"), ids=str)
def test_a_stage_shares_out_more_in_both_frameworks(pair: Pair) -> None:
    stages = []
    for spec in (pair.before, pair.after):
        config = deepspeed_config([(3,)], spec, stage=spec.zero_stage)
        stages.append(config["zero_optimization"]["stage"])
    assert stages == [pair.before.zero_stage, pair.after.zero_stage]
    assert placements(pair.before) != placements(pair.after)


def placements(spec: TrainSpec) -> str:
    """The lowered step of the Flax engine: where it lays weights, slots and gradients."""
    engine = FlaxEngine(model(), OPTIM, spec.model_copy(update={"backend": "flax"}))
    lowered: list[str] = []
    compiled = engine._step

    def listening(*arguments: Any) -> Any:
        lowered.append(compiled.lower(*arguments).as_text())
        return compiled(*arguments)

    engine._step = listening  # type: ignore[assignment]
    inputs, targets = batch_of(model(), model())
    rows = np.resize(np.arange(3), spec.batch)
    with jax.enable_x64(False):
        engine.step(
            Batch(inputs[rows].astype(np.int32), targets[rows].astype(np.int32), rows),
            controls(OPTIM, step=0, total_steps=spec.steps),
        )
    return lowered[0]


@pytest.mark.parametrize("pair", witnesses("patience"), ids=str)
def test_a_key_changes_how_long_a_worker_is_waited_for(pair: Pair, tmp_path: Path) -> None:
    def waited_for(spec: TrainSpec) -> list[float]:
        events = Events(tmp_path / "events.jsonl")
        with guarded(events, rank=0, timeout_s=spec.hang_timeout_s) as watching:
            itself = [each.timeout_s for each in watching if isinstance(each, Watchdog)]
        with noticing_hangs(spec.hang_timeout_s):
            return [*itself, float(os.environ[HANG_TIMEOUT])]

    assert waited_for(pair.before) == [600.0, 600.0]
    assert waited_for(pair.after) == ([5.0, 5.0] if pair.after.hang_timeout_s else [math.inf])


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_as_often_as_allowed(tmp_path: Path) -> None:
    (pair,) = witnesses("attempts")
    data = small_data(tmp_path)
    for spec, name in ((pair.after, "never"), (pair.before, "thrice")):
        folder = tmp_path / name
        folder.mkdir()
        changes = {"restarts": spec.restarts}
        kill = Kill(folder)
        if spec.restarts:
            assert run(data, folder, changes=changes, progress=kill).steps == STEPS
            begun = [event for event in events(folder) if event["event"] in ("started", "resumed")]
            assert len(begun) == 2
        else:
            with pytest.raises(ChildProcessError, match="train.restarts=0 did not help"):
                run(data, folder, changes=changes, progress=kill)
        assert kill.killed
