"""Clipping by the global norm, as the paper writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from optim.reference.now import Array

# Keeps the division below finite; torch and DeepSpeed add the same, optax adds nothing.
CLIP_EPSILON = 1e-6


class Clipped(NamedTuple):
    """Gradients after clipping, and their global norm before it."""

    gradients: dict[str, Array]
    norm: float


def clip_by_global_norm(gradients: Mapping[str, Array], limit: float) -> Clipped:
    """Scale all gradients by `min(1, limit / (norm + 1e-6))`.

    Source: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1, with the norm taken over all
    weights together and the 1e-6 of `torch.nn.utils.clip_grad_norm_`.
    """
    norm = float(np.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients.values())))
    scale = min(1.0, limit / (norm + CLIP_EPSILON))
    return Clipped({name: gradient * scale for name, gradient in gradients.items()}, norm)
