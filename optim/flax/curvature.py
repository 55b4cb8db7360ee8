"""Estimates of the Hessian's diagonal for Sophia; definitions in `optim.reference.curvature`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from models.flax.random import Draw, stream_keys, words
from models.random import Site
from optim.flax.normals import normals
from optim.reference.normals import stream_of
from optim.rules import SophiaG, SophiaH

Tree = dict[str, Array]


class Sampled(NamedTuple):
    """Sums over a batch: they add up over workers and micro-batches.

    Attributes:
        gradients: of the summed loss at labels that the model drew.
        drawn: number of labels.
    """

    gradients: Tree
    drawn: Array


def estimate(
    rule: SophiaG | SophiaH,
    weights: Tree,
    *,
    loss: Callable[[Tree], Array],
    logits: Callable[[Tree], Array],
    scored: Array,
    draw: Draw,
) -> Tree:
    """The estimate that a rule asks for, of one batch.

    Args:
        loss: weights -> the mean loss that training minimises, ().
        logits: weights -> logits, (B, ..., V).
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
    count = jnp.maximum(sampled.drawn, 1)
    return {name: gradient**2 / count for name, gradient in sampled.gradients.items()}


def sampled_gradients(
    logits: Callable[[Tree], Array], weights: Tree, scored: Array, *, draw: Draw
) -> Sampled:
    """Gradients of the loss at labels that the model itself draws."""

    def summed(weights: Tree) -> Array:
        found = logits(weights)
        label = labels(jax.lax.stop_gradient(found), draw=draw)
        chance = jnp.take_along_axis(jax.nn.log_softmax(found), label[..., None], -1)[..., 0]
        return -jnp.where(scored, chance, 0.0).sum()

    return Sampled(jax.grad(summed)(weights), scored.sum())


def labels(logits: Array, *, draw: Draw) -> Array:
    """Draw a label from the softmax of each position's logits, (B, ..., V) -> (B, ...)."""
    positions = logits.shape[1:-1]
    keys = stream_keys(draw, layer=0, site=Site.CURVATURE_LABEL)
    drawn = words(keys, math.prod(positions)).reshape(-1, *positions).astype(logits.dtype)
    summed = jnp.cumsum(jnp.exp(logits - logits.max(-1, keepdims=True)), -1)
    point = (drawn + 0.5) / 2.0**32 * summed[..., -1]
    return (summed[..., :-1] <= point[..., None]).sum(-1)


def hessian_vector(loss: Callable[[Tree], Array], weights: Tree, along: Tree) -> Tree:
    """The Hessian's product with a direction, backward over backward.

    Forward over backward would be cheaper, but the models' own derivatives have no forward mode.
    """

    def slope(weights: Tree) -> Array:
        gradients = jax.grad(loss)(weights)
        return jnp.stack([(gradients[name] * along[name]).sum() for name in weights]).sum()

    bent: Tree = jax.grad(slope)(weights)
    return bent


def probes(rule: SophiaH, weights: Tree, *, draw: Draw) -> Tree:
    """A random direction, weight by weight."""
    return {name: _probe(rule, name, weight, draw=draw) for name, weight in weights.items()}


def _probe(rule: SophiaH, name: str, weight: Array, *, draw: Draw) -> Array:
    own = Draw(draw.seed, draw.step, jnp.array([stream_of(name)], jnp.uint32))
    keys = stream_keys(own, layer=0, site=Site.CURVATURE_PROBE)
    if rule.probe == "rademacher":
        sign = jnp.where(words(keys, weight.size)[0] >= 2**31, 1.0, -1.0)
        return sign.reshape(weight.shape).astype(weight.dtype)
    return normals(keys, weight)
