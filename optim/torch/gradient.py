"""What happens to the gradient of one weight before its rule; order in `optim.gradient`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from models.random import Site
from models.torch.random import Draw, stream_keys
from models.weights import Weight
from optim.gradient import ClipUnits, GradientSpec, Noise
from optim.parts import has_rows, unit_axes
from optim.reference.clip import CLIP_EPSILON
from optim.reference.normals import stream_of
from optim.torch.normals import normals


def shaped(
    spec: GradientSpec, weight: Tensor, gradient: Tensor, *, row: Weight | None, step: int
) -> Tensor:
    """The gradient that the rule sees; `row` may be missing where `needs_whole` is None."""
    if spec.clip_value is not None:
        gradient = gradient.clip(-spec.clip_value, spec.clip_value)
    if row is None:
        return gradient
    if spec.centralize and has_rows(row):
        gradient = gradient - gradient.mean(dim=unit_axes(row), keepdim=True)
    if spec.clip_units is not None and row.role != "head":
        gradient = clip_units(spec.clip_units, weight, gradient, row=row)
    if spec.clip_weight_norm is not None:
        norm = torch.sqrt(torch.sum(gradient**2))
        gradient = gradient * (spec.clip_weight_norm / (norm + CLIP_EPSILON)).clip(max=1.0)
    if spec.noise is not None:
        gradient = gradient + noise(spec.noise, weight, row=row, step=step)
    return gradient


def clip_units(spec: ClipUnits, weight: Tensor, gradient: Tensor, *, row: Weight) -> Tensor:
    """Adaptive clipping."""
    axes = unit_axes(row)
    size = torch.sqrt(torch.sum(weight**2, dim=axes, keepdim=True)).clip(spec.epsilon)
    norm = torch.sqrt(torch.sum(gradient**2, dim=axes, keepdim=True))
    limit = spec.ratio * size
    return torch.where(norm > limit, gradient * (limit / norm.clip(CLIP_EPSILON)), gradient)


def noise(spec: Noise, weight: Tensor, *, row: Weight, step: int) -> Tensor:
    """Numbers that depend on the seed, the step and the weight's name alone."""
    draw = Draw(spec.seed, step, np.array([stream_of(row.name)]))
    keys = stream_keys(draw, layer=0, site=Site.GRADIENT_NOISE, device=weight.device)
    deviation = math.sqrt(spec.variance / (1 + step) ** spec.decay)
    return deviation * normals(keys, weight)
