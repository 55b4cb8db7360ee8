"""Estimates of the Hessian's diagonal for Sophia; definitions in `optim.reference.curvature`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.random import Site
from models.torch.random import Draw, stream_keys, words
from optim.reference.normals import stream_of
from optim.rules import SophiaG, SophiaH
from optim.torch.normals import normals, unsigned

Tree = dict[str, Tensor]
Weights = Mapping[str, Tensor]


class Sampled(NamedTuple):
    """Sums over a batch: they add up over workers and micro-batches.

    Attributes:
        gradients: of the summed loss at labels that the model drew.
        drawn: number of labels.
    """

    gradients: Tree
    drawn: Tensor


def estimate(
    rule: SophiaG | SophiaH,
    weights: Weights,
    *,
    loss: Callable[[], Tensor],
    logits: Callable[[], Tensor],
    scored: Tensor,
    draw: Draw,
) -> Tree:
    """The estimate that a rule asks for, of one batch.

    Args:
        weights: the trained parameters of the model that `loss` and `logits` run.
        loss: the mean loss that training minimises, ().
        logits: logits, (B, ..., V).
        scored: which positions count, (B, ...).
        draw: seed, step and samples; dropout is the caller's.
    """
    match rule:
        case SophiaG():
            return gauss_newton_bartlett(sampled_gradients(logits, weights, scored, draw=draw))
        case SophiaH():
            along = probes(rule, weights, draw=draw)
            bent = hessian_vector(loss, weights, along)
            return {name: along[name] * bent[name] for name in weights}


def gauss_newton_bartlett(sampled: Sampled) -> Tree:
    """B g g of the mean's gradient g, from sums."""
    count = sampled.drawn.clip(min=1)
    return {name: gradient**2 / count for name, gradient in sampled.gradients.items()}


def sampled_gradients(
    logits: Callable[[], Tensor], weights: Weights, scored: Tensor, *, draw: Draw
) -> Sampled:
    """Gradients of the loss at labels that the model itself draws."""

    def summed() -> Tensor:
        found = logits()
        label = labels(found.detach(), draw=draw)
        chance = torch.take_along_dim(found.log_softmax(-1), label[..., None], -1)[..., 0]
        return -torch.where(scored, chance, 0.0).sum()

    return Sampled(_gradients(summed(), weights), scored.sum())


def labels(logits: Tensor, *, draw: Draw) -> Tensor:
    """Draw a label from the softmax of each position's logits, (B, ..., V) -> (B, ...)."""
    positions = logits.shape[1:-1]
    keys = stream_keys(draw, layer=0, site=Site.CURVATURE_LABEL, device=logits.device)
    drawn = unsigned(words(keys, math.prod(positions))).reshape(-1, *positions).to(logits.dtype)
    summed = torch.cumsum(torch.exp(logits - logits.amax(-1, keepdim=True)), -1)
    point = (drawn + 0.5) / 2**32 * summed[..., -1]
    return (summed[..., :-1] <= point[..., None]).sum(-1)


def hessian_vector(loss: Callable[[], Tensor], weights: Weights, along: Tree) -> Tree:
    """The Hessian's product with a direction, backward over backward.

    Fused attention kernels have no second derivative; for this pass attention is computed in steps.
    """
    with sdpa_kernel(SDPBackend.MATH):
        gradients = _gradients(loss(), weights, again=True)
        product = torch.stack([(gradients[name] * along[name]).sum() for name in weights]).sum()
        return _gradients(product, weights)


def probes(rule: SophiaH, weights: Weights, *, draw: Draw) -> Tree:
    """A random direction, weight by weight."""
    return {name: _probe(rule, name, weight, draw=draw) for name, weight in weights.items()}


def _probe(rule: SophiaH, name: str, weight: Tensor, *, draw: Draw) -> Tensor:
    own = Draw(draw.seed, draw.step, np.array([stream_of(name)]))
    keys = stream_keys(own, layer=0, site=Site.CURVATURE_PROBE, device=weight.device)
    if rule.probe == "rademacher":
        sign = torch.where(words(keys, weight.numel())[0] < 0, 1.0, -1.0)
        return sign.reshape(weight.shape).to(weight.dtype)
    return normals(keys, weight)


def _gradients(value: Tensor, weights: Weights, *, again: bool = False) -> Tree:
    """Gradients by name; zeros where the value does not depend on a weight."""
    if not value.requires_grad:
        return {name: torch.zeros_like(weight) for name, weight in weights.items()}
    found = torch.autograd.grad(
        value, list(weights.values()), create_graph=again, allow_unused=True, materialize_grads=True
    )
    return dict(zip(weights, found, strict=True))
