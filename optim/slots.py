"""What a rule remembers of each weight: names, shapes and first values of its slots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from models.weights import Weight
from optim.parts import parts_of
from optim.rules import (
    Adafactor,
    AdamW,
    Adan,
    AnyRule,
    Lion,
    Muon,
    ScheduleFree,
    Sgd,
    Soap,
    SophiaG,
    SophiaH,
)

Shape = tuple[int, ...]
First = Literal["zeros", "weight", "identity"]

# Slots that do not start at zero.
FIRST: Mapping[str, First] = {
    "average": "weight",
    "base": "weight",
    "left_basis": "identity",
    "right_basis": "identity",
}


def first_of(slot: str) -> First:
    """What a slot starts from."""
    return FIRST.get(slot, "zeros")


def slot_shapes(rule: AnyRule, shape: Shape, *, stacked: bool = False) -> dict[str, Shape]:
    """The slots of one weight.

    Args:
        rule: the rule of this weight, not one whose fallback it gets.
        shape: of the weight, or of a flattened slice where the rule is elementwise.
        stacked: the first axis numbers experts.

    >>> slot_shapes(Adafactor(), (4, 3))
    {'row_moment': (4,), 'column_moment': (3,)}
    """
    match rule:
        case Sgd():
            return {"velocity": shape} if rule.momentum else {}
        case AdamW():
            return {"first_moment": shape, "second_moment": shape}
        case Lion():
            return {"momentum": shape}
        case Adan():
            names = ("first_moment", "difference_moment", "second_moment", "last_gradient")
            return dict.fromkeys(names, shape)
        case SophiaG() | SophiaH():
            return {"first_moment": shape, "curvature": shape}
        case ScheduleFree():
            return {"base": shape, "second_moment": shape, "share_sum": ()}
        case Adafactor():
            first = {"first_moment": shape} if rule.beta1 else {}
            if is_factored(rule, shape, stacked=stacked):
                column = (*shape[:-2], shape[-1])
                return first | {"row_moment": shape[:-1], "column_moment": column}
            return first | {"second_moment": shape}
        case Muon():
            return {"velocity": shape}
        case Soap():
            *stack, out, into = shape
            slots = {"first_moment": shape, "second_moment": shape}
            for side, size in (("left", out), ("right", into)):
                if size <= rule.largest_side:
                    square = (*stack, size, size)
                    slots |= {f"{side}_covariance": square, f"{side}_basis": square}
            return slots


def is_factored(rule: Adafactor, shape: Shape, *, stacked: bool) -> bool:
    """Whether Adafactor keeps rows and columns of a weight in place of all its values."""
    matrix = shape[stacked:]
    return len(matrix) == 2 and min(matrix) >= rule.least_side


def slot_table(rule: AnyRule, table: Mapping[str, Weight]) -> dict[str, dict[str, Shape]]:
    """Every slot of a rule: slot -> weight -> shape, in the order of the weight table."""
    slots: dict[str, dict[str, Shape]] = {}
    for name, part in parts_of(rule, table).items():
        shapes = slot_shapes(part.rule, table[name].shape, stacked=part.stacked)
        for slot, shape in shapes.items():
            slots.setdefault(slot, {})[name] = shape
    return slots


def slot_size(rule: AnyRule, table: Mapping[str, Weight]) -> int:
    """Number of values that a rule remembers."""
    shapes = [shape for held in slot_table(rule, table).values() for shape in held.values()]
    return sum(math.prod(shape) for shape in shapes)
