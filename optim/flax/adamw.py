"""AdamW: Adam with decoupled weight decay; equations in `optim.reference.adamw`."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from optim.flax.cautious import cautious
from optim.flax.now import Now, Slots, Updated
from optim.rules import AdamW


def update(spec: AdamW, weight: Array, gradient: Array, *, slots: Slots, now: Now) -> Updated:
    """One step."""
    if not spec.decoupled:
        gradient = gradient + now.decay * weight
    first = spec.beta1 * slots["first_moment"] + (1 - spec.beta1) * gradient  # (1)
    second = spec.beta2 * slots["second_moment"] + (1 - spec.beta2) * gradient**2  # (2)
    seen = now.seen if spec.bias_correction else (1.0, 1.0)
    direction = first / seen[0] / (jnp.sqrt(second / seen[1]) + spec.epsilon)  # (3)
    if spec.cautious:
        direction = cautious(direction, gradient)
    if spec.decoupled:
        direction = direction + now.decay * weight
    moments = {"first_moment": first, "second_moment": second}
    return Updated(weight - now.rate * direction, moments)  # (4)
