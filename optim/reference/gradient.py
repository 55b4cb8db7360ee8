"""What happens to the gradient of one weight before its rule; order in `optim.gradient`."""

from __future__ import annotations

import numpy as np

from models import random
from models.random import Site
from models.weights import Weight
from optim.gradient import ClipUnits, GradientSpec, Noise
from optim.parts import has_rows, unit_axes
from optim.reference.clip import CLIP_EPSILON
from optim.reference.normals import normals, stream_of
from optim.reference.now import Array


def shaped(spec: GradientSpec, weight: Array, gradient: Array, *, row: Weight, step: int) -> Array:
    """The gradient that the rule sees.

    Args:
        row: the weight's line in the weight table.
        step: from 0.
    """
    if spec.clip_value is not None:
        gradient = np.clip(gradient, -spec.clip_value, spec.clip_value)
    if spec.centralize and has_rows(row):
        gradient = gradient - gradient.mean(axis=unit_axes(row), keepdims=True)
    if spec.clip_units is not None and row.role != "head":
        gradient = clip_units(spec.clip_units, weight, gradient, row=row)
    if spec.clip_weight_norm is not None:
        norm = np.sqrt(np.sum(gradient**2))
        gradient = gradient * min(1.0, spec.clip_weight_norm / (norm + CLIP_EPSILON))
    if spec.noise is not None:
        gradient = gradient + noise(spec.noise, row, step=step)
    return gradient


def clip_units(spec: ClipUnits, weight: Array, gradient: Array, *, row: Weight) -> Array:
    """Adaptive clipping.

    Source: Brock et al. 2021, arXiv:2102.06171, eq. 3, with the norms of eq. 2: where
    ||G_i|| / ||W_i||* > ratio, G_i becomes ratio ||W_i||* / ||G_i|| G_i; ||W_i||* is at least
    epsilon. Gradients below 1e-6 are divided by that.
    """
    axes = unit_axes(row)
    size = np.maximum(np.sqrt(np.sum(weight**2, axis=axes, keepdims=True)), spec.epsilon)
    norm: Array = np.sqrt(np.sum(gradient**2, axis=axes, keepdims=True))
    limit = spec.ratio * size
    return np.where(norm > limit, gradient * (limit / np.maximum(norm, CLIP_EPSILON)), gradient)


def noise(spec: Noise, row: Weight, *, step: int) -> Array:
    """Numbers that depend on the seed, the step and the weight's name alone."""
    stream = np.array([stream_of(row.name)])
    keys = random.stream_keys(
        seed=spec.seed, step=step, samples=stream, layer=0, site=Site.GRADIENT_NOISE
    )
    deviation = float(np.sqrt(spec.variance / (1 + step) ** spec.decay))
    return deviation * normals(keys, row.shape)
