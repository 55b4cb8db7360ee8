"""Clip gradients by their global norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim.reference import CLIP_EPSILON


class Clipping(NamedTuple):
    """What scales gradients to the limit, and their global norm before it."""

    scale: jax.Array
    norm: jax.Array


def clip_by_global_norm(gradients: Any, limit: ArrayLike) -> Clipping:
    """`min(1, limit / (norm + 1e-6))`, as the reference has it; nothing is scaled yet.

    `optax.clip_by_global_norm` leaves the 1e-6 out.
    """
    norm = optax.tree.norm(gradients)
    return Clipping(jnp.minimum(limit / (norm + CLIP_EPSILON), 1.0), norm)
