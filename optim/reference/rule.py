"""One step of a whole model by any rule, weight after weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from models.weights import Weight
from optim.parts import parts_of
from optim.reference import (
    adafactor,
    adamw,
    adan,
    lion,
    muon,
    schedule_free,
    sgd,
    soap,
    sophia,
)
from optim.reference.now import Array, Now, Updated
from optim.rules import AnyRule, ScheduleFree
from optim.slots import first_of, slot_table

Weights = dict[str, Array]
Held = dict[str, Weights]

RULES: Mapping[str, Callable[..., Updated]] = {
    "sgd": sgd.update,
    "adamw": adamw.update,
    "lion": lion.update,
    "adan": adan.update,
    "sophia_g": sophia.update,
    "sophia_h": sophia.update,
    "schedule_free": schedule_free.update,
    "adafactor": adafactor.update,
    "muon": muon.update,
    "soap": soap.update,
}


class Stepped(NamedTuple):
    """A model after a step: weights, and slot -> weight -> array."""

    weights: Weights
    slots: Held


def first_slots(rule: AnyRule, table: Mapping[str, Weight], weights: Mapping[str, Array]) -> Held:
    """What a run starts from."""
    first: dict[str, Callable[[str, tuple[int, ...]], Array]] = {
        "zeros": lambda name, shape: np.zeros(shape),
        "weight": lambda name, shape: weights[name].copy(),
        "identity": lambda name, shape: np.broadcast_to(np.eye(shape[-1]), shape).copy(),
    }
    return {
        slot: {name: first[first_of(slot)](name, shape) for name, shape in shapes.items()}
        for slot, shapes in slot_table(rule, table).items()
    }


def update(
    rule: AnyRule,
    table: Mapping[str, Weight],
    *,
    weights: Mapping[str, Array],
    gradients: Mapping[str, Array],
    slots: Mapping[str, Mapping[str, Array]],
    decay: Mapping[str, float],
    rates: Mapping[str, float],
    step: int,
    rate: float,
    curvature: Mapping[str, Array] | None = None,
    rules: Mapping[str, Callable[..., Updated]] = RULES,
) -> Stepped:
    """Update every trained weight of a table.

    Args:
        decay: weight decay of each weight.
        rates: what multiplies the rate of each weight, a fallback's share included.
        step: from 0.
        rate: the schedule's.
        curvature: of each weight, where `optim.rules.curvature_due` says so.
        rules: what updates a weight, by kind of rule.
    """
    stepped = Stepped(dict(weights), {slot: dict(held) for slot, held in slots.items()})
    for name, part in parts_of(rule, table).items():
        own: dict[str, Any] = {slot: held[name] for slot, held in slots.items() if name in held}
        now = Now(
            step=step,
            rate=rate * rates[name],
            decay=decay[name],
            stacked=part.stacked,
            curvature=None if curvature is None else curvature[name],
        )
        updated = rules[part.rule.kind](
            part.rule, weights[name], gradients[name], slots=own, now=now
        )
        stepped.weights[name] = updated.weight
        for slot, value in updated.slots.items():
            stepped.slots[slot][name] = value
    return stepped


def averaged(rule: AnyRule, *, weights: Weights, slots: Held) -> Weights:
    """The weights that a model is judged by: the trained ones, except for Schedule-Free."""
    if not isinstance(rule, ScheduleFree):
        return weights
    return {
        name: (
            schedule_free.averaged(rule, weight, {"base": slots["base"][name]})
            if name in slots["base"]
            else weight
        )
        for name, weight in weights.items()
    }
