"""A matrix of the weight table, held as ``(out, in)``."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from models.spec import Policy
from models.weights import Table

# Names of what is worth keeping for the backward pass; see `Model._pass`.
KEPT, PRODUCT = "kept", "product"


class Linear(nnx.Module):
    """``x W^T + b``; shape and bias are those of the table's rows `name.weight`, `name.bias`."""

    def __init__(self, table: Table, name: str, policy: Policy) -> None:
        self.weight = nnx.Param(jnp.zeros(table[f"{name}.weight"].shape, policy.parameters))
        bias = table.get(f"{name}.bias")
        self.bias = nnx.Param(jnp.zeros(bias.shape, policy.parameters)) if bias else None

    def __call__(self, x: Array) -> Array:
        """Map (..., in) to (..., out), in the type of x."""
        bias = None if self.bias is None else self.bias[...]
        return worth_keeping(linear(x, self.weight[...], bias), PRODUCT)


def worth_keeping(x: Array, name: str = KEPT) -> Array:
    """Name an array that the backward pass keeps where it computes the rest again."""
    named: Array = checkpoint_name(x, name)  # type: ignore[no-untyped-call]
    return named


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x W^T + b`` in the type of x; sums are at least float32."""
    wide = str(jnp.promote_types(x.dtype, jnp.float32))
    y = project(x, weight, wide)
    y = y if bias is None else y + bias.astype(wide)
    return y.astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, weight: Array, reduce: str) -> Array:
    """``x W^T``, from the type of x to `reduce`.

    Its gradients multiply numbers of the type of x too: JAX by itself would widen both sides,
    which costs a fifth of the head's time in bfloat16.
    """
    alone = x.dtype == jnp.bfloat16 and x.size == x.shape[-1]
    # XLA's CPU (JAX 0.10) multiplies a single row of bfloat16 in float32, for which it widens the
    # matrix first: ten times slower than two rows.
    rows = jnp.concatenate([x, x]) if alone else x
    y = jnp.einsum("...i,oi->...o", rows, weight.astype(x.dtype), preferred_element_type=reduce)
    return y[: len(x)] if alone else y


def _project_forward(x: Array, weight: Array, reduce: str) -> tuple[Array, tuple[Array, Array]]:
    return project(x, weight, reduce), (x, weight)


def _project_backward(
    reduce: str, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, weight = kept
    gradient = gradient.astype(x.dtype)
    to_x = jnp.einsum(
        "...o,oi->...i", gradient, weight.astype(x.dtype), preferred_element_type=reduce
    )
    to_weight = outer(gradient, x, reduce)
    return to_x.astype(x.dtype), to_weight.astype(weight.dtype)


project.defvjp(_project_forward, _project_backward)


def outer(left: Array, right: Array, reduce: DTypeLike) -> Array:
    """``sum_r left_r right_r^T`` of (..., out) and (..., in), (out, in) in the type `reduce`."""
    # XLA's CPU would widen a bfloat16 matrix that it has to turn; with two axes to sum over it
    # turns it first. In float32 turning costs more than it saves.
    rows, equation = ((-1,), "ro,ri->oi") if left.dtype == reduce else ((1, -1), "bro,bri->oi")
    left, right = (each.reshape(*rows, each.shape[-1]) for each in (left, right))
    return jnp.einsum(equation, left, right, preferred_element_type=reduce)
