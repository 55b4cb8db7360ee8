"""Any rule as a torch optimizer, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from models.weights import Weight
from optim import native
from optim.gradient import GradientSpec
from optim.parts import parts_of
from optim.rules import AnyRule, ScheduleFree
from optim.slots import first_of, slot_shapes
from optim.torch import (
    adafactor,
    adamw,
    adan,
    lion,
    muon,
    one_pass,
    schedule_free,
    sgd,
    soap,
    sophia,
)
from optim.torch.gradient import shaped
from optim.torch.now import Now, Slots, Updated, seen_shares

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
# These look at rows and columns; the others see a weight as a line of values.
SHAPED = ("adafactor", "muon", "soap")
# Values of a piece whose temporaries stay in a core's cache when nothing is compiled.
PIECE = 2**15


def groups_of(
    rule: AnyRule,
    table: Mapping[str, Weight],
    *,
    named: Mapping[str, nn.Parameter],
    decay: Mapping[str, float],
    rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Parameter groups of every trained weight: equal treatment, one group.

    Args:
        named: the model's parameters, by the table's names; others are left alone.
        decay: weight decay of each weight.
        rates: what multiplies the rate of each weight, a fallback's share included.
    """
    groups: dict[Any, dict[str, Any]] = {}
    for name, part in parts_of(rule, table).items():
        if name in named:
            new: dict[str, Any] = {
                "params": [],
                "rows": [],
                "rule": part.rule,
                "decay": decay[name],
                "share": rates[name],
                "stacked": part.stacked,
            }
            key = (part.rule.kind, decay[name], rates[name], part.stacked)
            group = groups.setdefault(key, new)
            group["params"].append(named[name])
            group["rows"].append(table[name])
    return list(groups.values())


class RuleOptimizer(torch.optim.Optimizer):
    """Updates parameters in place by the rule of their group.

    There is no counter inside: the owner says with `set_step` before each step which one it is,
    so that neither a resume nor an engine's trial step shifts a bias correction. An elementwise
    rule may be given flattened parameters.

    Args:
        groups: parameter groups, each with `params` and, where they differ from the defaults,
            `rule`, `decay`, `share` (what multiplies the rate), `stacked` and `rows` (lines of
            the weight table, one for each parameter); `groups_of` makes them.
        rule: of groups that bring none.
        gradient: what is done to each weight's gradient first; its clipping by the global norm is
            the owner's.
        averages: keep a slot `average` of every parameter.
        compiled: fuse each rule into one pass over memory (`torch.compile`: Triton on CUDA, C++
            elsewhere, for which a compiler must be there). Else AdamW takes torch's own kernel
            and what `optim.native` knows one pass of it; other rules run operation by operation,
            on a CPU in pieces that fit into its cache.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        rule: AnyRule,
        *,
        gradient: GradientSpec = GradientSpec(clip=None),
        averages: bool = False,
        compiled: bool = False,
    ) -> None:
        """Hold the groups; slots appear with `create_slots` or on the first step."""
        defaults = {
            "lr": 0.0,
            "weight_decay": 0.0,
            "decay": 0.0,
            "share": 1.0,
            "step": 0,
            "rule": rule,
            "stacked": False,
            "rows": (),
        }
        super().__init__(groups, defaults)
        self._gradient, self._averages, self._compiled = gradient, averages, compiled
        self._average_share = 0.0
        self._curvature: dict[Tensor, Tensor] = {}
        self.held_back: Callable[[], bool] | None = None
        """Asked before an update, where an engine calls `step`; true leaves all as it is."""

    def set_step(
        self,
        step: int,
        *,
        rate: float,
        decay_share: float = 1.0,
        average_share: float = 0.0,
        curvature: Mapping[Any, Tensor] | None = None,
    ) -> None:
        """Say which step comes next.

        Args:
            step: from 0.
            rate: the schedule's.
            decay_share: multiplies every decay.
            average_share: how far the averages move to the weights after the step.
            curvature: of each parameter, where `optim.rules.curvature_due` says so; it serves one
                step.
        """
        self._curvature = dict(curvature or {})
        self._average_share = average_share
        for group in self.param_groups:
            group["step"], group["lr"] = step, rate * group["share"]
            group["weight_decay"] = group["decay"] * decay_share

    def create_slots(self) -> None:
        """Give every parameter its first slots, where it has none."""
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                self.create_slots_of(parameter, group=number)

    def create_slots_of(self, parameter: Tensor, *, group: int) -> None:
        """The same for one parameter, which an engine may put into its group only for a step."""
        self._create(parameter, self.param_groups[group])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if self.held_back is not None and self.held_back():
            return
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            for parameter in parameters:
                self._create(parameter, group)
            if self._gradient.shapes:
                self._shape(group)
            self._update_all(group, parameters)
            if self._averages:
                for parameter in parameters:
                    average = self.state[parameter]["average"]
                    average.lerp_(parameter.to(average.dtype), self._average_share)
        self._curvature = {}

    def _shape(self, group: dict[str, Any]) -> None:
        """Do to each gradient what comes before the rule."""
        # A flattened parameter has no line of its own, and nothing then asks for it.
        lines = self._gradient.needs_whole is not None
        rows = group["rows"] if lines else [None] * len(group["params"])
        for parameter, row in zip(group["params"], rows, strict=True):
            if parameter.grad is None:
                continue
            dtype = _arithmetic(parameter)
            weight, gradient = parameter.detach().to(dtype), parameter.grad.to(dtype)
            seen = shaped(self._gradient, weight, gradient, row=row, step=group["step"])
            parameter.grad.copy_(seen)

    def _update_all(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        rule = group["rule"]
        if not self._compiled:
            parameters = self._update_at_once(group, parameters)
        numbers: dict[torch.dtype, Now] = {}
        for parameter in parameters:
            dtype = _arithmetic(parameter)
            if dtype not in numbers:
                numbers[dtype] = _now(group, dtype)
            self._update(rule, parameter, numbers[dtype])

    def _update_at_once(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        """Update what a kernel takes in one pass over memory; the others are the answer."""
        rule = group["rule"]
        if adamw.is_fused(rule, parameters):
            adamw.fused(
                rule,
                parameters,
                slots=[self.state[each] for each in parameters],
                step=group["step"],
                rate=group["lr"],
                decay=group["weight_decay"],
            )
            return []
        if not native.knows(rule):
            return parameters
        for dtype in one_pass.DTYPES:
            alike = [each for each in parameters if each.dtype == dtype and one_pass.takes(each)]
            one_pass.update(
                rule,
                alike,
                slots=[self.state[each] for each in alike],
                curvature=self._curvature,
                step=group["step"],
                rate=group["lr"],
                decay=group["weight_decay"],
            )
        return [each for each in parameters if not one_pass.takes(each)]

    def _update(self, rule: AnyRule, parameter: Tensor, now: Now) -> None:
        curvature = self._curvature.get(parameter)
        lines = rule.kind not in SHAPED
        apply = _compiled(rule) if self._compiled and lines else _eager(rule)
        pieces = lines and rule.elementwise and not self._compiled and not parameter.is_cuda
        assert parameter.grad is not None
        slots = {slot: held for slot, held in self.state[parameter].items() if slot != "average"}
        arrays = {"weight": parameter.data, "gradient": parameter.grad, **slots}
        if curvature is not None:
            arrays["estimate"] = curvature
        scalars: Slots = {}
        for cut in _cut(arrays, lines=lines, pieces=pieces):
            estimate = cut.pop("estimate", None)
            now = now._replace(curvature=estimate)
            scalars = apply(cut.pop("weight"), cut.pop("gradient"), cut, now)
        for slot, value in scalars.items():
            self.state[parameter][slot].copy_(value)

    def _create(self, parameter: Tensor, group: dict[str, Any]) -> None:
        slots = self.state[parameter]
        if slots:
            return
        dtype, device = _arithmetic(parameter), parameter.device
        shapes = slot_shapes(group["rule"], tuple(parameter.shape), stacked=group["stacked"])
        if self._averages:
            shapes["average"] = tuple(parameter.shape)
        for slot, shape in shapes.items():
            match first_of(slot):
                case "zeros":
                    slots[slot] = torch.zeros(shape, dtype=dtype, device=device)
                case "weight":
                    slots[slot] = parameter.detach().to(dtype, copy=True)
                case "identity":
                    eye = torch.eye(shape[-1], dtype=dtype, device=device)
                    slots[slot] = eye.expand(shape).clone()


def averaged(rule: AnyRule, weight: Tensor, slots: Slots) -> Tensor:
    """The weight that a model is judged by: the trained one, except for Schedule-Free."""
    if not isinstance(rule, ScheduleFree):
        return weight
    return schedule_free.averaged(rule, weight, slots).to(weight.dtype)


Apply = Callable[[Tensor, Tensor, Slots, Now], Slots]


def _in_place(rule: AnyRule) -> Apply:
    """A rule that writes weight and slots where they lie and gives back its slots ().

    A slot () belongs to all pieces of a weight. Written in the same program as it is read, torch
    2.13 compiles reads of the new value (tests/optim/test_rules_slots.py).
    """
    update = RULES[rule.kind]

    def apply(weight: Tensor, gradient: Tensor, slots: Slots, now: Now) -> Slots:
        dtype = _arithmetic(weight)
        updated = update(rule, weight.to(dtype), gradient.to(dtype), slots=slots, now=now)
        weight.copy_(updated.weight)
        for slot, value in updated.slots.items():
            if value.ndim:
                slots[slot].copy_(value)
        return {slot: value for slot, value in updated.slots.items() if not value.ndim}

    # torch counts recompilations by code object, and rules share none.
    apply.__code__ = apply.__code__.replace()
    return apply


@lru_cache
def _eager(rule: AnyRule) -> Apply:
    return _in_place(rule)


@lru_cache
def _compiled(rule: AnyRule) -> Apply:
    return torch.compile(_in_place(rule), dynamic=True, fullgraph=True)


def _now(group: dict[str, Any], dtype: torch.dtype) -> Now:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype)

    return Now(
        step=number(group["step"]),
        rate=number(group["lr"]),
        decay=number(group["weight_decay"]),
        seen=tuple(map(number, seen_shares(group["rule"], group["step"]))),
        stacked=group["stacked"],
    )


def _cut(arrays: dict[str, Tensor], *, lines: bool, pieces: bool) -> Iterator[dict[str, Tensor]]:
    """Views of the arrays of one parameter: as they are, as lines, or as pieces of lines."""
    if lines and arrays["weight"].is_contiguous():
        arrays = {name: each.reshape(-1) if each.ndim else each for name, each in arrays.items()}
        size = arrays["weight"].numel()
        for start in range(0, size, PIECE) if pieces else ():
            yield {
                name: each[start : start + PIECE] if each.ndim else each
                for name, each in arrays.items()
            }
        if pieces:
            return
    yield arrays


def _arithmetic(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
