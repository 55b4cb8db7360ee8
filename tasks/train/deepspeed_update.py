"""The step through DeepSpeed's engine: ZeRO shares out optimizer state, gradients, weights."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import deepspeed
import torch
from deepspeed import utils
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional

from optim.controls import Controls
from optim.torch.clip import clip_by_global_norm
from optim.torch.optimizer import RuleOptimizer
from tasks.train.deepspeed_config import deepspeed_config
from tasks.train.engine import EngineState
from tasks.train.spec import TrainSpec
from tasks.train.torch_state import Applied, named_weights, on_host, told, whole, write


class DeepSpeedUpdater:
    """DeepSpeed reduces gradients, clips, calls our rule on its shares and gathers the weights.

    ZeRO hands the rule flattened parameters, one vector for each group and worker. Rules that look
    at shapes never meet them (`tasks.train.sharing`), and each treatment has a group of its own.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: RuleOptimizer,
        slots: Mapping[str, Mapping[str, Any]],
        train_spec: TrainSpec,
        *,
        stage: Literal[0, 1, 2, 3],
    ) -> None:
        """Hand the module whose `model` is trained to DeepSpeed."""
        self._named = named_weights(objective)
        self._optimizer, self._slots = optimizer, slots
        self._parts, self._done = train_spec.accumulation, 0
        self._stage = stage
        shapes = [tuple(weight.shape) for weight in self._named.values()]
        config = deepspeed_config(shapes, train_spec, stage=stage)
        # ZeRO 3 reads what DeepSpeed's own launcher would set.
        self._named_rank = "LOCAL_RANK" not in os.environ
        os.environ.setdefault("LOCAL_RANK", "0")
        # Half a minute of compiling for a kernel that only inference calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        with _quiet():
            self._engine, *_ = deepspeed.initialize(
                model=objective, optimizer=optimizer, config=config
            )
        if stage == 0 and train_spec.workers == 1:
            # It would copy every gradient into a bucket and back, for nobody.
            self._engine.enable_backward_allreduce = False
        self.objective: nn.Module = self._engine
        self._create_slots()

    def accumulate(self, objective: Tensor) -> None:
        """Backward; see `Updater`."""
        if self._done:
            # Inside a step, DeepSpeed only counts: it updates after the last micro-batch.
            self._engine.step()
        self._done += 1
        # DeepSpeed takes the mean over micro-batches; ours add up.
        self._engine.backward(objective * self._parts)

    def apply(
        self, controls: Controls, *, loss_scale: float, curvature: Mapping[nn.Parameter, Tensor]
    ) -> Applied:
        """Clip and update; see `Updater`."""
        self._done = 0
        told(self._optimizer, controls, curvature)
        if self._stage == 0:
            return self._apply_unshared(controls, loss_scale)
        zero = self._engine.optimizer
        zero.clip_grad = controls.clip if math.isfinite(controls.clip) else 0.0
        self._optimizer.held_back = lambda: float(zero._global_grad_norm) > controls.skip
        # Only for the division: its backward pass must not multiply once more.
        zero.custom_loss_scaler, zero.external_loss_scale = loss_scale != 1.0, loss_scale
        self._engine.step()
        zero.custom_loss_scaler = False
        # Where the norm is not finite ZeRO leaves weights and slots alone, and says inf or -1.
        norm = float(self._engine.get_global_grad_norm())
        norm = norm if norm >= 0 else float("inf")
        return Applied(norm, math.isfinite(norm) and norm <= controls.skip)

    def named(self) -> dict[str, nn.Parameter]:
        """The model's parameters, whole at stage 0."""
        return self._named

    @torch.no_grad()
    def move(self, name: str, step: Tensor) -> None:
        """Add to a weight that no gradient moves."""
        weight = self._named[name]
        if self._stage < 3:
            weight.add_(step.to(weight.dtype))
            return
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            weight.add_(step.to(weight.dtype))

    def alike(self) -> dict[str, Tensor]:
        """Weights and slots at stage 0, weights at 1 and 2, nothing at 3.

        From stage 1 on every step makes the weights anew from their owners' shares, so that a
        corrupted copy lasts for one step.
        """
        if self._stage == 0:
            return whole(self._named, self._optimizer, self._slots)
        return dict(self._named) if self._stage < 3 else {}

    def show(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Let the model compute with other weights; ZeRO's own copies stay."""
        for name, weight in self._named.items():
            self._show(weight, torch.tensor(weights[name], dtype=torch.float32))

    def state(self) -> EngineState:
        """Gather weights and slots."""
        weights = {name: on_host(self._weight(weight)) for name, weight in self._named.items()}
        slots = {
            slot: {name: on_host(self._slot(self._named[name], slot)) for name in shapes}
            for slot, shapes in self._slots.items()
        }
        return EngineState(weights, slots)

    def load(self, state: EngineState) -> None:
        """Replace weights and slots, and the copies of the weights that the model computes with."""
        for name, weight in self._named.items():
            self._set_weight(weight, torch.tensor(state.weights[name], dtype=torch.float32))
        for slot, arrays in state.slots.items():
            for name, values in arrays.items():
                tensor = torch.tensor(values, dtype=torch.float32)
                self._set_slot(self._named[name], slot, tensor)

    def close(self, *, leave: bool) -> None:
        """Take DeepSpeed's hooks off the model; `leave` ends the process group as well."""
        self._engine.destroy()
        if self._named_rank:
            os.environ.pop("LOCAL_RANK", None)
        if leave:
            # DeepSpeed holds clones of the group, which must go with it.
            deepspeed.comm.destroy_process_group()

    def _apply_unshared(self, controls: Controls, loss_scale: float) -> Applied:
        gradients = [each.grad for each in self._named.values() if each.grad is not None]
        if loss_scale != 1.0:
            torch._foreach_div_(gradients, loss_scale)
        norm = float(clip_by_global_norm(gradients, controls.clip))
        taken = math.isfinite(norm) and norm <= controls.skip
        self._optimizer.held_back = lambda: not taken
        self._engine.step()
        return Applied(norm, taken)

    def _create_slots(self) -> None:
        """Make the slots before the first step, so that a state can be loaded at once."""
        zero = self._engine.optimizer
        if self._stage == 3:
            for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
                group = zero.sub_group_to_group_id[number]
                self._optimizer.create_slots_of(flat, group=group)
            return
        self._optimizer.create_slots()
        if self._stage > 0:
            # ZeRO links slots to parameters in its first step, the second group's too early.
            zero._lazy_init_hp_params_optimizer_state()

    def _weight(self, weight: Tensor) -> Tensor:
        if self._stage < 3:
            return weight
        if not weight.requires_grad:
            with deepspeed.zero.GatheredParameters([weight]):
                return weight.detach().clone()
        whole: Tensor = utils.safe_get_full_fp32_param(weight)
        return whole

    def _set_weight(self, weight: Tensor, values: Tensor) -> None:
        if self._stage == 3 and weight.requires_grad:
            utils.safe_set_local_fp32_param(weight, _share(weight, values))
        self._show(weight, values)
        if self._stage in (1, 2) and weight.requires_grad:
            utils.safe_set_full_fp32_param(weight, values)

    def _show(self, weight: Tensor, values: Tensor) -> None:
        """Set what the model computes with."""
        if self._stage < 3:
            write(weight, values)
            return
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            if distributed.get_rank() == 0:
                write(weight, values)

    def _slot(self, weight: Tensor, slot: str) -> Tensor:
        if self._stage == 0:
            held: Tensor = self._optimizer.state[weight][slot]
            return held
        whole: Tensor = utils.safe_get_full_optimizer_state(weight, slot)
        return whole

    def _set_slot(self, weight: Tensor, slot: str, values: Tensor) -> None:
        if self._stage == 0:
            write(self._optimizer.state[weight][slot], values)
        elif self._stage == 3:
            utils.safe_set_local_optimizer_state(weight, _share(weight, values), slot)
        else:
            utils.safe_set_full_optimizer_state(weight, values, slot)


def _share(weight: Tensor, values: Tensor) -> Tensor:
    """This worker's share of a weight under ZeRO 3: equal parts, the last padded with zeros.

    DeepSpeed's own `safe_set_full_*` forget the padding and fail on sizes that do not divide.
    """
    size = weight.ds_tensor.numel()  # type: ignore[attr-defined]
    whole = functional.pad(
        values.flatten(), (0, size * distributed.get_world_size() - values.numel())
    )
    return whole.narrow(0, size * distributed.get_rank(), size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Initialise without a warning for a rule that is not DeepSpeed's: tests hold it to ours."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
