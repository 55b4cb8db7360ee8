"""Workers and ZeRO stages share the work out and leave the numbers alone."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from torch import distributed

from tasks.train.engine import Engine
from tasks.train.flax_step import FlaxEngine
from tasks.train.torch_step import TorchEngine
from tests.tolerances import CURVE_FLOAT64
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

STEPS = 8
HALF = 4
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


def torch_worker(rank: int, port: int, runs: list[dict[str, Any]]) -> list[Trained]:
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
        return [
            trained(
                lambda: TorchEngine(MODELS[MODEL], OPTIM, train_spec("torch", workers=2, **named)),
                rank=rank,
                workers=2,
            )
            for named in runs
        ]
    finally:
        distributed.destroy_process_group()


def flax_worker(rank: int, port: int, runs: list[dict[str, Any]]) -> list[Trained]:
    """One of two JAX processes with one device each."""
    jax.distributed.initialize(
        f"127.0.0.1:{port}", num_processes=2, process_id=rank, initialization_timeout=LIMIT_S
    )
    try:
        return [
            trained(
                lambda: flax(MODELS[MODEL], OPTIM, train_spec("flax", workers=2, **named)),
                rank=rank,
                workers=2,
            )
            for named in runs
        ]
    finally:
        jax.distributed.shutdown()  # type: ignore[no-untyped-call]


def flax_devices(runs: list[dict[str, Any]]) -> tuple[str, list[Trained]]:
    """One JAX process with two devices, and what it says to a batch that they cannot share."""
    # Read when JAX makes its first device, which importing does not.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    spec = MODELS[MODEL]
    try:
        FlaxEngine(spec, OPTIM, train_spec("flax").model_copy(update={"batch": 3}))
    except ValueError as error:
        refusal = str(error)
    return refusal, [
        trained(lambda: flax(spec, OPTIM, train_spec("flax", **named)), rank=0, workers=1)
        for named in runs
    ]


def in_two_processes(
    worker: Callable[[int, int, list[dict[str, Any]]], list[Trained]], runs: list[dict[str, Any]]
) -> list[list[Trained]]:
    """What each of two new processes returns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        ranks = [pool.submit(worker, rank, port, runs) for rank in range(2)]
        return [rank.result() for rank in ranks]


def assert_in_band(found: Trained, *, precision: str) -> None:
    away = distance(np.array(found.losses), exact_losses(MODEL))
    wide = precision == "float64"
    assert (away < (CURVE_FLOAT64 if wide else float32_band(MODEL)[:STEPS])).all(), away
    assert found.same_after_loading
    assert found.loss_sum[1] == batch(MODELS[MODEL], step=99).targets.size


@pytest.mark.slow
def test_two_torch_workers_equal_one_at_every_zero_stage() -> None:
    runs: list[dict[str, Any]] = [
        {"precision": "float64", "accumulation": 2},
        *({"precision": "float32", "zero_stage": stage} for stage in range(4)),
        *({"precision": "float32", "zero_stage": s, "accumulation": 2} for s in (0, 2, 3)),
    ]
    first, second = in_two_processes(torch_worker, runs)
    for named, found, other in zip(runs, first, second, strict=True):
        assert_in_band(found, precision=named["precision"])
        assert found == other


@pytest.mark.slow
def test_two_jax_processes_equal_one() -> None:
    runs: list[dict[str, Any]] = [
        {"precision": "float64", "zero_stage": 3},
        {"precision": "float32", "zero_stage": 1, "accumulation": 2},
    ]
    first, second = in_two_processes(flax_worker, runs)
    for named, found, other in zip(runs, first, second, strict=True):
        assert_in_band(found, precision=named["precision"])
        assert found == other


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
