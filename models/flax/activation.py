"""Activations by the names of the spec."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from models.spec import Activation


def activation(name: Activation, x: Array) -> Array:
    """Apply an activation to each value, in the type of x; it is computed in float32 at least.

    Source: silu: Elfwing et al. 2017, arXiv:1702.03118; gelu, its tanh and sigmoid ("quick") forms:
    Hendrycks & Gimpel 2016, arXiv:1606.08415; relu2: So et al. 2021, arXiv:2109.08668.
    """
    # In bfloat16 XLA would round after each of the operations that one is made of.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _wide(name, wide).astype(x.dtype)


def _wide(name: Activation, x: Array) -> Array:
    match name:
        case "silu":
            return jax.nn.silu(x)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "relu":
            return jax.nn.relu(x)
        case "relu2":
            return jnp.square(jax.nn.relu(x))
        case "tanh":
            return jnp.tanh(x)
        case "sigmoid":
            return jax.nn.sigmoid(x)
