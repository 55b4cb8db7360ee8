"""The two engines are one step: float64 judges, float32 stays in a measured band."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest
from deepspeed.runtime.engine import DeepSpeedEngine

from models.spec import ModelSpec, RmsNorm, Rope
from optim.gradient import GradientSpec
from optim.spec import OptimSpec
from tasks.train.engine import Engine, EngineState
from tasks.train.flax_step import FlaxEngine
from tasks.train.spec import TrainSpec
from tasks.train.torch_step import TorchEngine
from tests.tolerances import CURVE_FLOAT64
from tests.train.engines import (
    MODELS,
    OPTIM,
    batch,
    distance,
    exact_losses,
    flax,
    float32_band,
    losses,
    run,
    shared,
    train_spec,
)

LANGUAGE = MODELS["tiny_language"]
Build = Callable[[ModelSpec, OptimSpec, TrainSpec], Engine]
FLOAT64: dict[str, Build] = {"flax": flax, "torch": TorchEngine}


def plain(model: ModelSpec, optim: OptimSpec, train: TrainSpec) -> Engine:
    return TorchEngine(model, optim, train, engine="plain")


@contextmanager
def opened(
    build: Build,
    *,
    model: ModelSpec = LANGUAGE,
    optim: OptimSpec = OPTIM,
    **train: Any,
) -> Iterator[Engine]:
    engine = build(model, optim, train_spec(**train))
    try:
        yield engine
    finally:
        engine.close()


@pytest.mark.parametrize("model", MODELS)
def test_50_steps_in_float64_give_the_same_losses_in_both_frameworks(model: str) -> None:
    with opened(TorchEngine, model=MODELS[model]) as engine:
        found = losses(run(engine, MODELS[model], steps=50))
    assert distance(found, exact_losses(model)).max() < CURVE_FLOAT64


def changed(spec: Any, **update: Any) -> Any:
    """A spec with other values; `rule` reaches into the optimizer's rule."""
    if "rule" in update:
        update["rule"] = spec.rule.model_copy(update=update["rule"])
    return spec.model_copy(update=update)


MISTAKES: dict[str, dict[str, Any]] = {
    "no decay": {"optim": changed(OPTIM, rule={"decay": 0.0})},
    "another beta2": {"optim": changed(OPTIM, rule={"beta2": 0.951})},
    "another epsilon": {"optim": changed(OPTIM, rule={"epsilon": 1e-7})},
    "no clipping": {"optim": changed(OPTIM, gradient=GradientSpec(clip=None))},
    "another norm epsilon": {"model": changed(LANGUAGE, norm=RmsNorm(epsilon=1.1e-5))},
    "another rotary base": {"model": changed(LANGUAGE, positions=Rope(base=10_500.0))},
    "no dropout": {"model": changed(LANGUAGE, dropout=type(LANGUAGE.dropout)())},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_leaves_the_curve(mistake: str) -> None:
    with opened(plain, **MISTAKES[mistake]) as engine:
        optim = MISTAKES[mistake].get("optim", OPTIM)
        found = losses(run(engine, LANGUAGE, steps=8, optim=optim))
    away = distance(found, exact_losses("tiny_language"))
    assert away.max() > 1e3 * CURVE_FLOAT64
    assert (away > float32_band("tiny_language")[:8]).any()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("build", [flax, TorchEngine, plain])
def test_50_steps_in_float32_stay_in_the_band(model: str, build: Build) -> None:
    with opened(build, model=MODELS[model], precision="float32") as engine:
        found = losses(run(engine, MODELS[model], steps=50))
    assert (distance(found, exact_losses(model)) < float32_band(model)).all()


@pytest.mark.parametrize("reader", FLOAT64)
@pytest.mark.parametrize("writer", FLOAT64)
def test_a_state_goes_on_in_either_framework(writer: str, reader: str) -> None:
    with opened(FLOAT64[writer]) as engine:
        run(engine, LANGUAGE, steps=5)
        state = engine.state()
        run(engine, LANGUAGE, start=5, steps=6)
    with opened(FLOAT64[reader]) as engine:
        engine.load(state)
        found = losses(run(engine, LANGUAGE, start=5, steps=12))
    assert distance(found, exact_losses("tiny_language")[5:]).max() < CURVE_FLOAT64


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_deepspeed_state_round_trips_bit_for_bit(stage: int) -> None:
    named: dict[str, Any] = {"precision": "float32", "zero_stage": stage}
    with opened(shared, **named) as engine:
        run(engine, LANGUAGE, steps=3)
        saved = engine.state()
        expected = run(engine, LANGUAGE, start=3, steps=5)
        after = engine.state()
    with opened(shared, **named) as engine:
        engine.load(saved)
        assert_equal(engine.state(), saved)
        assert run(engine, LANGUAGE, start=3, steps=5) == expected
        assert_equal(engine.state(), after)


def assert_equal(found: EngineState, expected: EngineState) -> None:
    for arrays, others in (
        (found.weights, expected.weights),
        *((found.slots[slot], expected.slots[slot]) for slot in expected.slots),
    ):
        assert list(arrays) == list(others)
        for name in others:
            np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)


@pytest.mark.parametrize("build", [flax, TorchEngine, plain])
def test_a_loaded_weight_alone_starts_with_empty_slots(build: Build) -> None:
    with opened(build, precision="float32") as engine:
        start = engine.state()
        first = run(engine, LANGUAGE, steps=2)
        engine.load(EngineState(start.weights))
        assert run(engine, LANGUAGE, steps=2) == first


def test_one_worker_flattens_no_weight_and_copies_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It shares with nobody, whatever `train.zero_stage` says."""
    copied: list[object] = []
    reduce = DeepSpeedEngine.buffered_allreduce_fallback

    def noted(engine: object, **named: object) -> None:
        copied.append(engine)
        reduce(engine, **named)

    monkeypatch.setattr(DeepSpeedEngine, "buffered_allreduce_fallback", noted)
    with opened(TorchEngine, precision="float32", zero_stage=2) as engine:
        assert isinstance(engine, TorchEngine)
        run(engine, LANGUAGE, steps=2)
        groups = engine._optimizer.param_groups
        own = {id(parameter) for parameter in engine._model.parameters()}
    assert {id(each) for group in groups for each in group["params"]} <= own
    assert copied == []


@pytest.mark.parametrize(
    ("build", "stage"),
    [(flax, 1), (plain, 1), *((shared, stage) for stage in range(4))],
)
def test_a_step_without_a_finite_gradient_changes_nothing(build: Build, stage: int) -> None:
    with opened(build, precision="float32", zero_stage=stage) as engine:
        run(engine, LANGUAGE, steps=1)
        state = engine.state()
        state.weights["layers.1.feed_forward.up.weight"][:] = 3e38
        engine.load(state)
        (result,) = run(engine, LANGUAGE, start=1, steps=2)
        assert not np.isfinite(result.gradient_norm)
        assert_equal(engine.state(), state)


@pytest.mark.parametrize("build", [flax, TorchEngine])
def test_measuring_uses_no_dropout_and_changes_nothing(build: Build) -> None:
    with opened(build, precision="float32") as engine:
        before = engine.state()
        rows = batch(LANGUAGE, step=0)
        measured = engine.loss(rows)
        assert measured.targets == rows.targets.size
        assert engine.loss(rows) == measured
        (trained,) = run(engine, LANGUAGE, steps=1)
        assert measured.loss / measured.targets != pytest.approx(trained.loss, rel=1e-6)
        engine.load(before)
        assert_equal(engine.state(), before)


def test_both_frameworks_measure_the_same_loss() -> None:
    with opened(flax) as first, opened(TorchEngine) as second:
        rows = batch(LANGUAGE, step=3)
        assert first.loss(rows).loss == pytest.approx(second.loss(rows).loss, rel=CURVE_FLOAT64)


def test_no_step_after_the_first_compiles(caplog: pytest.LogCaptureFixture) -> None:
    with opened(flax, precision="float32") as engine:
        run(engine, LANGUAGE, steps=1)
        with caplog.at_level(logging.WARNING, logger="jax"), jax.log_compiles():
            run(engine, LANGUAGE, start=1, steps=4)
    assert not [message for message in caplog.messages if "ompil" in message]


@pytest.mark.parametrize("build", [FlaxEngine, TorchEngine])
def test_a_missing_group_of_workers_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="train.workers=2 needs .* got 1"):
        build(LANGUAGE, OPTIM, train_spec(workers=2))


def test_deepspeed_in_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="train.precision=float64 is not computed by DeepSpeed"):
        TorchEngine(LANGUAGE, OPTIM, train_spec(), engine="deepspeed")


@pytest.mark.parametrize("build", [flax, TorchEngine])
def test_a_state_of_another_model_is_refused(build: Build) -> None:
    with opened(build) as engine:
        state = engine.state()
        del state.slots["second_moment"]["norm.weight"]
        with pytest.raises(ValueError, match="second_moment are .* another model: missing .*norm"):
            engine.load(state)


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("tasks.train.flax_step", {"torch", "deepspeed", "ray", "prefect"}),
        ("tasks.train.torch_step", {"jax", "flax", "deepspeed", "ray", "prefect"}),
    ],
)
def test_an_engine_imports_nothing_of_the_other(module: str, others: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({others} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stderr
