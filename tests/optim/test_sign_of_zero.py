"""Where a gradient is zero by mathematics and rounding alone gives it a sign.

The bias of the keys adds the same to every score of a query, and softmax takes it off again: its
gradient is a sum that cancels to zero, of which float64 leaves 1e-18 with a sign that depends on
the order of the sum. Rules that move by the sign make full steps of it. So parity is stated on what
a model computes, its losses and logits; such a weight differs between frameworks and moves nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from models.reference import model as reference
from models.spec import LearnedPositions
from models.weights import initial_weights
from optim.rules import AdamW, AnyRule, Lion
from tests.optim import step_runs
from tests.optim.step_runs import MODEL, batches, by_definition, by_engine, recipe_of
from tests.tolerances import CURVE_FLOAT64

BACKENDS: tuple[Literal["flax", "torch"], ...] = ("flax", "torch")
STEPS = 60
PEAK = 3e-3
# Rotary positions would turn the bias with the key, and it would matter.
BIASED = MODEL.model_copy(
    update={
        "positions": LearnedPositions(),
        "attention": MODEL.attention.model_copy(update={"bias": True}),
    }
)
FREE = "layers.0.attention.key.bias"
RULES: dict[str, AnyRule] = {
    "lion": Lion(),
    "lion_cautious": Lion(cautious=True),
    "adamw_of_signs": AdamW(beta1=0.0, beta2=0.0, epsilon=1e-30),
}


Weights = dict[str, NDArray[Any]]


def logits(weights: Weights) -> NDArray[np.float64]:
    """What weights compute, by the NumPy reference."""
    (batch,) = batches(1)
    return np.asarray(reference.logits(BIASED, weights, batch.inputs))


@pytest.mark.parametrize("name", RULES)
def test_rules_of_the_sign_agree_on_what_the_model_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_runs, "MODEL", BIASED)
    optim = recipe_of(RULES[name], PEAK)
    exact = by_definition(optim, steps=STEPS)
    flax, torch = (by_engine(backend, optim, steps=STEPS) for backend in BACKENDS)
    for found in (flax, torch):
        np.testing.assert_allclose(found.objectives, exact.objectives, rtol=CURVE_FLOAT64)
        np.testing.assert_allclose(
            logits(found.weights), logits(exact.weights), rtol=0, atol=CURVE_FLOAT64
        )
        for weight in exact.weights.keys() - {FREE}:
            np.testing.assert_allclose(
                found.weights[weight], exact.weights[weight], rtol=0, atol=CURVE_FLOAT64
            )
    # Whole steps apart, where every other weight agrees.
    assert np.abs(flax.weights[FREE] - torch.weights[FREE]).max() > PEAK / 2


def test_logits_depend_on_every_bias_but_that_of_the_keys() -> None:
    generator = np.random.default_rng(0)
    first = initial_weights(BIASED, seed=7)
    moved = {
        name: np.abs(logits({**first, name: generator.normal(size=values.shape)}) - logits(first))
        for name, values in first.items()
        if name.endswith(".bias")
    }
    assert moved.pop(FREE).max() < CURVE_FLOAT64
    assert len(moved) >= 2
    assert min(each.max() for each in moved.values()) > 1e-3
