"""The rules of `optim.native` for torch's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from optim import native
from optim.rules import AnyRule
from optim.slots import slot_shapes
from optim.torch.now import Slots, seen_shares

DTYPES = (torch.float32, torch.float64)


def takes(parameter: Tensor) -> bool:
    """Whether a parameter lies where it can be updated so: on a CPU, in one piece, unpacked.

    Its slots are as `RuleOptimizer` makes them.
    """
    gradient = parameter.grad
    assert gradient is not None
    return (
        parameter.device.type == "cpu"
        and parameter.dtype in DTYPES
        and gradient.dtype == parameter.dtype
        and parameter.is_contiguous()
        and gradient.is_contiguous()
    )


def update(
    rule: AnyRule,
    parameters: Sequence[Tensor],
    *,
    slots: Sequence[Slots],
    curvature: Mapping[Tensor, Tensor],
    step: int,
    rate: float,
    decay: float,
) -> None:
    """One step of many parameters of one dtype, in place.

    Args:
        rule: one that `native.knows`.
        parameters: those that are taken.
        curvature: estimates of some of them.
    """
    if not parameters:
        return
    dtype = parameters[0].dtype
    estimates = {
        parameter: estimate.to(dtype).contiguous() for parameter, estimate in curvature.items()
    }
    names = tuple(slot_shapes(rule, ()))
    lines = [
        native.Line(
            parameter.data_ptr(),
            parameter.grad.data_ptr() if parameter.grad is not None else 0,
            [held[name].data_ptr() for name in names],
            estimates[parameter].data_ptr() if parameter in estimates else 0,
            parameter.numel(),
        )
        for parameter, held in zip(parameters, slots, strict=True)
    ]
    native.update(
        rule,
        lines,
        wide=dtype == torch.float64,
        step=step,
        rate=rate,
        decay=decay,
        seen=seen_shares(rule, step),
        threads=torch.get_num_threads(),
    )
