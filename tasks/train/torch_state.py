"""What both ways to update a torch model share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optim.controls import Controls
from optim.torch.optimizer import RuleOptimizer


class Applied(NamedTuple):
    """The global norm before clipping, and whether weights and slots moved."""

    norm: float
    taken: bool


def told(
    optimizer: RuleOptimizer, controls: Controls, curvature: Mapping[nn.Parameter, Tensor]
) -> None:
    """Tell an optimizer which step comes next."""
    optimizer.set_step(
        controls.step,
        rate=controls.rate,
        decay_share=controls.decay_share,
        average_share=controls.average_share,
        curvature=curvature,
    )


def named_weights(objective: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of an objective's `model`, by the names of the weight table."""
    model = objective.get_submodule("model")
    return dict(model.named_parameters())


def on_host(tensor: Tensor) -> NDArray[Any]:
    """A copy of a tensor that no later step changes."""
    return np.array(tensor.detach().cpu().numpy())


def whole(
    named: Mapping[str, nn.Parameter],
    optimizer: RuleOptimizer,
    slots: Mapping[str, Mapping[str, Any]],
) -> dict[str, Tensor]:
    """Weights and slots by name, of a worker that shares nothing."""
    held = {
        f"{slot} of {name}": optimizer.state[named[name]][slot]
        for slot, shapes in slots.items()
        for name in shapes
    }
    return {**named, **held}


@torch.no_grad()
def write(tensor: Tensor, values: Tensor) -> None:
    """Copy values of the same shape into a tensor, in the tensor's type."""
    tensor.copy_(values)
