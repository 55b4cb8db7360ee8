"""One mixture of experts by itself, through the reference and both twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from numpy.typing import NDArray

import models.flax.feed_forward
import models.flax.random
import models.torch.feed_forward
import models.torch.random
from models.reference.experts import Mixed
from models.reference.feed_forward import feed_forward
from models.reference.random import Draw
from models.spec import POLICIES, ModelSpec, Precision
from models.weights import initial_weights, weight_table

Array = NDArray[Any]
Backend = Literal["reference", "flax", "torch"]
Twin = Literal["flax", "torch"]
BACKENDS: tuple[Backend, ...] = ("reference", "flax", "torch")
TWINS: tuple[Twin, ...] = ("flax", "torch")


@dataclass(frozen=True)
class Case:
    """The feed-forward part of one layer, and what it reads.

    Attributes:
        layer: whose part it is.
        weights: of the part, by their names in the table.
        x: (B, T, D).
        draw: keys what training drops.
        lengths: positions that count, (B,).
    """

    spec: ModelSpec
    layer: int
    weights: dict[str, Array]
    x: Array
    draw: Draw | None = None
    lengths: NDArray[np.int64] | None = None

    @property
    def name(self) -> str:
        """Of the part in the weight table."""
        return f"layers.{self.layer}.feed_forward"


@dataclass(frozen=True)
class Result:
    """What a part gives, and the gradient of ``sum(towards * y) + sum(loss)``.

    Attributes:
        gradients: by names of weights, and of the inputs as ``x``; the reference has none.
    """

    y: Array
    loss: Array
    chosen: Array
    taken: Array
    gradients: dict[str, Array]


def case_of(spec: ModelSpec, *, training: bool = True, length: int = 7) -> Case:
    """A batch of three for the last layer, with weights of which none is zero."""
    generator = np.random.default_rng(5)
    layer = spec.layers - 1
    weights = {
        name: first + 0.3 * generator.standard_normal(first.shape)
        for name, first in initial_weights(spec, seed=0).items()
        if name.startswith(f"layers.{layer}.feed_forward.")
    }
    x = generator.standard_normal((3, length, spec.width))
    draw = Draw(seed=3, step=2**31 + 5, samples=np.array([0, 7, 2**32 - 1]))
    return Case(spec, layer, weights, x, draw if training else None)


def run(case: Case, backend: Backend, precision: Precision = "float64") -> Result:
    """Forward, and backward through a twin."""
    if backend == "torch":
        return _torch(case, precision)
    if backend == "flax":
        with jax.enable_x64(precision == "float64"):
            return _flax(case, precision)
    y, routing = by_the_papers(case, case.weights, case.x)
    assert routing is not None
    return Result(y, routing.loss, routing.chosen, routing.taken, {})


def by_the_papers(case: Case, weights: dict[str, Array], x: Array) -> Mixed:
    """The reference, for weights and inputs that may be complex."""
    return feed_forward(
        case.spec, weights, case.name, x, case.draw, layer=case.layer, lengths=case.lengths
    )


def towards(case: Case) -> Array:
    """What the output is multiplied by, so that every value of it counts."""
    return np.random.default_rng(6).standard_normal(case.x.shape)


def _torch(case: Case, precision: Precision) -> Result:
    twin, policy = models.torch, POLICIES[precision]
    table, compute = weight_table(case.spec), getattr(torch, policy.compute)
    part = twin.feed_forward.feed_forward(case.spec, table, case.name, policy, layer=case.layer)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            parameter.copy_(torch.tensor(case.weights[f"{case.name}.{name}"]))
    x = torch.tensor(case.x, dtype=compute, requires_grad=True)
    draw = twin.random.Draw.of(**vars(case.draw)) if case.draw else None
    lengths = {} if case.lengths is None else {"lengths": torch.tensor(case.lengths)}
    y, routing = part(x, draw, layer=case.layer, **lengths)
    objective = (y * torch.tensor(towards(case), dtype=compute)).sum() + routing.loss.sum()
    torch.autograd.backward(objective)
    gradients = {"x": x.grad.numpy()} if x.grad is not None else {}
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            gradients[f"{case.name}.{name}"] = parameter.grad.numpy()
    counts = routing.chosen.numpy(), routing.taken.numpy()
    return Result(y.detach().numpy(), routing.loss.detach().numpy(), *counts, gradients)


def _flax(case: Case, precision: Precision) -> Result:
    twin, policy = models.flax, POLICIES[precision]
    table = weight_table(case.spec)
    part = twin.feed_forward.feed_forward(case.spec, table, case.name, policy, layer=case.layer)
    graph, state = nnx.split(part)
    paths = [path for path, _ in nnx.to_flat_state(state)]
    arrays = {
        ".".join(map(str, path)): jnp.asarray(
            case.weights[".".join(map(str, (case.name, *path)))], variable.dtype
        )
        for path, variable in nnx.to_flat_state(state)
    }
    draw = twin.random.Draw.of(**vars(case.draw)) if case.draw else None
    lengths = {} if case.lengths is None else {"lengths": jnp.asarray(case.lengths)}
    goal = jnp.asarray(towards(case), policy.compute)

    def compute(arrays: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, Any]:
        nested: dict[Any, Any] = {}
        for path in paths:
            node = nested
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = arrays[".".join(map(str, path))]
        part = nnx.merge(graph, nested)
        y, routing = part(x, draw, layer=jnp.asarray(case.layer), **lengths)
        assert routing is not None
        return (y * goal).sum() + routing.loss.sum(), (y, routing)

    both = jax.jit(jax.value_and_grad(compute, (0, 1), has_aux=True))
    (_, (y, routing)), (by_weight, by_x) = both(arrays, jnp.asarray(case.x, policy.compute))
    gradients = {f"{case.name}.{name}": np.asarray(array) for name, array in by_weight.items()}
    gradients["x"] = np.asarray(by_x)
    counts = np.asarray(routing.chosen), np.asarray(routing.taken)
    return Result(np.asarray(y), np.asarray(routing.loss), *counts, gradients)
