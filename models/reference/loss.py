"""Losses in nats, and what training minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from models.inputs import IGNORED
from models.reference.experts import Routing
from models.reference.layout import Layout
from models.reference.random import Array
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


def losses(logits: Array, targets: Array) -> Array:
    """``-log softmax(logits)[target]`` of each target, 0 where it is not scored.

    Args:
        logits: (B, T, V) or (B, classes).
        targets: (B, T) or (B,), integers in range or `IGNORED`.

    Returns:
        Nats, in the shape of the targets.
    """
    nats: Array = np.zeros(targets.shape, logits.dtype)
    for place in np.argwhere(targets != IGNORED):
        nats[tuple(place)] = -_log_shares(logits[tuple(place)])[targets[tuple(place)]]
    return nats


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
        mix = mix._replace(others=np.where(targets != IGNORED, mix.others, IGNORED))
    objective = _mixed(partial(_costs, spec, logits), targets, mix).sum()
    for places, later in enumerate(ahead, start=1):
        assert spec.head.kind == "language" and spec.head.ahead is not None
        others = None
        if mix is not None:
            others = mix._replace(others=_shifted(mix.others, layout, places=places))
        shifted = _shifted(targets, layout, places=places)
        costs = _mixed(partial(_costs, spec, later), shifted, others)
        objective = objective + spec.head.ahead.weight * costs.sum()
    counts = (targets != IGNORED).reshape(len(targets), -1).sum(axis=1)
    for routing in routings:
        objective = objective + (routing.loss * counts).sum()
    return Tally(
        objective=objective,
        nats=_mixed(partial(losses, logits), targets, mix).sum(),
        count=counts.sum(),
        chosen=tuple(routing.chosen for routing in routings),
        taken=tuple(routing.taken for routing in routings),
    )


def _mixed(each: Callable[[Array], Array], targets: Array, mix: Mix | None) -> Array:
    """What `each` gives for the targets, and for the second ones by what is left of the share."""
    first = each(targets)
    if mix is None:
        return first
    rows = zip(mix.shares, first, each(mix.others), strict=True)
    return np.stack([share * one + (1.0 - share) * other for share, one, other in rows])


def scored(targets: Array, layout: Layout) -> Array:
    """Targets without those that a prompt shows: target t is token t + 1."""
    if layout.prompt is None:
        return targets
    shown = np.arange(1, targets.shape[1] + 1) < layout.prompt[:, None]
    return np.where(shown, IGNORED, targets)


def _shifted(targets: Array, layout: Layout, *, places: int) -> Array:
    """The target `places` further on, `IGNORED` behind the row or in another document."""
    shifted = np.full_like(targets, IGNORED)
    for row, place in np.ndindex(len(targets), max(targets.shape[1] - places, 0)):
        document = layout.document
        if document is None or document[row, place] == document[row, place + places]:
            shifted[row, place] = targets[row, place + places]
    return shifted


def _costs(spec: ModelSpec, logits: Array, targets: Array) -> Array:
    """What each target costs, in the shape of the targets."""
    smoothing, z_loss = spec.head.label_smoothing, 0.0
    if spec.head.kind == "language":
        z_loss = spec.head.z_loss
    costs: Array = np.zeros(targets.shape, logits.dtype)
    for place in np.argwhere(targets != IGNORED):
        scores = logits[tuple(place)]
        shares = np.full(scores.shape, smoothing / len(scores))
        shares[targets[tuple(place)]] += 1.0 - smoothing
        costs[tuple(place)] = (
            -(shares * _log_shares(scores)).sum() + z_loss * _normaliser(scores) ** 2
        )
    return costs


def _log_shares(scores: Array) -> Array:
    """``log softmax`` of (V,)."""
    shares: Array = scores - _normaliser(scores)
    return shares


def _normaliser(scores: Array) -> Array:
    """``logsumexp`` of (V,), moved by the largest real part."""
    largest = scores.real.max()
    normaliser: Array = largest + np.log(np.exp(scores - largest).sum())
    return normaliser
