"""What a section may say, what is refused, and that no field is dead."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.spec import ConstantCurve
from optim.flax.finite import check_finite as flax_check
from optim.rules import (
    Adafactor,
    AdamW,
    AnyRule,
    Fallback,
    Lion,
    Muon,
    NewtonSchulz,
    Rule,
    ScheduleFree,
    Soap,
    SophiaG,
    SophiaH,
    curvature_due,
    why_whole,
)
from optim.schedules import Schedule
from optim.slices import check_slices
from optim.spec import OptimSpec
from optim.torch.finite import check_finite as torch_check
from tests.optim.rule_runs import VARIANTS, by_reference, difference

# Another value of every field, on top of the defaults.
OTHER: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.5, "nesterov": True, "decay": 0.1, "decoupled": True},
    "adamw": {
        "beta1": 0.8,
        "beta2": 0.9,
        "epsilon": 1e-2,
        "decay": 0.5,
        "bias_correction": False,
        "decoupled": False,
        "cautious": True,
    },
    "lion": {"beta1": 0.5, "beta2": 0.5, "decay": 0.1, "cautious": True},
    "adan": {
        "beta1": 0.8,
        "beta2": 0.5,
        "beta3": 0.9,
        "epsilon": 1e-2,
        "decay": 0.5,
        "proximal": False,
        "start": "bias_correction",
    },
    "sophia_g": {
        "beta1": 0.8,
        "beta2": 0.5,
        "gamma": 5.0,
        "epsilon": 0.1,
        "clip": 0.5,
        "decay": 0.5,
        "every_steps": 3,
    },
    "sophia_h": {
        "beta1": 0.8,
        "beta2": 0.5,
        "gamma": 5.0,
        "epsilon": 0.1,
        "clip": 0.5,
        "decay": 0.5,
        "every_steps": 3,
        # The estimate's alone: tests/optim/test_rules_curvature.py.
        "probe": None,
    },
    "schedule_free": {
        "beta1": 0.5,
        "beta2": 0.9,
        "epsilon": 1e-2,
        "decay": 0.5,
        "rate_power": 0.0,
        "step_power": 1.0,
    },
    "adafactor": {
        "decay_power": 0.5,
        "epsilon1": 1e-2,
        "epsilon2": 5.0,
        "clip": 0.1,
        "relative": False,
        "beta1": 0.5,
        "least_side": 4,
        "decay": 0.5,
    },
    "muon": {
        "momentum": 0.5,
        "nesterov": False,
        "newton_schulz": NewtonSchulz(steps=3),
        "scale": "rms",
        "decay": 0.5,
        "roles": ("head",),
        "fallback": Fallback(rate=0.1),
    },
    "soap": {
        "beta1": 0.5,
        "beta2": 0.5,
        "shampoo_beta": 0.5,
        "epsilon": 1e-2,
        "bias_correction": False,
        "every_steps": 3,
        "largest_side": 3,
        "damping": 10.0,
        "decay": 0.5,
        "roles": ("head",),
        "fallback": Fallback(rate=0.1),
    },
}
DEFAULTS: dict[str, AnyRule] = {rule.kind: type(rule)() for rule in VARIANTS.values()}
# Where another field must be on for this one to act.
BESIDE: dict[tuple[str, str], dict[str, Any]] = {("sgd", "decoupled"): {"decay": 0.1}}


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, fields in OTHER.items() for field in fields]
)
def test_every_field_changes_what_is_computed(kind: str, field: str) -> None:
    if OTHER[kind][field] is None:
        return
    rule = DEFAULTS[kind].model_copy(update=BESIDE.get((kind, field), {}))
    other = rule.model_copy(update={field: OTHER[kind][field]})
    assert difference(by_reference(other, steps=40), by_reference(rule, steps=40)) > 1e-6


def test_the_table_names_every_field() -> None:
    for kind, rule in DEFAULTS.items():
        assert set(OTHER[kind]) == set(type(rule).model_fields) - {"kind"}


@pytest.mark.parametrize("field", ["steps", "a", "b", "c", "epsilon"])
def test_every_number_of_the_iteration_changes_what_is_computed(field: str) -> None:
    value = {"steps": 2, "a": 3.0, "b": -4.5, "c": 1.8, "epsilon": 0.5}[field]
    iteration = NewtonSchulz().model_copy(update={field: value})
    other = by_reference(Muon(newton_schulz=iteration), steps=20)
    assert difference(other, by_reference(Muon(), steps=20)) > 1e-6


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "adamax"}, "adamax"),
        ({"kind": "lion", "epsilon": 1e-8}, "epsilon"),
        ({"kind": "adamw", "beta2": 1.0}, "beta2"),
        ({"kind": "muon", "roles": ()}, "roles"),
        ({"kind": "muon", "roles": ("gain",)}, "roles"),
        ({"kind": "sophia_g", "every_steps": 0}, "every_steps"),
        ({"kind": "muon", "fallback": {"rule": {"kind": "lion"}}}, "kind"),
        ({"kind": "schedule_free", "beta1": 0.0}, "beta1"),
    ],
)
def test_a_wrong_section_is_refused_by_name(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Rule).validate_python(section)


@pytest.mark.parametrize("rule", DEFAULTS.values(), ids=DEFAULTS)
def test_a_section_survives_being_written_and_read(rule: AnyRule) -> None:
    adapter: TypeAdapter[AnyRule] = TypeAdapter(Rule)
    assert adapter.validate_json(adapter.dump_json(rule)) == rule


def spec_of(rule: AnyRule, **changes: Any) -> OptimSpec:
    schedule = Schedule(peak=0.1, curve=ConstantCurve())
    return OptimSpec(rule=rule, schedule=schedule, **changes)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (Muon(), "whole matrices"),
        (Soap(), "whole matrices"),
        (Adafactor(), "rows and columns"),
        (AdamW(cautious=True), "cautious: true"),
        (Lion(cautious=True), "caution counts"),
        (SophiaG(), "curvature is estimated"),
        (SophiaH(), "curvature is estimated"),
        (ScheduleFree(), "a number for each weight"),
    ],
)
def test_rules_that_need_whole_weights_are_refused_for_slices(rule: AnyRule, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_slices(spec_of(rule))


def test_rules_that_work_value_by_value_take_slices() -> None:
    for rule in VARIANTS.values():
        if rule.elementwise:
            assert why_whole(rule) is None
        if rule.elementwise and not isinstance(rule, ScheduleFree | SophiaG | SophiaH):
            check_slices(spec_of(rule))


def test_curvature_is_asked_for_every_k_steps_from_the_first() -> None:
    due = [step for step in range(25) if curvature_due(VARIANTS["sophia_g"], step=step)]
    assert due == [0, 10, 20]
    assert not any(curvature_due(AdamW(), step=step) for step in range(25))


def test_gradients_that_are_not_finite_are_named() -> None:
    given = {"a": [1.0, 2.0], "b": [1.0, float("nan")], "c": [float("inf"), 0.0]}
    twins: Any = ((flax_check, jnp.asarray), (torch_check, torch.tensor))
    for check, array in twins:
        with pytest.raises(FloatingPointError, match="at step 7 those of b, c hold"):
            check({name: array(value) for name, value in given.items()}, step=7)
        check({"a": array(given["a"])}, step=7)
