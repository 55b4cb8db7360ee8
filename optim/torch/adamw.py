"""AdamW: Adam with decoupled weight decay; equations in `optim.reference.adamw`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optim.rules import AdamW
from optim.torch.cautious import cautious
from optim.torch.now import Now, Slots, Updated


def update(spec: AdamW, weight: Tensor, gradient: Tensor, *, slots: Slots, now: Now) -> Updated:
    """One step."""
    if not spec.decoupled:
        gradient = gradient + now.decay * weight
    first = spec.beta1 * slots["first_moment"] + (1 - spec.beta1) * gradient  # (1)
    second = spec.beta2 * slots["second_moment"] + (1 - spec.beta2) * gradient**2  # (2)
    seen = now.seen if spec.bias_correction else (1.0, 1.0)
    direction = first / seen[0] / (torch.sqrt(second / seen[1]) + spec.epsilon)  # (3)
    if spec.cautious:
        direction = cautious(direction, gradient)
    if spec.decoupled:
        direction = direction + now.decay * weight
    moments = {"first_moment": first, "second_moment": second}
    return Updated(weight - now.rate * direction, moments)  # (4)


def is_fused(spec: object, parameters: Sequence[Tensor]) -> bool:
    """Whether torch's own kernel computes this variant: one pass over memory, nothing to compile.

    It wants weights, gradients and slots of one dtype.
    """
    return (
        isinstance(spec, AdamW)
        and spec.bias_correction
        and spec.decoupled
        and not spec.cautious
        and all(each.dtype in (torch.float32, torch.float64) for each in parameters)
    )


def fused(
    spec: AdamW,
    parameters: Sequence[Tensor],
    *,
    slots: Sequence[Slots],
    step: int,
    rate: float,
    decay: float,
) -> None:
    """One step of many weights, in place: what `update` computes."""
    if parameters:
        count = torch.tensor(float(step + 1))
        torch._fused_adamw_(
            list(parameters),
            [each.grad for each in parameters if each.grad is not None],
            [each["first_moment"] for each in slots],
            [each["second_moment"] for each in slots],
            [],
            [count.to(each.device) for each in parameters],
            lr=rate,
            beta1=spec.beta1,
            beta2=spec.beta2,
            weight_decay=decay,
            eps=spec.epsilon,
            amsgrad=False,
            maximize=False,
        )
