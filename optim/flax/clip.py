"""Clip gradients by their global norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim.reference import CLIP_EPSILON


class Clipped(NamedTuple):
    """Gradients after clipping, and their global norm before it."""

    gradients: Any
    norm: jax.Array


def clip_by_global_norm(gradients: Any, limit: ArrayLike) -> Clipped:
    """Scale a tree of gradients by `min(1, limit / (norm + 1e-6))`, as the reference does.

    `optax.clip_by_global_norm` leaves the 1e-6 out.
    """
    norm = optax.tree.norm(gradients)
    scale = jnp.minimum(limit / (norm + CLIP_EPSILON), 1.0)
    return Clipped(jax.tree.map(lambda leaf: leaf * scale, gradients), norm)
