"""A step holds weights, gradients and slots, and nothing of their size beside them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.spec import ConstantCurve
from models.weights import Weight
from optim.average import Ema
from optim.controls import Controls
from optim.flax.optimizer import Optimizer
from optim.rules import AdamW, Adan, AnyRule, Lion, Sgd, SophiaG
from optim.schedules import Schedule
from optim.spec import OptimSpec
from optim.state import first_values
from optim.torch.optimizer import PIECE, RuleOptimizer

RULES: dict[str, AnyRule] = {
    "sgd": Sgd(),
    "adamw": AdamW(),
    "lion": Lion(),
    "adan": Adan(),
    "sophia_g": SophiaG(),
}
SIDE = 512
TABLE = {
    f"layers.{layer}.weight": Weight(
        f"layers.{layer}.weight", (SIDE, SIDE), "matrix", ("hidden", "width")
    )
    for layer in range(3)
}


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("kind", RULES)
def test_a_flax_step_copies_no_array_that_it_was_given(kind: str, averaged: bool) -> None:
    """XLA plans less memory beside its donated arguments than one slot of one weight takes."""
    schedule = Schedule(peak=1e-3, curve=ConstantCurve())
    optim = OptimSpec(rule=RULES[kind], schedule=schedule, average=Ema() if averaged else None)
    optimizer = Optimizer(optim, TABLE)
    weights = {name: np.ones(row.shape, np.float32) for name, row in TABLE.items()}

    def step(weights: Any, slots: Any, gradients: Any, controls: Controls) -> Any:
        return optimizer.step(weights, gradients, slots, controls=controls)

    numbers: Any = (np.uint32(1), *map(np.float32, (1e-3, 1.0, 0.1, 1.0, 10.0)))
    now = Controls(*numbers)
    held = (weights, first_values(optim, TABLE, weights), weights, now)
    planned = jax.jit(step, donate_argnums=(0, 1)).lower(*held).compile().memory_analysis()
    assert planned is not None
    one = weights["layers.0.weight"].nbytes
    assert planned.temp_size_in_bytes < one / 4
    assert planned.alias_size_in_bytes >= (1 + len(held[1])) * len(TABLE) * one


class Longest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The number of values of the longest array that an operation made."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it answers."""
        found = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in _tensors(args)}
        for each in _tensors(found):
            if each.untyped_storage().data_ptr() not in given:
                self.values = max(self.values, each.numel())
        return found


def _tensors(tree: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [each for each in leaves if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize("kind", RULES)
def test_a_torch_step_makes_nothing_longer_than_a_piece(kind: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3 * PIECE + 5))
    weight.grad = torch.ones_like(weight)
    optimizer = RuleOptimizer([{"params": [weight]}], RULES[kind], averages=True)
    optimizer.create_slots()
    optimizer.set_step(0, rate=1e-3, average_share=0.1)
    with Longest() as longest:
        optimizer.step()
    assert not torch.equal(weight, torch.ones_like(weight))
    assert longest.values <= PIECE
