"""A small model's weights, gradients and 200 steps of any rule, by reference, Flax and torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

from models.weights import Weight
from optim.flax import rule as flax_rule
from optim.groups import GROUPS
from optim.parts import parts_of
from optim.reference import rule as reference_rule
from optim.reference.now import Updated
from optim.rules import (
    Adafactor,
    AdamW,
    Adan,
    AnyRule,
    Fallback,
    Lion,
    Muon,
    NewtonSchulz,
    ScheduleFree,
    Sgd,
    Soap,
    SophiaG,
    SophiaH,
    curvature_due,
)
from optim.torch.optimizer import RuleOptimizer, averaged, groups_of

Array = NDArray[np.float64]
Weights = dict[str, Array]

STEPS = 200
TABLE = {
    weight.name: weight
    for weight in (
        Weight("matrix", (4, 3), "matrix", ("width", "hidden")),
        Weight("experts", (2, 3, 4), "matrix", ("experts", "hidden", "width")),
        Weight("expert_bias", (2, 3), "bias", ("experts", "hidden")),
        Weight("gain", (5,), "gain", ("width",)),
        Weight("head", (2, 4), "head", ("classes", "width")),
        Weight("balance", (2,), "balance", ("experts",)),
    )
}

# Every rule, and every field of a rule at two values at least.
VARIANTS: dict[str, AnyRule] = {
    "sgd": Sgd(decay=0.1),
    "sgd_plain": Sgd(momentum=0.0),
    "sgd_nesterov_decoupled": Sgd(momentum=0.8, nesterov=True, decay=0.1, decoupled=True),
    "adamw": AdamW(epsilon=1e-6),
    "adamw_uncorrected": AdamW(beta1=0.8, beta2=0.99, bias_correction=False, epsilon=1e-6),
    "adam_coupled": AdamW(decoupled=False, epsilon=1e-6),
    "adamw_cautious": AdamW(cautious=True, epsilon=1e-6),
    "lion": Lion(),
    "lion_cautious": Lion(beta1=0.8, beta2=0.9, decay=0.1, cautious=True),
    "adan": Adan(epsilon=1e-6),
    "adan_corrected": Adan(beta1=0.9, beta2=0.8, start="bias_correction", epsilon=1e-6),
    "adan_not_proximal": Adan(beta3=0.95, proximal=False, decay=0.1, epsilon=1e-6),
    "sophia_g": SophiaG(),
    "sophia_g_often": SophiaG(beta1=0.9, gamma=2.0, clip=0.5, every_steps=3, epsilon=1e-6),
    "sophia_h": SophiaH(beta2=0.9, decay=0.1, gamma=1.0),
    "schedule_free": ScheduleFree(epsilon=1e-6),
    "schedule_free_weighted": ScheduleFree(
        beta1=0.7, beta2=0.9, decay=0.1, rate_power=1.0, step_power=1.5, epsilon=1e-6
    ),
    "adafactor": Adafactor(),
    "adafactor_momentum": Adafactor(
        beta1=0.9, relative=False, clip=0.5, decay=0.1, decay_power=0.7
    ),
    "adafactor_unfactored": Adafactor(least_side=4, epsilon1=1e-3, epsilon2=0.5),
    "muon": Muon(decay=0.1),
    "muon_rms": Muon(momentum=0.9, nesterov=False, scale="rms", fallback=Fallback(rate=1.0)),
    "muon_cubic_with_head": Muon(
        newton_schulz=NewtonSchulz(steps=9, a=1.5, b=-0.5, c=0.0, epsilon=1e-3),
        roles=("matrix", "head"),
    ),
    "soap": Soap(decay=0.1, epsilon=1e-6),
    "soap_one_side": Soap(
        largest_side=3,
        every_steps=3,
        beta1=0.9,
        beta2=0.9,
        shampoo_beta=0.8,
        damping=1e-3,
        bias_correction=False,
        epsilon=1e-6,
    ),
}


def decay_of(rule: AnyRule) -> dict[str, float]:
    """The decay of every weight: its own rule's where its role decays."""
    parts = parts_of(rule, TABLE)
    return {
        name: parts[name].rule.decay if GROUPS[row.role] == "decayed" else 0.0
        for name, row in TABLE.items()
    }


def rates_of(rule: AnyRule) -> dict[str, float]:
    """Of the learning rate: the fallback's share, and what muP gives matrices of a wider model."""
    parts = parts_of(rule, TABLE)
    return {
        name: (parts[name].rate if name in parts else 1.0) * (0.25 if name == "matrix" else 1.0)
        for name in TABLE
    }


def start() -> Weights:
    """First weights."""
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=row.shape) for name, row in TABLE.items()}


def gradients(weights: Mapping[str, Array], step: int) -> Weights:
    """Gradients that depend on the weights, so that a small difference grows; some are tiny."""
    generator = np.random.default_rng(step + 1)
    return {
        name: np.sin(2 * weights[name]) * 10.0 ** generator.integers(-7, 1)
        + 0.01 * generator.normal(size=row.shape)
        for name, row in TABLE.items()
    }


def curvature(weights: Mapping[str, Array], step: int) -> Weights:
    """Estimates of which some are negative and some nearly zero."""
    generator = np.random.default_rng(-step % 2**32)
    return {name: np.cos(2 * weights[name]) * 10.0 ** generator.integers(-4, 2) for name in TABLE}


def rate(step: int) -> float:
    """A learning rate that warms up and falls."""
    return min(0.02, 0.004 * step) / (1 + 0.01 * step)


def by_reference(
    rule: AnyRule,
    *,
    steps: int = STEPS,
    rules: Mapping[str, Callable[..., Updated]] = reference_rule.RULES,
) -> Weights:
    """The weights that a model is judged by after some steps of the reference."""
    weights = start()
    slots = reference_rule.first_slots(rule, TABLE, weights)
    for step in range(steps):
        weights, slots = reference_rule.update(
            rule,
            TABLE,
            weights=weights,
            gradients=gradients(weights, step),
            slots=slots,
            decay=decay_of(rule),
            rates=rates_of(rule),
            step=step,
            rate=rate(step),
            curvature=curvature(weights, step) if curvature_due(rule, step=step) else None,
            rules=rules,
        )
    return reference_rule.averaged(rule, weights=weights, slots=slots)


def by_flax(rule: AnyRule, *, steps: int = STEPS) -> Weights:
    """The same by the Flax twin, jitted and donated."""

    def update(weights: flax_rule.Tree, slots: flax_rule.Held, **given: Any) -> flax_rule.Stepped:
        return flax_rule.update(
            rule,
            TABLE,
            weights=weights,
            slots=slots,
            decay=decay_of(rule),
            rates=rates_of(rule),
            **given,
        )

    with jax.enable_x64(True):
        step_once = jax.jit(update, donate_argnums=(0, 1))
        weights = {name: jnp.array(value) for name, value in start().items()}
        slots = flax_rule.first_slots(rule, TABLE, weights)
        for step in range(steps):
            found = {name: np.array(value) for name, value in weights.items()}
            due = curvature_due(rule, step=step)
            weights, slots = step_once(
                weights,
                slots,
                gradients=gradients(found, step),
                step=np.int32(step),
                rate=np.float64(rate(step)),
                curvature=curvature(found, step) if due else None,
            )
        judged = flax_rule.averaged(rule, weights=weights, slots=slots)
        return {name: np.asarray(value) for name, value in judged.items()}


def by_torch(rule: AnyRule, *, steps: int = STEPS, compiled: bool = False) -> Weights:
    """The same by the torch twin, in place."""
    named = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start().items()}
    groups = groups_of(rule, TABLE, named=named, decay=decay_of(rule), rates=rates_of(rule))
    optimizer = RuleOptimizer(groups, rule, compiled=compiled)
    for step in range(steps):
        found = {name: weight.detach().numpy() for name, weight in named.items()}
        estimate = None
        if curvature_due(rule, step=step):
            estimate = {
                named[name]: torch.tensor(value) for name, value in curvature(found, step).items()
            }
        for name, gradient in gradients(found, step).items():
            named[name].grad = torch.tensor(gradient)
        optimizer.set_step(step, rate=rate(step), curvature=estimate)
        optimizer.step()
    parts = parts_of(rule, TABLE)
    return {
        name: averaged(
            parts[name].rule if name in parts else rule,
            weight.detach(),
            optimizer.state[weight] if name in parts else {},
        ).numpy()
        for name, weight in named.items()
        if name in parts
    } | {"balance": named["balance"].detach().numpy()}


def difference(left: Mapping[str, Array], right: Mapping[str, Array]) -> float:
    """Largest relative difference between two sets of weights."""
    return max(
        float(np.max(np.abs(left[name] - right[name]) / (np.abs(right[name]) + 1e-3)))
        for name in right
    )
