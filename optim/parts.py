"""Which rule each weight gets: the spec's own, or the fallback of one that takes only matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from models.weights import Weight
from optim.rules import AnyRule, Muon, Soap


class Part(NamedTuple):
    """The rule of one weight.

    Attributes:
        rule: the rule; its `decay` is what decayed weights of this part get.
        rate: what multiplies the schedule's rate, on top of the weight's own share.
        stacked: the first axis numbers experts: the weight is a batch of vectors or matrices.
    """

    rule: AnyRule
    rate: float
    stacked: bool


def part_of(rule: AnyRule, weight: Weight) -> Part:
    """The rule of a weight, by its role.

    >>> from models.weights import Weight
    >>> part_of(Muon(), Weight("norm.weight", (8,), "gain", ("width",))).rule.kind
    'adamw'
    """
    stacked = is_stacked(weight)
    if isinstance(rule, Muon | Soap) and (weight.role not in rule.roles or len(weight.shape) < 2):
        return Part(rule.fallback.rule, rule.fallback.rate, stacked)
    return Part(rule, 1.0, stacked)


def is_stacked(weight: Weight) -> bool:
    """Whether the first axis numbers experts, each with a vector or matrix of its own."""
    return weight.axes[0] == "experts" and weight.role in ("matrix", "bias")


def unit_axes(weight: Weight) -> tuple[int, ...]:
    """The axes over which a unit's values lie: rows of a matrix, or a whole vector.

    >>> unit_axes(Weight("experts", (2, 3, 4), "matrix", ("experts", "hidden", "width")))
    (2,)
    >>> unit_axes(Weight("norm.weight", (8,), "gain", ("width",)))
    (0,)
    """
    first = int(is_stacked(weight))
    return tuple(range(first + has_rows(weight), len(weight.shape)))


def has_rows(weight: Weight) -> bool:
    """Whether a weight, or each expert's share of it, is a matrix of units' rows."""
    return len(weight.shape) - is_stacked(weight) >= 2


def parts_of(rule: AnyRule, table: Mapping[str, Weight]) -> dict[str, Part]:
    """The rule of every trained weight of a table; the rest has no slots and is left alone."""
    return {name: part_of(rule, weight) for name, weight in table.items() if weight.trained}
