"""Against other libraries: equal where they follow the paper, and where not, the paper decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import pytorch_optimizer
import torch
from optax import contrib

from models.weights import Weight
from optim.reference import rule as reference_rule
from optim.rules import (
    Adafactor,
    AdamW,
    Adan,
    AnyRule,
    Lion,
    Muon,
    NewtonSchulz,
    ScheduleFree,
    Sgd,
    SophiaH,
)
from tests.optim.rule_runs import Weights, difference
from tests.tolerances import CURVE_FLOAT64

TABLE = {
    "matrix": Weight("matrix", (4, 3), "matrix", ("width", "hidden")),
    "other": Weight("other", (3, 5), "matrix", ("width", "hidden")),
}
STEPS = 60
PEAK = 0.01


def start() -> Weights:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=row.shape) for name, row in TABLE.items()}


def gradients(weights: Weights, step: int) -> Weights:
    generator = np.random.default_rng(step + 1)
    return {
        name: np.sin(2 * weights[name]) + 0.1 * generator.normal(size=row.shape)
        for name, row in TABLE.items()
    }


def estimate(step: int) -> Weights:
    generator = np.random.default_rng(10_000 + step)
    return {name: generator.normal(size=row.shape) for name, row in TABLE.items()}


def ours(
    rule: AnyRule, *, rate: Callable[[int], float] = lambda step: PEAK, decay: float = 0.0
) -> Weights:
    weights = start()
    slots = reference_rule.first_slots(rule, TABLE, weights)
    for step in range(STEPS):
        weights, slots = reference_rule.update(
            rule,
            TABLE,
            weights=weights,
            gradients=gradients(weights, step),
            slots=slots,
            decay=dict.fromkeys(TABLE, decay),
            rates=dict.fromkeys(TABLE, 1.0),
            step=step,
            rate=rate(step),
            curvature=estimate(step) if isinstance(rule, SophiaH) else None,
        )
    return reference_rule.averaged(rule, weights=weights, slots=slots)


def in_torch(
    build: Callable[[Iterable[torch.nn.Parameter]], Any],
    *,
    rate: Callable[[int], float] = lambda step: PEAK,
) -> Weights:
    weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start().items()}
    optimizer = build(weights.values())
    for step in range(STEPS):
        found = {name: weight.detach().numpy() for name, weight in weights.items()}
        for name, gradient in gradients(found, step).items():
            weights[name].grad = torch.tensor(gradient)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def in_optax(transformation: Any, judged: Callable[[Any, Any], Any] | None = None) -> Weights:
    with jax.enable_x64(True):
        weights = {name: jnp.asarray(value) for name, value in start().items()}
        state = transformation.init(weights)
        update = jax.jit(transformation.update)
        for step in range(STEPS):
            found = {name: np.asarray(value) for name, value in weights.items()}
            updates, state = update(gradients(found, step), state, weights)
            weights = optax.apply_updates(weights, updates)
        if judged is not None:
            weights = judged(state, weights)
        return {name: np.asarray(value) for name, value in weights.items()}


def falling(step: int) -> float:
    return PEAK / (1 + 0.05 * step)


EQUAL: dict[str, tuple[Callable[[], Weights], Callable[[], Weights]]] = {
    "sgd, torch": (
        lambda: ours(Sgd(nesterov=True), rate=falling, decay=0.1),
        lambda: in_torch(
            lambda given: torch.optim.SGD(
                given, lr=PEAK, momentum=0.9, nesterov=True, weight_decay=0.1
            ),
            rate=falling,
        ),
    ),
    "sgd, optax": (
        lambda: ours(Sgd(momentum=0.8), rate=falling),
        lambda: in_optax(optax.sgd(lambda count: PEAK / (1 + 0.05 * count), momentum=0.8)),
    ),
    "adamw, torch": (
        lambda: ours(AdamW(beta2=0.999), rate=falling, decay=0.1),
        lambda: in_torch(
            lambda given: torch.optim.AdamW(given, betas=(0.9, 0.999), weight_decay=0.1),
            rate=falling,
        ),
    ),
    "adam, torch": (
        lambda: ours(AdamW(beta2=0.999, decoupled=False), decay=0.1),
        lambda: in_torch(lambda given: torch.optim.Adam(given, weight_decay=0.1)),
    ),
    "adamw, optax": (
        lambda: ours(AdamW(), decay=0.1),
        lambda: in_optax(optax.adamw(PEAK, b2=0.95, weight_decay=0.1)),
    ),
    "lion, optax": (
        lambda: ours(Lion(), decay=0.1),
        lambda: in_optax(optax.lion(PEAK, weight_decay=0.1)),
    ),
    "lion, pytorch-optimizer": (
        lambda: ours(Lion(), rate=falling, decay=0.1),
        lambda: in_torch(
            lambda given: pytorch_optimizer.Lion(given, betas=(0.9, 0.99), weight_decay=0.1),
            rate=falling,
        ),
    ),
    "adan, pytorch-optimizer": (
        lambda: ours(Adan(start="bias_correction"), rate=falling, decay=0.1),
        lambda: in_torch(_adan_of_pytorch_optimizer, rate=falling),
    ),
    "adan not proximal, pytorch-optimizer": (
        lambda: ours(Adan(start="bias_correction", proximal=False), rate=falling, decay=0.1),
        lambda: in_torch(
            lambda given: _adan_of_pytorch_optimizer(given, weight_decouple=True), rate=falling
        ),
    ),
    "sophia, pytorch-optimizer": (
        lambda: ours(SophiaH(), decay=0.1),
        lambda: in_torch(_sophia_of_pytorch_optimizer, rate=lambda step: PEAK),
    ),
    "muon, optax": (
        # With Nesterov's look-ahead optax corrects biases as NAdam does, the post does not.
        lambda: ours(Muon(nesterov=False, newton_schulz=NewtonSchulz(epsilon=1e-8)), decay=0.1),
        lambda: in_optax(
            optax.chain(
                contrib.scale_by_muon(
                    nesterov=False,
                    weight_dimension_numbers=dict.fromkeys(TABLE, contrib.MuonDimensionNumbers()),
                ),
                optax.stateless(_spectral),
                optax.add_decayed_weights(0.1),
                optax.scale_by_learning_rate(PEAK),
            )
        ),
    ),
    "schedule_free, optax": (
        lambda: ours(ScheduleFree(), decay=0.0),
        lambda: in_optax(
            contrib.schedule_free_adamw(PEAK, b1=0.9, b2=0.999, weight_decay=0.0),
            judged=contrib.schedule_free_eval_params,
        ),
    ),
    "adafactor, optax": (
        lambda: ours(Adafactor()),
        lambda: in_optax(
            optax.adafactor(PEAK, min_dim_size_to_factor=2, momentum=None, decay_rate=0.8)
        ),
    ),
    "adafactor, pytorch-optimizer": (
        lambda: ours(Adafactor()),
        lambda: in_torch(
            lambda given: pytorch_optimizer.AdaFactor(
                given,
                lr=PEAK,
                betas=(None, 0.999),
                scale_parameter=True,
                relative_step=False,
                warmup_init=False,
            )
        ),
    ),
}


def _spectral(updates: Any, _: Any = None) -> Any:
    return jax.tree.map(lambda each: each * max(1.0, each.shape[0] / each.shape[1]) ** 0.5, updates)


def _adan_of_pytorch_optimizer(
    given: Iterable[torch.nn.Parameter], *, weight_decouple: bool = False
) -> Any:
    return pytorch_optimizer.Adan(
        given, betas=(0.98, 0.92, 0.99), weight_decay=0.1, weight_decouple=weight_decouple
    )


def _sophia_of_pytorch_optimizer(given: Iterable[torch.nn.Parameter]) -> Any:
    """It clips at `p` what we divide by gamma before, and it may be given estimates."""
    rule = SophiaH()
    made = pytorch_optimizer.SophiaH(
        given,
        betas=(rule.beta1, rule.beta2),
        eps=rule.epsilon / rule.gamma,
        p=rule.gamma,
        weight_decay=0.1,
    )
    return _WithEstimates(made, share=1 / rule.gamma, decay=0.1 * rule.gamma)


class _WithEstimates:
    """Hands the estimate of each step to an optimizer whose rates are `share` times larger."""

    def __init__(self, optimizer: Any, *, share: float, decay: float) -> None:
        self._optimizer, self._share, self._steps = optimizer, share, 0
        self.param_groups = optimizer.param_groups
        for group in self.param_groups:
            group["weight_decay"] = decay

    def step(self) -> None:
        given = [torch.tensor(value) for value in estimate(self._steps).values()]
        for group in self.param_groups:
            group["lr"] *= self._share
        self._optimizer.step(hessian=given)
        self._steps += 1


@pytest.mark.parametrize("row", EQUAL)
def test_a_library_that_follows_the_paper_agrees(row: str) -> None:
    mine, theirs = (run() for run in EQUAL[row])
    assert difference(mine, theirs) < 100 * CURVE_FLOAT64
    assert difference(mine, start()) > 1e-2


def test_optax_weights_adans_difference_by_the_wrong_beta() -> None:
    """Algorithm 1, line 7 has (1 - beta2) v with the paper's beta2 = 0.08; optax has 0.08 v."""
    theirs = in_optax(optax.adan(PEAK, b1=0.98, b2=0.92, b3=0.99))
    assert difference(theirs, ours(Adan(start="bias_correction"))) > 1e-4
    # A gradient that grows evenly, from the paper by hand.
    gradient = [1.0, 2.0]
    m = (0.98 * 0.02 * gradient[0] + 0.02 * gradient[1]) / (1 - 0.98**2)
    v = 0.08 * 1.0 / (1 - 0.92**2)
    n = (0.99 * 0.01 * gradient[0] ** 2 + 0.01 * (gradient[1] + 0.92) ** 2) / (1 - 0.99**2)
    expected = -PEAK / (1 + 1e-8) - PEAK * (m + 0.92 * v) / (np.sqrt(n) + 1e-8)
    rule, table = Adan(start="bias_correction"), {"w": Weight("w", (1,), "gain", ("width",))}
    weights = {"w": np.zeros(1)}
    slots = reference_rule.first_slots(rule, table, weights)
    for step in range(2):
        weights, slots = reference_rule.update(
            rule,
            table,
            weights=weights,
            gradients={"w": np.array([gradient[step]])},
            slots=slots,
            decay={"w": 0.0},
            rates={"w": 1.0},
            step=step,
            rate=PEAK,
        )
    assert weights["w"][0] == pytest.approx(expected, rel=1e-12)


def test_optax_uses_sophias_estimate_a_step_late_and_corrects_its_momentum() -> None:
    """Algorithm 3 averages the estimate in line 9 and divides by it in line 13 of the same step."""

    def init(weights: Any) -> Any:
        return jnp.zeros((), jnp.int32)

    def update(gradients: Any, count: Any, weights: Any = None, **extra: Any) -> Any:
        return jax.tree.map(lambda each: 1e3 * jnp.ones_like(each), gradients), count + 1

    rule, gradient = SophiaH(), jnp.full(3, 0.25)
    theirs = contrib.sophia(
        1.0,
        b1=rule.beta1,
        weight_decay=0.0,
        eps=rule.epsilon,
        hessian_diagonal_fn=optax.GradientTransformationExtraArgs(init, update),
    )
    state = theirs.init(jnp.zeros(3))
    first, _ = theirs.update(gradient, state, jnp.zeros(3))
    np.testing.assert_allclose(first, -1.0)  # The curvature is still 0: the step is a sign.
    table = {"w": Weight("w", (3,), "gain", ("width",))}
    weights = {"w": np.zeros(3)}
    stepped = reference_rule.update(
        rule,
        table,
        weights=weights,
        gradients={"w": np.full(3, 0.25)},
        slots=reference_rule.first_slots(rule, table, weights),
        decay={"w": 0.0},
        rates={"w": 1.0},
        step=0,
        rate=1.0,
        curvature={"w": np.full(3, 1e3)},
    )
    # m = 0.04 * 0.25, h = 0.01 * 1000, gamma = 0.01.
    np.testing.assert_allclose(stepped.weights["w"], -0.04 * 0.25 / (0.01 * 10), rtol=1e-9)


def test_torch_muon_rounds_its_iteration_to_bfloat16() -> None:
    theirs = in_torch(
        lambda given: torch.optim.Muon(given, lr=PEAK, momentum=0.95, weight_decay=0.0)
    )
    distance = difference(ours(Muon()), theirs)
    assert 1e-4 < distance < 0.5
