"""What an optimizer remembers between steps, and the weights that a model is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.weights import Weight
from optim.groups import plan
from optim.reference import schedule_free
from optim.rules import ScheduleFree
from optim.slots import Shape, first_of, slot_table
from optim.spec import OptimSpec

Arrays = Mapping[str, NDArray[Any]]
Slots = Mapping[str, Arrays]


def held_slots(optim: OptimSpec, table: Mapping[str, Weight]) -> dict[str, dict[str, Shape]]:
    """Every slot of a run: slot -> weight that the optimizer moves -> shape."""
    moving = {name: table[name] for name, each in plan(optim, table).items() if each.moves}
    slots = slot_table(optim.rule, moving)
    if optim.average is not None:
        slots["average"] = {name: weight.shape for name, weight in moving.items()}
    return slots


def first_values(
    optim: OptimSpec, table: Mapping[str, Weight], weights: Arrays
) -> dict[str, dict[str, NDArray[Any]]]:
    """The slots that a run starts from."""
    return {
        slot: {name: _first(slot, shape, weights[name]) for name, shape in shapes.items()}
        for slot, shapes in held_slots(optim, table).items()
    }


def check_slots(optim: OptimSpec, table: Mapping[str, Weight], slots: Slots) -> None:
    """Hold slots against what a run has.

    Raises:
        ValueError: they are of another optimizer or another model; the message names them.
    """
    expected = held_slots(optim, table)
    if set(slots) != set(expected):
        raise ValueError(
            f"the slots are those of another optimizer: got {', '.join(sorted(slots)) or 'none'}, "
            f"optim.rule.kind={optim.rule.kind} has {', '.join(sorted(expected)) or 'none'}."
        )
    for slot, shapes in expected.items():
        missing = sorted(shapes.keys() - slots[slot].keys())
        unknown = sorted(slots[slot].keys() - shapes.keys())
        if missing or unknown:
            raise ValueError(
                f"the slots {slot} are those of another model: missing {missing or 'nothing'}, "
                f"unknown {unknown or 'nothing'}."
            )
        for name, shape in shapes.items():
            if slots[slot][name].shape != shape:
                raise ValueError(
                    f"the slot {slot} of {name} must have shape {shape}; "
                    f"got {slots[slot][name].shape}."
                )


def judged(optim: OptimSpec, weights: Arrays, slots: Slots) -> dict[str, NDArray[Any]]:
    """The weights that a model is measured and published with.

    They are the trained ones, but for an average (`optim.average`) and Schedule-Free's own.
    """
    found = dict(weights)
    if optim.average is not None:
        for name, average in slots["average"].items():
            found[name] = average.astype(weights[name].dtype)
    elif isinstance(optim.rule, ScheduleFree):
        for name, base in slots["base"].items():
            average = schedule_free.averaged(optim.rule, weights[name], {"base": base})
            found[name] = average.astype(weights[name].dtype)
    return found


def averages(optim: OptimSpec) -> bool:
    """Whether a model is judged by other weights than the trained ones."""
    return optim.average is not None or isinstance(optim.rule, ScheduleFree)


def _first(slot: str, shape: Shape, weight: NDArray[Any]) -> NDArray[Any]:
    match first_of(slot):
        case "zeros":
            return np.zeros(shape, weight.dtype)
        case "weight":
            return weight.copy()
        case "identity":
            return np.broadcast_to(np.eye(shape[-1], dtype=weight.dtype), shape).copy()
