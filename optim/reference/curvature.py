"""Estimates of the Hessian's diagonal, by definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models import random
from models.random import Site
from optim.reference.normals import normals, stream_of
from optim.reference.now import Array


def gauss_newton_bartlett(gradient: Array, *, count: int) -> Array:
    """Curvature from the gradient of the mean loss at labels that the model itself drew.

    Source: Liu et al. 2023, arXiv:2305.14342, algorithm 2: B g g, where B counts the labels.
    """
    return count * gradient * gradient


def hutchinson(hessian_vector: Callable[[Array], Array], probe: Array) -> Array:
    """Curvature from the Hessian's product with a random direction.

    Source: the same, algorithm 1: u (H u).
    """
    return probe * hessian_vector(probe)


def labels(logits: Array, *, seed: int, step: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw a label from the softmax of each position's logits, (B, ..., V) -> (B, ...).

    A label is the number of cumulative chances that lie below a uniform number: one word a
    position, of a stream for each sample.
    """
    keys = random.stream_keys(
        seed=seed, step=step, samples=samples, layer=0, site=Site.CURVATURE_LABEL
    )
    positions = logits.shape[1:-1]
    drawn = random.words(keys, int(np.prod(positions))).reshape(-1, *positions)
    chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
    summed = np.cumsum(chances, axis=-1)
    point = (drawn + 0.5) / 2**32 * summed[..., -1]
    label: NDArray[np.int64] = np.sum(summed[..., :-1] <= point[..., None], axis=-1)
    return label


def probe(
    name: str, shape: tuple[int, ...], *, law: Literal["normal", "rademacher"], seed: int, step: int
) -> Array:
    """The random direction of one weight: signs, or normal numbers."""
    stream = np.array([stream_of(name)])
    keys = random.stream_keys(
        seed=seed, step=step, samples=stream, layer=0, site=Site.CURVATURE_PROBE
    )
    if law == "rademacher":
        drawn = random.words(keys, int(np.prod(shape)))[0]
        return np.where(drawn >= 2**31, 1.0, -1.0).reshape(shape)
    return normals(keys, shape)
