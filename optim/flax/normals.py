"""Normal numbers for the values of one weight; definition in `optim.reference.normals`."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from models.flax.random import words


def normals(keys: tuple[Array, Array], weight: Array) -> Array:
    """Standard normal numbers of one stream, in the shape and type of a weight."""
    half = (weight.size + 1) // 2
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    first, second = words(keys, 2 * half)[0].reshape(2, half).astype(wide)
    radius = jnp.sqrt(-2 * jnp.log((first + 0.5) / 2.0**32))
    angle = 2 * math.pi * second / 2.0**32
    both = jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)])
    return both[: weight.size].reshape(weight.shape).astype(weight.dtype)
