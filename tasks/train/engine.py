"""What a framework gives to the loop: a few methods, NumPy in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from optim.controls import Controls
from tasks.prepare.batch import Batch


@dataclass(frozen=True)
class ExpertLoad:
    """How evenly a step's choices fell, over all layers with experts.

    Attributes:
        imbalance: load of the busiest expert over the mean load, the worst layer's; 1 is even.
        dropped: share of the choices that no expert took.
    """

    imbalance: float
    dropped: float

    @classmethod
    def of(cls, chosen: Sequence[NDArray[Any]], taken: Sequence[NDArray[Any]]) -> Self | None:
        """From what each layer's experts were chosen for and took; None without such layers.

        >>> ExpertLoad.of([np.array([3.0, 1.0])], [np.array([2.0, 1.0])])
        ExpertLoad(imbalance=1.5, dropped=0.25)
        """
        if not chosen:
            return None
        imbalance = max(float(layer.max() / layer.mean()) for layer in chosen)
        asked = sum(float(layer.sum()) for layer in chosen)
        return cls(imbalance, 1.0 - sum(float(layer.sum()) for layer in taken) / asked)


@dataclass(frozen=True)
class StepResult:
    """Figures of one step, the same on every worker.

    Attributes:
        loss: mean of -log p over the scored targets of the global batch, in nats, before the
            update.
        gradient_norm: global norm of the objective's gradient before clipping.
        objective: what is minimised: the loss, and what smoothing, z-losses, balance losses and
            predictions further ahead add.
        taken: whether weights and slots moved; a norm that is not finite, or above
            `Controls.skip`, changes nothing.
        load: choices that fell on each expert and that it took; None without experts.
    """

    loss: float
    gradient_norm: float
    objective: float
    taken: bool = True
    load: ExpertLoad | None = None


@dataclass(frozen=True)
class LossSum:
    """A sum of losses and what it is divided by in the end, over all workers."""

    loss: float
    targets: int


@dataclass(frozen=True)
class EngineState:
    """Everything that a step changes, in the names and shapes of the weight table.

    Attributes:
        weights: name -> array.
        slots: what the optimizer remembers (`first_moment`, ...) -> name -> array; shapes as in
            `optim.state.held_slots`.
    """

    weights: dict[str, NDArray[Any]]
    slots: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)


class Engine(Protocol):
    """One worker's share of a training run. The methods are collective: all workers call them."""

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        """Train on this worker's rows of the global batch, micro-batch after micro-batch.

        Args:
            loss_scale: what the objective is multiplied by before the backward pass, and the
                gradient divided by after it, so that float16 holds it.
        """

    def loss(self, batch: Batch) -> LossSum:
        """Measure this worker's rows, without dropout and without an update.

        Every worker brings equally many rows, a multiple of its devices.
        """

    def judged(self) -> AbstractContextManager[None]:
        """Inside, `loss` measures the weights that a model is judged by; see `optim.state`."""

    def state(self) -> EngineState:
        """The whole state, gathered, on every worker."""

    def replicas(self) -> Mapping[str, NDArray[np.int64]]:
        """Checksums of the arrays that several workers or devices hold alike.

        Returns:
            Name -> one number for each copy, in the order of the workers and, within one, of its
            devices: the sum of the bits as integers of 32 bits, so that one flipped bit shows.
            What is shared out has no copy and is not told; empty where nothing is held twice.
        """

    def load(self, state: EngineState) -> None:
        """Go on from a state that either framework saved; without slots they start anew.

        Raises:
            ValueError: the state is of another model, or a weight is not finite.
        """

    def close(self) -> None:
        """Leave the process group, if this engine joined one."""
