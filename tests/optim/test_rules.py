"""Reference, Flax and PyTorch rules are one rule."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from models.weights import Weight
from optim import reference
from optim.flax import rule as flax_rule
from optim.flax.clip import clip_by_global_norm as flax_clip
from optim.flax.rule import RULES as FLAX_RULES
from optim.reference.rule import RULES as REFERENCE_RULES
from optim.rules import AdamW, AnyRule
from optim.torch.clip import clip_by_global_norm as torch_clip
from optim.torch.optimizer import RULES as TORCH_RULES
from optim.torch.optimizer import RuleOptimizer
from tests.optim.rule_runs import (
    TABLE,
    VARIANTS,
    Array,
    by_flax,
    by_reference,
    by_torch,
    difference,
    gradients,
    start,
)
from tests.tolerances import CURVE_FLOAT64


@pytest.mark.parametrize("variant", VARIANTS)
def test_200_steps_equal_the_reference_in_float64(variant: str) -> None:
    rule = VARIANTS[variant]
    expected = by_reference(rule)
    assert difference(by_torch(rule), expected) < CURVE_FLOAT64
    assert difference(by_flax(rule), expected) < CURVE_FLOAT64
    assert difference(start(), expected) > 0.1
    np.testing.assert_array_equal(expected["balance"], start()["balance"])


def test_every_rule_stands_in_every_table() -> None:
    kinds = {rule.model_fields["kind"].default for rule in get_args(AnyRule)}
    assert set(REFERENCE_RULES) == set(FLAX_RULES) == set(TORCH_RULES) == kinds
    assert {rule.kind for rule in VARIANTS.values()} == kinds


def in_flax(rule: AnyRule, gradient: Array, *, step: int, rate: float, dtype: str) -> Array:
    """A weight of ones after one step."""
    table = {"w": Weight("w", gradient.shape, "gain", ("width",))}
    weights = {"w": jnp.ones(gradient.shape, dtype)}
    stepped = flax_rule.update(
        rule,
        table,
        weights=weights,
        gradients={"w": jnp.asarray(gradient, dtype)},
        slots=flax_rule.first_slots(rule, table, weights),
        decay={"w": 0.0},
        rates={"w": 1.0},
        step=jnp.asarray(step),
        rate=jnp.asarray(rate),
    )
    return np.asarray(stepped.weights["w"], np.float64)


def test_a_rule_without_memory_is_still_defined() -> None:
    """beta1 = beta2 = 0: the direction is the gradient's sign."""
    spec = AdamW(beta1=0.0, beta2=0.0, epsilon=1e-12, decay=0.0)
    gradient = np.array([3.0, -0.5])
    expected = np.array([0.9, 1.1])
    found = in_flax(spec, gradient, step=7, rate=0.1, dtype="float32")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    parameter.grad = torch.tensor(gradient)
    optimizer = RuleOptimizer([{"params": [parameter]}], spec)
    optimizer.set_step(7, rate=0.1)
    optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-9)


def test_the_bias_correction_keeps_its_digits_in_float32() -> None:
    """With beta2 = 0.9999, 1 - beta2 has four digits less in float32 unless care is taken."""
    spec = AdamW(beta1=0.9, beta2=0.9999, epsilon=1e-12, decay=0.0)
    found = in_flax(spec, np.full(1, 0.3), step=0, rate=1.0, dtype="float32")
    np.testing.assert_allclose(found - 1.0, -1.0, rtol=1e-6)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 50.0, 1e3])
def test_clipping_is_one_formula(limit: float) -> None:
    given = gradients(start(), 1)
    given = {name: 20 * value for name, value in given.items()}
    expected = reference.clip_by_global_norm(given, limit)
    with jax.enable_x64(True):
        in_flax = {name: jnp.asarray(value) for name, value in given.items()}
        by_jax = flax_clip(in_flax, limit)
        scaled = {name: value * by_jax.scale for name, value in in_flax.items()}
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    norm = torch_clip(list(tensors.values()), limit)
    parameters = [
        torch.nn.Parameter(torch.zeros(shape).double())
        for shape in [row.shape for row in TABLE.values()]
    ]
    for parameter, value in zip(parameters, given.values(), strict=True):
        parameter.grad = torch.tensor(value)
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    assert float(norm) == pytest.approx(expected.norm, rel=CURVE_FLOAT64)
    assert float(by_jax.norm) == pytest.approx(expected.norm, rel=CURVE_FLOAT64)
    for name, parameter in zip(given, parameters, strict=True):
        assert parameter.grad is not None
        for found in (scaled[name], tensors[name], parameter.grad):
            np.testing.assert_allclose(found, expected.gradients[name], rtol=CURVE_FLOAT64)


def test_clipped_gradients_have_the_limit_as_norm_and_small_ones_are_untouched() -> None:
    given = gradients(start(), 1)
    large = reference.clip_by_global_norm(given, 1e-2)
    assert large.norm > 1e-2
    again = reference.clip_by_global_norm(large.gradients, np.inf)
    assert again.norm == pytest.approx(1e-2, rel=1e-4)
    small = reference.clip_by_global_norm(given, 2 * large.norm)
    for name, gradient in given.items():
        np.testing.assert_array_equal(small.gradients[name], gradient)
