"""A whole optimizer step by definition: what `optim` says, one stage after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from models.weights import Weight
from optim.controls import Controls
from optim.groups import plan
from optim.reference import rule
from optim.reference.clip import clip_by_global_norm
from optim.reference.gradient import shaped
from optim.reference.now import Array
from optim.spec import OptimSpec

Weights = Mapping[str, Array]


class Stepped(NamedTuple):
    """Weights and slots after a step, the gradient's norm, and whether the step was taken."""

    weights: dict[str, Array]
    slots: dict[str, dict[str, Array]]
    norm: float
    taken: bool


def step(
    optim: OptimSpec,
    table: Mapping[str, Weight],
    *,
    weights: Weights,
    gradients: Weights,
    slots: Mapping[str, Weights],
    controls: Controls,
    curvature: Weights | None = None,
) -> Stepped:
    """One step of every weight that moves."""
    old = Stepped(dict(weights), {slot: dict(held) for slot, held in slots.items()}, 0.0, False)
    planned = {name: each for name, each in plan(optim, table).items() if each.moves}
    moving = {name: table[name] for name in planned}
    clipped = clip_by_global_norm({name: gradients[name] for name in moving}, controls.clip)
    if not math.isfinite(clipped.norm) or clipped.norm > controls.skip:
        return old._replace(norm=clipped.norm)
    seen = {
        name: shaped(
            optim.gradient, weights[name], clipped.gradients[name], row=row, step=controls.step
        )
        for name, row in moving.items()
    }
    moved = rule.update(
        optim.rule,
        moving,
        weights=weights,
        gradients=seen,
        slots={slot: held for slot, held in slots.items() if slot != "average"},
        decay={name: each.decay * controls.decay_share for name, each in planned.items()},
        rates={name: each.rate for name, each in planned.items()},
        step=controls.step,
        rate=controls.rate,
        curvature=curvature,
    )
    for name, average in slots.get("average", {}).items():
        nearer = average + controls.average_share * (moved.weights[name] - average)
        moved.slots.setdefault("average", {})[name] = nearer
    return Stepped(moved.weights, moved.slots, clipped.norm, True)
