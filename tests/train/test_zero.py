"""Workers and ZeRO stages share the work out and leave the numbers alone."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pytest
from torch import distributed

from optim.controls import controls
from optim.norms import remembered
from optim.spec import OptimSpec
from optim.state import judged
from tasks.train.engine import Engine
from tasks.train.flax_step import FlaxEngine
from tasks.train.regularise_spec import MeanTeacher, RegulariseSpec
from tasks.train.scaling import LossScale, LossScaleSpec, moved
from tasks.train.spec import TrainSpec
from tasks.train.torch_step import TorchEngine
from tasks.train.worker import build_engine
from tests.optim.step_runs import MODEL as SMALL
from tests.optim.step_runs import RULES, Ran, apart, batches, by_definition, recipe
from tests.tolerances import CURVE_FLOAT32_FACTOR, CURVE_FLOAT32_LOSS, CURVE_FLOAT64
from tests.train.engines import (
    BATCH,
    MODELS,
    OPTIM,
    batch,
    distance,
    exact_losses,
    flax,
    float32_band,
    run,
    train_spec,
)
from tests.train.processes import in_two_processes

Backend = Literal["flax", "torch"]
Stage = Literal[0, 1, 2, 3]
STEPS = 8
HALF = 4
CASE_STEPS = 12
MODEL = "tiny_language"
LIMIT_S = 120


class Trained(NamedTuple):
    """What one worker saw: a run of eight steps, saved and loaded half way."""

    losses: list[float]
    norms: list[float]
    loss_sum: tuple[float, int]
    same_after_loading: bool
    shared: dict[str, int]


def trained(open_engine: Callable[[], Engine], *, rank: int, workers: int) -> Trained:
    """Run, save, run astray, load what was saved, run on."""
    spec = MODELS[MODEL]
    engine = open_engine()
    results = run(engine, spec, steps=HALF, rank=rank, workers=workers)
    measured = engine.loss(batch(spec, step=99, rank=rank, workers=workers))
    saved = engine.state()
    run(engine, spec, start=HALF, steps=HALF + 1, rank=rank, workers=workers)
    engine.close()
    engine = open_engine()
    engine.load(saved)
    again = engine.state()
    same = all(
        np.array_equal(arrays[name], others[name])
        for arrays, others in (
            (again.weights, saved.weights),
            *((again.slots[slot], saved.slots[slot]) for slot in saved.slots),
        )
        for name in others
    )
    results += run(engine, spec, start=HALF, steps=STEPS, rank=rank, workers=workers)
    shared = shares(engine)
    engine.close()
    return Trained(
        [result.loss for result in results],
        [result.gradient_norm for result in results],
        (measured.loss, measured.targets),
        same,
        shared,
    )


def shares(engine: Engine) -> dict[str, int]:
    """Values that this process holds of the weights and of the slots, per device."""
    if not isinstance(engine, FlaxEngine):
        return {}
    carry = engine._carry
    return {
        "weights": sum(a.addressable_data(0).size for a in carry.weights.values()),
        "slots": sum(a.addressable_data(0).size for a in carry.slots["first_moment"].values()),
    }


class Case(NamedTuple):
    """A rule with stages of `tests.optim.step_runs`, on the small model there."""

    rule: str
    stage: str
    precision: Literal["float32", "float64", "mixed_float16"]
    zero_stage: Stage
    accumulation: int = 1

    @property
    def optim(self) -> OptimSpec:
        """The whole optimizer."""
        found = recipe(self.rule, self.stage)
        assert found is not None
        return found

    def train(self, backend: Backend, *, workers: int) -> TrainSpec:
        """A run of it; a scale begins above what float16 gradients bear and comes back to it."""
        return TrainSpec(
            backend=backend,
            steps=CASE_STEPS,
            batch=BATCH,
            seed=7,
            precision=self.precision,
            loss_scale=LossScaleSpec(initial=2.0**23, growth_steps=2),
            workers=workers,
            zero_stage=self.zero_stage,
            accumulation=self.accumulation,
        )


class Ended(NamedTuple):
    """A worker's run of a case, and the scale of each step's loss."""

    ran: Ran
    scales: list[float]


def ended(case: Case, backend: Backend, *, rank: int, workers: int) -> Ended:
    """Train on a worker's rows of ragged batches, where workers score different numbers."""
    optim, train = case.optim, case.train(backend, workers=workers)
    engine = build_engine(SMALL, optim, train)
    scaled = case.precision == "mixed_float16"
    scale = LossScale(train.loss_scale.initial) if scaled else LossScale()
    norms: tuple[float, ...] = ()
    share, seen, scales = BATCH // workers, [], []
    for step, whole in enumerate(batches(CASE_STEPS)):
        now = controls(optim, step=step, total_steps=CASE_STEPS, norms=norms)
        own = whole.rows(slice(rank * share, (rank + 1) * share))
        result = engine.step(own, now, loss_scale=scale.value)
        scales.append(scale.value)
        norm = result.gradient_norm
        if scaled:
            scale = moved(train.loss_scale, scale, finite=bool(np.isfinite(norm)))
        norms = remembered(optim.gradient, norms, norm)
        seen.append((result.objective, norm if np.isfinite(norm) else 0.0, result.taken))
    state = engine.state()
    engine.close()
    objectives, found_norms, taken = zip(*seen, strict=True)
    weights = judged(optim, state.weights, state.slots)
    return Ended(Ran(np.array(objectives), np.array(found_norms), list(taken), weights), scales)


class Did(NamedTuple):
    """Everything that one worker did."""

    trained: list[Trained]
    ended: list[Ended]


def torch_worker(rank: int, port: int, runs: list[dict[str, Any]], cases: list[Case]) -> Did:
    """One of two gloo ranks."""
    os.environ["LOCAL_RANK"] = str(rank)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=LIMIT_S),
    )
    try:
        whole = [
            trained(
                lambda: TorchEngine(MODELS[MODEL], OPTIM, train_spec("torch", workers=2, **named)),
                rank=rank,
                workers=2,
            )
            for named in runs
        ]
        return Did(whole, [ended(case, "torch", rank=rank, workers=2) for case in cases])
    finally:
        distributed.destroy_process_group()


def flax_worker(rank: int, port: int, runs: list[dict[str, Any]], cases: list[Case]) -> Did:
    """One of two JAX processes with one device each."""
    jax.distributed.initialize(
        f"127.0.0.1:{port}", num_processes=2, process_id=rank, initialization_timeout=LIMIT_S
    )
    try:
        whole = [
            trained(
                lambda: flax(MODELS[MODEL], OPTIM, train_spec("flax", workers=2, **named)),
                rank=rank,
                workers=2,
            )
            for named in runs
        ]
        return Did(whole, [ended(case, "flax", rank=rank, workers=2) for case in cases])
    finally:
        jax.distributed.shutdown()  # type: ignore[no-untyped-call]


def flax_devices(runs: list[dict[str, Any]]) -> tuple[str, list[Trained]]:
    """One JAX process with two devices, and what it says to a batch that they cannot share."""
    # Read when JAX makes its first device, which importing does not.
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    spec = MODELS[MODEL]
    try:
        FlaxEngine(spec, OPTIM, train_spec("flax").model_copy(update={"batch": 3}))
    except ValueError as error:
        refusal = str(error)
    return refusal, [
        trained(lambda: flax(spec, OPTIM, train_spec("flax", **named)), rank=0, workers=1)
        for named in runs
    ]


def assert_in_band(found: Trained, *, precision: str) -> None:
    away = distance(np.array(found.losses), exact_losses(MODEL))
    wide = precision == "float64"
    assert (away < (CURVE_FLOAT64 if wide else float32_band(MODEL)[:STEPS])).all(), away
    assert found.same_after_loading
    assert found.loss_sum[1] == batch(MODELS[MODEL], step=99).targets.size


def assert_equal_to_one(case: Case, backend: Backend, found: Ended, other: Ended) -> None:
    """Two workers agree to the bit, and with what one would do."""
    assert found.scales == other.scales and found.ran.taken == other.ran.taken
    assert _same(found.ran, other.ran)
    if case.precision == "mixed_float16":
        # The decisions; `tests/train/test_precision.py` has the numbers.
        one = ended(case, backend, rank=0, workers=1)
        assert (found.scales, found.ran.taken) == (one.scales, one.ran.taken)
        assert not all(one.ran.taken) and any(one.ran.taken)
        return
    exact = by_definition(case.optim, steps=CASE_STEPS)
    assert found.ran.taken == exact.taken, case
    if case.precision == "float64":
        assert apart(found.ran, exact) < CURVE_FLOAT64, case
        return
    rough = by_definition(case.optim, steps=CASE_STEPS, arithmetic=np.float32)
    band = CURVE_FLOAT32_LOSS + CURVE_FLOAT32_FACTOR * _off(rough, exact)
    assert _off(found.ran, exact) < band, case


def _off(found: Ran, exact: Ran) -> float:
    return float(np.abs(found.objectives / exact.objectives - 1).max())


def _same(found: Ran, other: Ran) -> bool:
    return np.array_equal(found.objectives, other.objectives) and all(
        found.weights[name].tobytes() == values.tobytes() for name, values in other.weights.items()
    )


# Rules that take slices, at each stage that hands them out; every rule where weights are whole.
SLICED = ("sgd", "adamw", "lion", "adan")
STAGES = ("norm", "percentile", "value", "skip", "ema", "swa")
TORCH = [
    *(Case(rule, "all", "float64", 0, 1 + number % 2) for number, rule in enumerate(RULES)),
    Case("soap", "norm", "float32", 0),
    Case("schedule_free", "norm", "float32", 0, 2),
    Case("lion", "percentile", "float32", 1, 2),
    Case("sgd", "ema", "float32", 2),
    Case("adan", "norm", "float32", 3),
    Case("adan", "ema", "float32", 1),
    Case("lion", "norm", "float32", 3, 2),
    Case("sgd", "norm", "mixed_float16", 2, 2),
]
FLAX = [
    Case("muon", "norm", "float64", 3, 2),
    Case("sgd", "norm", "mixed_float16", 2),
]
STAGED: tuple[tuple[Stage, int], ...] = ((0, 1), (1, 2), (2, 1), (3, 2))
EVERY_TORCH = [
    # Centred rows leave directions to SOAP in which it divides one rounding by another.
    *(Case(rule, "norm" if rule == "soap" else "all", "float32", 0, 2) for rule in RULES),
    *(
        Case(rule, stage, "float32", zero_stage, accumulation)
        for rule in SLICED
        for stage in STAGES
        for zero_stage, accumulation in STAGED
    ),
]
EVERY_FLAX = [
    *(Case(rule, "all", "float64", 3) for rule in RULES),
    *(Case(rule, "norm", "float32", 1, 2) for rule in RULES),
]


def assert_all_equal_to_one(cases: list[Case], backend: Backend, first: Did, second: Did) -> None:
    for case, found, other in zip(cases, first.ended, second.ended, strict=True):
        assert_equal_to_one(case, backend, found, other)


@pytest.mark.slow
def test_two_torch_workers_equal_one_at_every_zero_stage() -> None:
    runs: list[dict[str, Any]] = [
        {"precision": "float64", "accumulation": 2},
        *({"precision": "float32", "zero_stage": stage} for stage in range(4)),
        *({"precision": "float32", "zero_stage": s, "accumulation": 2} for s in (0, 2, 3)),
    ]
    first, second = in_two_processes(torch_worker, runs, TORCH)
    for named, found, other in zip(runs, first.trained, second.trained, strict=True):
        assert_in_band(found, precision=named["precision"])
        assert found == other
    assert_all_equal_to_one(TORCH, "torch", first, second)


@pytest.mark.slow
def test_two_jax_processes_equal_one() -> None:
    runs: list[dict[str, Any]] = [
        {"precision": "float64", "zero_stage": 3},
        {"precision": "float32", "zero_stage": 1, "accumulation": 2},
    ]
    first, second = in_two_processes(flax_worker, runs, FLAX)
    for named, found, other in zip(runs, first.trained, second.trained, strict=True):
        assert_in_band(found, precision=named["precision"])
        assert found == other
    assert_all_equal_to_one(FLAX, "flax", first, second)


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_every_rule_on_two_torch_workers_equals_one() -> None:
    assert_all_equal_to_one(EVERY_TORCH, "torch", *in_two_processes(torch_worker, [], EVERY_TORCH))


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_every_rule_on_two_jax_processes_equals_one() -> None:
    assert_all_equal_to_one(EVERY_FLAX, "flax", *in_two_processes(flax_worker, [], EVERY_FLAX))


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in SLICED])
def test_rules_that_need_whole_weights_are_refused_where_torch_workers_share_them(
    rule: str, stage: Literal[1, 2, 3]
) -> None:
    case = Case(rule, "norm", "float32", stage)
    reason = (
        f"optim.rule.kind must be a rule that works value by value .* got {rule}, and .* "
        "Try train.zero_stage=0, train.backend=flax, or train.workers=1"
    )
    with pytest.raises(ValueError, match=reason):
        TorchEngine(SMALL, case.optim, case.train("torch", workers=2))


def test_stages_and_teachers_that_need_whole_weights_are_refused_likewise() -> None:
    for stage, key in (("centralize", "centralize"), ("units", "clip_units"), ("noise", "noise")):
        case = Case("adamw", stage, "float32", 1)
        with pytest.raises(ValueError, match=f"optim.gradient.{key} needs whole weights.* Try"):
            TorchEngine(SMALL, case.optim, case.train("torch", workers=2))
    case = Case("adamw", "ema", "float32", 1)
    with pytest.raises(ValueError, match="mean_teacher needs the whole average .* Try"):
        TorchEngine(
            SMALL,
            case.optim,
            case.train("torch", workers=2),
            regularise=RegulariseSpec(consistency=MeanTeacher()),
        )


@pytest.mark.slow
def test_the_zero_stage_changes_who_holds_what_and_not_the_numbers() -> None:
    spawn = multiprocessing.get_context("spawn")
    stages = range(4)
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        runs = [{"zero_stage": stage} for stage in stages]
        refusal, results = pool.submit(flax_devices, runs).result()
    whole = results[0].shared["weights"]
    held = [(found.shared["weights"] / whole, found.shared["slots"] / whole) for found in results]
    assert held == [(1.0, 1.0), (1.0, 0.5), (1.0, 0.5), (0.5, 0.5)]
    for found in results:
        assert_in_band(found, precision="float64")
    assert refusal == (
        f"train.batch must be a multiple of the number of JAX devices x train.accumulation; "
        f"got batch={BATCH - 1}, devices=2, accumulation=1. Try batch={BATCH}."
    )
