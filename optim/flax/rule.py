"""One step of a whole model by any rule: pure, to be jitted with its arguments donated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from models.weights import Weight
from optim.flax import (
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
from optim.flax.now import Now, Updated, seen_shares
from optim.parts import parts_of
from optim.rules import AnyRule, ScheduleFree
from optim.slots import first_of, slot_table

Tree = dict[str, Array]
Held = dict[str, Tree]

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
# Slots whose old value new weights or other slots are made of.
WRITTEN_LAST: Mapping[str, tuple[str, ...]] = {"lion": ("momentum",), "adan": ("last_gradient",)}


class Stepped(NamedTuple):
    """A model after a step: weights, and slot -> weight -> array."""

    weights: Tree
    slots: Held


def first_slots(
    rule: AnyRule, table: Mapping[str, Weight], weights: Mapping[str, ArrayLike]
) -> Held:
    """What a run starts from; slots have the dtype of the arithmetic, float32 at least."""
    slots: Held = {}
    for slot, shapes in slot_table(rule, table).items():
        slots[slot] = {}
        for name, shape in shapes.items():
            weight = jnp.asarray(weights[name])
            dtype = _arithmetic(weight)
            match first_of(slot):
                case "zeros":
                    slots[slot][name] = jnp.zeros(shape, dtype)
                case "weight":
                    # A copy: weights and slots are donated, and one buffer cannot be given twice.
                    slots[slot][name] = jnp.array(weight, dtype, copy=True)
                case "identity":
                    eye = jnp.eye(shape[-1], dtype=dtype)
                    slots[slot][name] = jnp.array(jnp.broadcast_to(eye, shape), copy=True)
    return slots


def update(
    rule: AnyRule,
    table: Mapping[str, Weight],
    *,
    weights: Mapping[str, Array],
    gradients: Mapping[str, Array],
    slots: Mapping[str, Mapping[str, Array]],
    decay: Mapping[str, Array | float],
    rates: Mapping[str, float],
    step: ArrayLike,
    rate: ArrayLike,
    curvature: Mapping[str, Array] | None = None,
) -> Stepped:
    """Update every trained weight of a table; arguments as in `optim.reference.rule.update`.

    No counter is kept: `step` and `rate` may be traced, so that a resume cannot shift a bias
    correction and no step compiles anew.
    """
    stepped = Stepped(dict(weights), {slot: dict(held) for slot, held in slots.items()})
    for name, part in parts_of(rule, table).items():
        weight = weights[name]
        dtype = _arithmetic(weight)
        count = jnp.asarray(step).astype(dtype)
        now = Now(
            step=count,
            rate=jnp.asarray(rate).astype(dtype) * rates[name],
            decay=decay[name],
            seen=seen_shares(part.rule, count),
            stacked=part.stacked,
            curvature=None if curvature is None else curvature[name].astype(dtype),
        )
        updated = RULES[part.rule.kind](
            part.rule,
            weight.astype(dtype),
            jnp.asarray(gradients[name]).astype(dtype),
            slots={slot: held[name] for slot, held in slots.items() if name in held},
            now=now,
        )
        stepped.weights[name] = updated.weight.astype(weight.dtype)
        for slot, value in updated.slots.items():
            stepped.slots[slot][name] = value
    return stepped


def in_place(
    rule: AnyRule, taken: ArrayLike, *, old: Stepped, new: Callable[[], Stepped]
) -> Stepped:
    """A step where it is taken, else what was; with `old` donated, written over it.

    XLA's CPU compiler gives every new array a loop of its own and copies a donated array that one
    loop writes and another one reads, unless the order is certain. What `lax.cond` answers is
    certain, and by a choice (`jnp.where`) between old and new every loop would read old values.
    docs/bench/optim.md has the times; Schedule-Free, whose weights and base are made of each
    other's old values, still copies one of them.
    """
    last = WRITTEN_LAST.get(rule.kind, ())

    def part(stepped: Stepped, *, of_last: bool) -> Held:
        return {slot: held for slot, held in stepped.slots.items() if (slot in last) == of_last}

    def first(stepped: Stepped) -> Stepped:
        return Stepped(stepped.weights, part(stepped, of_last=False))

    stepped: Stepped
    stepped, done = jax.lax.cond(taken, lambda: (first(new()), True), lambda: (first(old), False))
    if last:
        then = jax.lax.cond(
            done, lambda: part(new(), of_last=True), lambda: part(old, of_last=True)
        )
        stepped.slots.update(then)
    return stepped


def averaged(rule: AnyRule, *, weights: Tree, slots: Held) -> Tree:
    """The weights that a model is judged by: the trained ones, except for Schedule-Free."""
    if not isinstance(rule, ScheduleFree):
        return weights
    return {
        name: (
            schedule_free.averaged(rule, weight, {"base": slots["base"][name]}).astype(weight.dtype)
            if name in slots["base"]
            else weight
        )
        for name, weight in weights.items()
    }


def _arithmetic(weight: Array) -> jnp.dtype:
    return jnp.promote_types(weight.dtype, jnp.float32)
