"""What happens to the gradient of one weight before its rule; order in `optim.gradient`."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from models.flax.random import Draw, stream_keys
from models.random import Site
from models.weights import Weight
from optim.flax.normals import normals
from optim.gradient import ClipUnits, GradientSpec, Noise
from optim.parts import has_rows, unit_axes
from optim.reference.clip import CLIP_EPSILON
from optim.reference.normals import stream_of


def shaped(
    spec: GradientSpec, weight: Array, gradient: Array, *, row: Weight, step: ArrayLike
) -> Array:
    """The gradient that the rule sees."""
    if spec.clip_value is not None:
        gradient = gradient.clip(-spec.clip_value, spec.clip_value)
    if spec.centralize and has_rows(row):
        gradient = gradient - gradient.mean(axis=unit_axes(row), keepdims=True)
    if spec.clip_units is not None and row.role != "head":
        gradient = clip_units(spec.clip_units, weight, gradient, row=row)
    if spec.clip_weight_norm is not None:
        norm = jnp.sqrt(jnp.sum(gradient**2))
        gradient = gradient * jnp.minimum(spec.clip_weight_norm / (norm + CLIP_EPSILON), 1.0)
    if spec.noise is not None:
        gradient = gradient + noise(spec.noise, weight, row=row, step=step)
    return gradient


def clip_units(spec: ClipUnits, weight: Array, gradient: Array, *, row: Weight) -> Array:
    """Adaptive clipping."""
    axes = unit_axes(row)
    size = jnp.sqrt(jnp.sum(weight**2, axis=axes, keepdims=True)).clip(spec.epsilon)
    norm = jnp.sqrt(jnp.sum(gradient**2, axis=axes, keepdims=True))
    limit = spec.ratio * size
    return jnp.where(norm > limit, gradient * (limit / norm.clip(CLIP_EPSILON)), gradient)


def noise(spec: Noise, weight: Array, *, row: Weight, step: ArrayLike) -> Array:
    """Numbers that depend on the seed, the step and the weight's name alone."""
    count = jnp.asarray(step)
    stream = jnp.array([stream_of(row.name)], jnp.uint32)
    draw = Draw(spec.seed, count.astype(jnp.uint32), stream)
    keys = stream_keys(draw, layer=0, site=Site.GRADIENT_NOISE)
    deviation = jnp.sqrt(spec.variance / (1 + count.astype(weight.dtype)) ** spec.decay)
    return deviation * normals(keys, weight)
