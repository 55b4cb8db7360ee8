"""What `optim.groups` and `optim.decay_schedule` ask for is what the engines do."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from models.spec import LinearCurve
from models.weights import initial_weights, weight_table
from optim.gradient import GradientSpec
from optim.group_rule import GroupRule
from optim.groups import plan
from optim.schedule import rate
from optim.spec import OptimSpec
from tasks.train.engine import Engine, EngineState
from tasks.train.flax_step import FlaxEngine
from tasks.train.spec import TrainSpec
from tests.tolerances import CURVE_FLOAT64
from tests.train.engines import MODELS, OPTIM, run, shared, train_spec

STEPS = 6
MODEL = MODELS["tiny_experts"]
# Without a limit on the norm, so that what it holds shows in no weight.
RECIPE = OPTIM.model_copy(
    update={
        "groups": (
            GroupRule(name="embedding", weights="embedding.*", frozen=True),
            GroupRule(name="experts", weights="layers.1.feed_forward.*", frozen=True),
            GroupRule(name="queries", weights="*.query.weight", decay=3.0, rate=0.5),
        ),
        "layer_decay": 0.7,
        "decay_schedule": LinearCurve(steps=4),
        "gradient": GradientSpec(clip=None),
    }
)


def trained(engine: Engine) -> tuple[EngineState, list[float]]:
    """The state after some steps, and the gradient norm of each."""
    try:
        results = run(engine, MODEL, steps=STEPS, optim=RECIPE)
        return engine.state(), [result.gradient_norm for result in results]
    finally:
        engine.close()


def torch_engine(optim: OptimSpec, train: TrainSpec) -> Engine:
    return shared(MODEL, optim, train)


def test_both_frameworks_treat_every_weight_alike() -> None:
    flax, flax_norms = trained(FlaxEngine(MODEL, RECIPE, train_spec("flax")))
    torch, torch_norms = trained(torch_engine(RECIPE, train_spec()))
    # A frozen weight has no part in the global norm in either.
    np.testing.assert_allclose(flax_norms, torch_norms, rtol=CURVE_FLOAT64)
    for name, weight in torch.weights.items():
        np.testing.assert_allclose(flax.weights[name], weight, rtol=1e-6, atol=CURVE_FLOAT64)
    assert_treated(flax)
    assert_treated(torch)


@pytest.mark.parametrize("stage", range(4))
def test_deepspeed_leaves_frozen_weights_and_their_slots_alone(stage: Literal[0, 1, 2, 3]) -> None:
    train = train_spec(precision="float32", zero_stage=stage)
    state, _ = trained(torch_engine(RECIPE, train))
    assert_treated(state)


@pytest.mark.parametrize("step", [1, 4])
def test_a_step_takes_the_share_of_each_weight_that_its_decay_says(step: int) -> None:
    rules = tuple(rule.model_copy(update={"decay": None}) for rule in RECIPE.groups)
    free = RECIPE.rule.model_copy(update={"decay": 0.0})
    undecayed = RECIPE.model_copy(update={"rule": free, "groups": rules})
    ends = []
    for optim in (RECIPE, undecayed):
        engine = torch_engine(optim, train_spec())
        run(engine, MODEL, start=step, steps=step + 1, optim=optim)
        ends.append(engine.state().weights)
        engine.close()
    first = initial_weights(MODEL, seed=7)
    peak = rate(RECIPE.schedule, step=step, total_steps=50)
    share = {1: 0.5, 4: 0.0}[step]
    for name, each in plan(RECIPE, weight_table(MODEL)).items():
        taken = peak * each.rate * each.decay * share * first[name]
        np.testing.assert_allclose(ends[1][name] - ends[0][name], taken, rtol=0, atol=1e-15)
        assert np.any(taken) == (each.decay > 0 and share > 0)


def assert_treated(state: EngineState) -> None:
    """Frozen weights are the first ones to the bit and have no slots; the others have moved."""
    table = weight_table(MODEL)
    first, treatments = initial_weights(MODEL, seed=7), plan(RECIPE, table)
    assert {row.role for row in table.values() if treatments[row.name].frozen} >= {
        "embedding", "balance", "router",
    }  # fmt: skip
    for name, weight in state.weights.items():
        if treatments[name].frozen:
            assert np.array_equal(weight, first[name].astype(weight.dtype)), name
        else:
            assert not np.array_equal(weight, first[name].astype(weight.dtype)), name
        for slot in state.slots.values():
            assert (name in slot) == treatments[name].moves, name
            assert name not in slot or np.any(slot[name]), name
