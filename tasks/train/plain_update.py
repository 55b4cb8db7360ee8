"""The step without an engine: float64, where DeepSpeed would round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from optim.controls import Controls
from optim.torch.clip import clip_by_global_norm
from optim.torch.optimizer import RuleOptimizer
from tasks.train.engine import EngineState
from tasks.train.torch_state import Applied, named_weights, on_host, told, whole, write


class PlainUpdater:
    """Every worker holds everything and averages its gradients with the others'."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: RuleOptimizer,
        slots: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Take the module whose `model` is trained."""
        self.objective = objective
        self._optimizer, self._slots = optimizer, slots
        self._named = named_weights(objective)
        optimizer.create_slots()
        optimizer.zero_grad()

    def accumulate(self, objective: Tensor) -> None:
        """Backward; see `Updater`."""
        objective.backward()  # type: ignore[no-untyped-call]

    def apply(
        self, controls: Controls, *, loss_scale: float, curvature: Mapping[nn.Parameter, Tensor]
    ) -> Applied:
        """Clip and update; see `Updater`."""
        gradients = [each.grad for each in self._named.values() if each.grad is not None]
        average_over_workers(gradients)
        if loss_scale != 1.0:
            torch._foreach_div_(gradients, loss_scale)
        norm = float(clip_by_global_norm(gradients, controls.clip))
        taken = math.isfinite(norm) and norm <= controls.skip
        if taken:
            told(self._optimizer, controls, curvature)
            self._optimizer.step()
        self._optimizer.zero_grad()
        return Applied(norm, taken)

    def named(self) -> dict[str, nn.Parameter]:
        """The model's parameters."""
        return self._named

    @torch.no_grad()
    def move(self, name: str, step: Tensor) -> None:
        """Add to a weight that no gradient moves."""
        weight = self._named[name]
        weight.add_(step.to(weight.dtype))

    def alike(self) -> dict[str, Tensor]:
        """Everything: weights and slots."""
        return whole(self._named, self._optimizer, self._slots)

    def show(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Let the model compute with other weights."""
        for name, weight in self._named.items():
            write(weight, torch.tensor(weights[name]))

    def state(self) -> EngineState:
        """Copies of weights and slots."""
        held = self._optimizer.state
        return EngineState(
            {name: on_host(weight) for name, weight in self._named.items()},
            {
                slot: {name: on_host(held[self._named[name]][slot]) for name in shapes}
                for slot, shapes in self._slots.items()
            },
        )

    def load(self, state: EngineState) -> None:
        """Replace weights and slots."""
        self.show(state.weights)
        for slot, arrays in state.slots.items():
            for name, values in arrays.items():
                write(self._optimizer.state[self._named[name]][slot], torch.tensor(values))

    def close(self, *, leave: bool) -> None:
        """End the process group, if asked to."""
        if leave:
            distributed.destroy_process_group()


def average_over_workers(gradients: list[Tensor]) -> None:
    """Replace gradients by their mean over the workers, in one message."""
    workers = distributed.get_world_size()
    if workers == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = torch.split(flat.div_(workers), [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
