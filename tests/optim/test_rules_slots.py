"""What rules remember: names, shapes, memory; slices, pieces, resuming, precision."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from models.presets import tiny_language
from models.weights import Weight, weight_table
from optim.flax import rule as flax_rule
from optim.parts import parts_of
from optim.reference import rule as reference_rule
from optim.rules import Adafactor, AdamW, AnyRule, Lion, Muon, ScheduleFree, Sgd, Soap
from optim.slots import slot_size, slot_table
from optim.torch.optimizer import PIECE, RuleOptimizer
from tests.golden import Golden
from tests.optim.rule_runs import (
    STEPS,
    TABLE,
    VARIANTS,
    Weights,
    by_flax,
    by_reference,
    by_torch,
    curvature,
    difference,
    gradients,
    start,
)
from tests.tolerances import CURVE_FLOAT64

LINE = {"line": Weight("line", (2 * PIECE + 1000,), "gain", ("width",))}


@pytest.mark.parametrize("kind", reference_rule.RULES)
def test_the_slots_of_a_rule_are_the_golden_ones(kind: str, golden: Golden) -> None:
    rule = type(VARIANTS[kind])()
    lines = [
        f"{slot:18} {'x'.join(map(str, shape)) or 'one':8} {name}\n"
        for slot, shapes in slot_table(rule, weight_table(tiny_language())).items()
        for name, shape in shapes.items()
        if name.startswith(("embedding", "layers.0", "head"))
    ]
    golden.check(f"slots/{kind}.txt", "".join(lines))


def test_memory_is_the_slots_that_a_rule_needs() -> None:
    table = weight_table(tiny_language())
    trained = sum(row.size for row in table.values() if row.trained)
    times: dict[str, tuple[AnyRule, float]] = {
        "sgd_plain": (Sgd(momentum=0.0), 0),
        "sgd": (Sgd(), 1),
        "lion": (Lion(), 1),
        "adamw": (AdamW(), 2),
        "sophia": (VARIANTS["sophia_g"], 2),
        "adan": (VARIANTS["adan"], 4),
    }
    for rule, slots in times.values():
        assert slot_size(rule, table) == slots * trained
    assert slot_size(ScheduleFree(), table) == 2 * trained + len(table)
    assert slot_size(Adafactor(), table) < 0.15 * trained
    assert trained < slot_size(Muon(), table) < 2 * trained
    assert slot_size(Soap(), table) > 4 * trained


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_twins_hold_the_slots_of_the_table(variant: str) -> None:
    rule = VARIANTS[variant]
    table = slot_table(rule, TABLE)
    by_name = reference_rule.first_slots(rule, TABLE, start())
    with jax.enable_x64(True):
        in_flax = flax_rule.first_slots(rule, TABLE, start())
    for slot, shapes in table.items():
        for name, shape in shapes.items():
            assert in_flax[slot][name].shape == by_name[slot][name].shape == shape
            np.testing.assert_array_equal(in_flax[slot][name], by_name[slot][name])
    for name, part in parts_of(rule, TABLE).items():
        weight = torch.nn.Parameter(torch.tensor(start()[name]))
        optimizer = RuleOptimizer([{"params": [weight], "stacked": part.stacked}], part.rule)
        optimizer.create_slots()
        assert set(optimizer.state[weight]) == {slot for slot in table if name in table[slot]}
        for slot, value in optimizer.state[weight].items():
            np.testing.assert_array_equal(value, by_name[slot][name])


def test_matrices_go_to_the_matrix_rule_and_the_rest_to_its_fallback() -> None:
    kinds = {name: part.rule.kind for name, part in parts_of(Muon(), TABLE).items()}
    assert kinds == {
        "matrix": "muon",
        "experts": "muon",
        "expert_bias": "adamw",
        "gain": "adamw",
        "head": "adamw",
    }
    language = parts_of(Soap(roles=("matrix", "embedding")), weight_table(tiny_language()))
    assert language["embedding.table.weight"].rule.kind == "soap"
    assert language["layers.0.attention.query.weight"].rule.kind == "soap"
    assert language["norm.weight"].rule.kind == "adamw"


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_elementwise_rules_give_the_same_on_slices(variant: str) -> None:
    """What ZeRO 1 to 3 hand out: flat slices, here of the matrix."""
    rule = VARIANTS[variant]
    table = {"whole": Weight("whole", (4, 4), "matrix", ("width", "hidden"))}
    slices = {
        f"slice{index}": Weight(f"slice{index}", (8,), "matrix", ("width",)) for index in range(2)
    }
    if not rule.elementwise and rule.kind in ("muon", "soap"):
        return  # They refuse a line of values: nothing to compare.
    whole = _runs(rule, table, lambda values: {"whole": values})
    cut = _runs(
        rule,
        slices,
        lambda values: {f"slice{index}": part for index, part in enumerate(values.reshape(2, 8))},
    )
    together = np.concatenate([cut["slice0"], cut["slice1"]]).reshape(4, 4)
    if rule.elementwise:
        np.testing.assert_array_equal(together, whole["whole"])
    else:
        assert np.max(np.abs(together - whole["whole"])) > 1e-6


def _runs(
    rule: AnyRule, table: dict[str, Weight], share: Callable[[np.ndarray], Weights]
) -> Weights:
    values = np.random.default_rng(0).normal(size=(12, 4, 4))
    weights = share(values[0])
    slots = reference_rule.first_slots(rule, table, weights)
    for step in range(5):
        weights, slots = reference_rule.update(
            rule,
            table,
            weights=weights,
            gradients=share(values[2 * step + 1]),
            slots=slots,
            decay=dict.fromkeys(table, 0.1),
            rates=dict.fromkeys(table, 1.0),
            step=step,
            rate=0.1,
            curvature=share(values[2 * step + 2] ** 2) if rule.kind.startswith("sophia") else None,
        )
    return weights


@pytest.mark.parametrize("variant", [name for name, rule in VARIANTS.items() if rule.elementwise])
def test_a_long_weight_is_updated_as_a_whole(variant: str) -> None:
    """Pieces that fit into a cache are torch's business alone."""
    rule = VARIANTS[variant]
    _check_line(rule, compiled=False)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["adan", "schedule_free", "adamw_cautious", "sophia_g"])
def test_a_compiled_rule_is_the_same_rule(variant: str) -> None:
    _check_line(VARIANTS[variant], compiled=True)


def _check_line(rule: AnyRule, *, compiled: bool) -> None:
    generator = np.random.default_rng(0)
    size = LINE["line"].shape
    weights = {"line": generator.normal(size=size)}
    slots = reference_rule.first_slots(rule, LINE, weights)
    parameter = torch.nn.Parameter(torch.tensor(weights["line"]))
    optimizer = RuleOptimizer(
        [{"params": [parameter], "decay": 0.1, "share": 0.5}], rule, compiled=compiled
    )
    for step in range(4):
        gradient, estimate = generator.normal(size=(2, *size))
        due = rule.kind.startswith("sophia") and step % 2 == 0
        parameter.grad = torch.tensor(gradient)
        optimizer.set_step(
            step, rate=0.1, curvature={parameter: torch.tensor(estimate)} if due else None
        )
        optimizer.step()
        weights, slots = reference_rule.update(
            rule,
            LINE,
            weights=weights,
            gradients={"line": gradient},
            slots=slots,
            decay={"line": 0.1},
            rates={"line": 0.5},
            step=step,
            rate=0.1,
            curvature={"line": estimate} if due else None,
        )
    np.testing.assert_allclose(
        parameter.detach().numpy(), weights["line"], rtol=CURVE_FLOAT64, atol=CURVE_FLOAT64
    )
    for slot, value in optimizer.state[parameter].items():
        np.testing.assert_allclose(
            value, slots[slot]["line"], rtol=CURVE_FLOAT64, atol=CURVE_FLOAT64
        )


@pytest.mark.parametrize("variant", ["adan", "schedule_free", "soap", "sophia_g"])
def test_resuming_at_step_k_equals_never_stopping(variant: str) -> None:
    """There is no counter inside: slots and the step's number are all there is."""
    rule = VARIANTS[variant]
    whole = _by_torch_with_a_break(rule, at=None)
    broken = _by_torch_with_a_break(rule, at=13)
    for name in whole:
        np.testing.assert_array_equal(whole[name], broken[name])


def _by_torch_with_a_break(rule: AnyRule, *, at: int | None) -> Weights:
    weight = torch.nn.Parameter(torch.tensor(start()["matrix"]))
    groups = [{"params": [weight], "decay": 0.1}]
    optimizer = RuleOptimizer(groups, rule)
    for step in range(25):
        if step == at:
            held = {slot: value.clone() for slot, value in optimizer.state[weight].items()}
            weight = torch.nn.Parameter(weight.detach().clone())
            optimizer = RuleOptimizer([{"params": [weight], "decay": 0.1}], rule)
            optimizer.create_slots()
            for slot, value in held.items():
                optimizer.state[weight][slot].copy_(value)
        found = start() | {"matrix": weight.detach().numpy()}
        weight.grad = torch.tensor(gradients(found, step)["matrix"])
        estimate = torch.tensor(curvature(found, step)["matrix"])
        optimizer.set_step(
            step, rate=0.01, curvature={weight: estimate} if step % 10 == 0 else None
        )
        optimizer.step()
    return {"matrix": weight.detach().numpy()}


def test_a_weight_without_a_gradient_is_left_alone() -> None:
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    weights[0].grad = torch.ones(3)
    optimizer = RuleOptimizer([{"params": weights, "decay": 0.1}], AdamW())
    optimizer.set_step(0, rate=0.1)
    optimizer.step()
    assert not torch.equal(weights[0], torch.ones(3))
    assert torch.equal(weights[1], torch.ones(3))
    assert weights[1] not in optimizer.state


@pytest.mark.parametrize("variant", ["adamw", "lion", "muon"])
def test_bfloat16_weights_are_updated_in_float32(variant: str) -> None:
    """Slots keep float32, and only the last rounding is to bfloat16, in both frameworks."""
    rule = VARIANTS[variant]
    table = {"matrix": TABLE["matrix"]}
    values, gradient = start()["matrix"], gradients(start(), 3)["matrix"]
    weight = torch.nn.Parameter(torch.tensor(values, dtype=torch.bfloat16))
    weight.grad = torch.tensor(gradient, dtype=torch.bfloat16)
    optimizer = RuleOptimizer([{"params": [weight], "decay": 0.1}], rule)
    optimizer.set_step(0, rate=1e-2)
    optimizer.step()
    weights = {"matrix": jnp.asarray(values, jnp.bfloat16)}
    slots = flax_rule.first_slots(rule, table, weights)
    stepped = flax_rule.update(
        rule,
        table,
        weights=weights,
        gradients={"matrix": jnp.asarray(gradient, jnp.bfloat16)},
        slots=slots,
        decay={"matrix": 0.1},
        rates={"matrix": 1.0},
        step=0,
        rate=1e-2,
    )
    assert stepped.weights["matrix"].dtype == jnp.bfloat16
    for slot, value in optimizer.state[weight].items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value, stepped.slots[slot]["matrix"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(
        weight.detach().float().numpy(), np.asarray(stepped.weights["matrix"], np.float32)
    )


def test_the_runs_of_the_parity_test_are_long_enough_to_refresh_and_to_warm_up() -> None:
    assert STEPS >= 200
    for variant in ("muon", "sophia_h"):
        rule = VARIANTS[variant]
        few = by_reference(rule, steps=6)
        assert difference(by_torch(rule, steps=6), few) < CURVE_FLOAT64
        assert difference(by_flax(rule, steps=6), few) < CURVE_FLOAT64
