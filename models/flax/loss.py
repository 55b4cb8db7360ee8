"""Losses in nats, and what training minimises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from models.flax.experts import Routing
from models.flax.layout import Layout
from models.inputs import IGNORED
from models.spec import ModelSpec


class Tally(NamedTuple):
    """Sums over a batch: they add up over micro-batches and workers; divide once, at the end.

    Attributes:
        objective: what is minimised, summed over scored targets, ().
        nats: ``-log p(target)``, summed over scored targets, (); of mixed samples both targets',
            by their shares.
        count: number of scored targets, ().
        chosen: choices that fell on each expert, (E,), for each layer with experts.
        taken: choices that each expert took, (E,), for each layer with experts.
    """

    objective: Array
    nats: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    chosen: tuple[Array, ...]
    taken: tuple[Array, ...]


class Mix(NamedTuple):
    """Second targets of a batch whose samples are two in one (CutMix, MixUp).

    Attributes:
        others: like the targets; what is `IGNORED` there costs nothing.
        shares: of the first target in the cost, 0..1, (B,).
    """

    others: Array
    shares: Array


class Statistics(NamedTuple):
    """What every loss is made of, in the shape of the targets; 0 where a target is not scored.

    Attributes:
        normaliser: ``logsumexp(logits)``.
        target: logit of the target.
        mean: mean of the logits; None where nobody asked.
    """

    normaliser: Array
    target: Array
    mean: Array | None


def losses(logits: Array, targets: Array) -> Array:
    """``-log softmax(logits)[target]`` of each target, 0 where it is not scored.

    Args:
        logits: (B, T, V) or (B, classes).
        targets: (B, T) or (B,), integers in range or `IGNORED`.

    Returns:
        Nats, in the shape of the targets.
    """
    found = statistics(logits, targets, mean=False)
    return found.normaliser - found.target


def tally(
    spec: ModelSpec,
    logits: Array,
    targets: Array,
    *,
    layout: Layout,
    ahead: Sequence[Array],
    routings: Sequence[Routing],
    mix: Mix | None = None,
) -> Tally:
    """What training minimises, as sums over a batch.

    Each scored target costs ``-sum_v q_v log p_v + z logsumexp(logits)^2`` with q the smoothed
    target (Szegedy et al. 2016, arXiv:1512.00567, section 7) and z the weight of the z-loss
    (Chowdhery et al. 2022, arXiv:2204.02311, section 5). Multi-token prediction k (1..) of a
    position costs `weight` times the same against the target k places on, where that is scored
    and stands in the same document (Gloeckle et al. 2024, arXiv:2404.19737). The routers' loss of
    a sequence counts once for each of its scored targets.

    Args:
        logits: (B, T, V) or (B, classes).
        targets: (B, T) or (B,), integers in range or `IGNORED`.
        layout: a target inside its row's prompt is seen, so it is not scored.
        ahead: logits of multi-token prediction, each (B, T, V).
        routings: of the layers with experts, in order.
        mix: second targets: the cost and the nats of a target are ``share * its own
            + (1 - share) * the other's``. Where the first is not scored, neither is.
    """
    targets = scored(targets, layout)
    if mix is not None:
        mix = mix._replace(others=jnp.where(targets != IGNORED, mix.others, IGNORED))
    costs, nats = _judged(spec, logits, targets, mix)
    objective = costs.sum()
    for places, later in enumerate(ahead, start=1):
        assert spec.head.kind == "language" and spec.head.ahead is not None
        shifted = _shifted(targets, layout, places=places)
        others = None
        if mix is not None:
            others = mix._replace(others=_shifted(mix.others, layout, places=places))
        costs, _ = _judged(spec, later, shifted, others)
        objective = objective + spec.head.ahead.weight * costs.sum()
    counts = (targets != IGNORED).reshape(len(targets), -1).sum(axis=1)
    for routing in routings:
        objective = objective + (routing.loss * counts).sum()
    return Tally(
        objective=objective,
        nats=jax.lax.stop_gradient(nats).sum(),
        count=counts.sum(),
        chosen=tuple(routing.chosen for routing in routings),
        taken=tuple(routing.taken for routing in routings),
    )


def _judged(spec: ModelSpec, logits: Array, targets: Array, mix: Mix | None) -> tuple[Array, Array]:
    """The cost and the nats of each target, both in the shape of the targets."""
    smoothed = spec.head.label_smoothing > 0
    found = statistics(logits, targets, mean=smoothed)
    costs, nats = _costs(spec, found), found.normaliser - found.target
    if mix is None:
        return costs, nats
    other = statistics(logits, mix.others, mean=smoothed)
    share = mix.shares.reshape(-1, *[1] * (targets.ndim - 1)).astype(costs.dtype)
    return (
        share * costs + (1.0 - share) * _costs(spec, other),
        share * nats + (1.0 - share) * (other.normaliser - other.target),
    )


def statistics(logits: Array, targets: Array, *, mean: bool) -> Statistics:
    """Read the logits once, and once more in the backward pass."""
    scored = targets != IGNORED
    parts = _statistics(logits, jnp.where(scored, targets, 0))
    normaliser, target, average = (jnp.where(scored, part, 0.0) for part in parts)
    return Statistics(normaliser, target, average if mean else None)


@jax.custom_vjp
def _statistics(logits: Array, targets: Array) -> tuple[Array, Array, Array]:
    """`Statistics`, with the one gradient that all three make."""
    largest = logits.max(axis=-1)
    total = jnp.exp(logits - largest[..., None]).sum(axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return largest + jnp.log(total), target, logits.mean(axis=-1)


Kept = tuple[Array, Array, Array]


def _forward(logits: Array, targets: Array) -> tuple[tuple[Array, Array, Array], Kept]:
    parts = _statistics(logits, targets)
    return parts, (logits, targets, parts[0])


def _backward(kept: Kept, gradients: tuple[Array, Array, Array]) -> tuple[Array, None]:
    """``softmax`` for the normaliser, one hot for the target, 1 / V for the mean."""
    logits, targets, normaliser = kept
    to_normaliser, to_target, to_mean = (part[..., None] for part in gradients)
    gradient = jnp.exp(logits - normaliser[..., None]) * to_normaliser
    gradient = gradient + to_mean / logits.shape[-1]
    # A comparison fuses with its neighbours; a scatter does not.
    one_hot = jnp.arange(logits.shape[-1]) == targets[..., None]
    return jnp.where(one_hot, gradient + to_target, gradient), None


_statistics.defvjp(_forward, _backward)


def _costs(spec: ModelSpec, found: Statistics) -> Array:
    """What each target costs, in the shape of the targets."""
    head, expected = spec.head, found.target
    if found.mean is not None:
        smoothing = head.label_smoothing
        expected = (1.0 - smoothing) * found.target + smoothing * found.mean
    costs = found.normaliser - expected
    if head.kind == "language" and head.z_loss:
        costs = costs + head.z_loss * jnp.square(found.normaliser)
    return costs


def scored(targets: Array, layout: Layout) -> Array:
    """Targets without those that a prompt shows: target t is token t + 1."""
    if layout.prompt is None:
        return targets
    token = jnp.arange(1, targets.shape[1] + 1)
    return jnp.where(token < layout.prompt[:, None], IGNORED, targets)


def _shifted(targets: Array, layout: Layout, *, places: int) -> Array:
    """The target `places` further on, `IGNORED` behind the row or in another document."""
    later, document = targets[:, places:], layout.document
    if document is not None:
        same = document[:, : later.shape[1]] == document[:, places:]
        later = jnp.where(same, later, IGNORED)
    behind = targets.shape[1] - later.shape[1]
    return jnp.pad(later, ((0, 0), (0, behind)), constant_values=IGNORED)
