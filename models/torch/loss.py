"""Losses in nats, and what training minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.inputs import IGNORED
from models.spec import ModelSpec
from models.torch.experts import Routing
from models.torch.layout import Layout

# Values that a CPU works on at a time: they stay in its cache from one operation to the next.
CACHED_VALUES = 2**20


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

    objective: Tensor
    nats: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    chosen: tuple[Tensor, ...]
    taken: tuple[Tensor, ...]


class Mix(NamedTuple):
    """Second targets of a batch whose samples are two in one (CutMix, MixUp).

    Attributes:
        others: like the targets; what is `IGNORED` there costs nothing.
        shares: of the first target in the cost, 0..1, (B,).
    """

    others: Tensor
    shares: Tensor


class Statistics(NamedTuple):
    """What every loss is made of, in the shape of the targets; 0 where a target is not scored.

    Attributes:
        normaliser: ``logsumexp(logits)``.
        target: logit of the target.
        mean: mean of the logits; None where nobody asked.
    """

    normaliser: Tensor
    target: Tensor
    mean: Tensor | None


def losses(logits: Tensor, targets: Tensor) -> Tensor:
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
    logits: Tensor,
    targets: Tensor,
    *,
    layout: Layout,
    ahead: Sequence[Tensor],
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
        mix = mix._replace(others=torch.where(targets != IGNORED, mix.others, IGNORED))
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
    counts = (targets != IGNORED).reshape(len(targets), -1).sum(dim=1)
    for routing in routings:
        objective = objective + (routing.loss * counts).sum()
    return Tally(
        objective=objective,
        nats=nats.detach().sum(),
        count=counts.sum(),
        chosen=tuple(routing.chosen for routing in routings),
        taken=tuple(routing.taken for routing in routings),
    )


def _judged(
    spec: ModelSpec, logits: Tensor, targets: Tensor, mix: Mix | None
) -> tuple[Tensor, Tensor]:
    """The cost and the nats of each target, both in the shape of the targets."""
    smoothed = spec.head.label_smoothing > 0
    found = statistics(logits, targets, mean=smoothed)
    costs, nats = _costs(spec, found), found.normaliser - found.target
    if mix is None:
        return costs, nats
    other = statistics(logits, mix.others, mean=smoothed)
    share = mix.shares.reshape(-1, *[1] * (targets.ndim - 1)).to(costs.dtype)
    return (
        share * costs + (1.0 - share) * _costs(spec, other),
        share * nats + (1.0 - share) * (other.normaliser - other.target),
    )


def statistics(logits: Tensor, targets: Tensor, *, mean: bool) -> Statistics:
    """Read the logits once, and once more in the backward pass."""
    scored = targets != IGNORED
    rows, chosen = logits.flatten(0, -2), torch.where(scored, targets, 0).flatten().long()
    apply: Callable[..., tuple[Tensor | None, ...]] = _Statistics.apply
    parts = apply(rows, chosen, mean)
    normaliser, target, average = (
        None if part is None else torch.where(scored, part.reshape(targets.shape), 0.0)
        for part in parts
    )
    assert normaliser is not None and target is not None
    return Statistics(normaliser, target, average)


class _Statistics(torch.autograd.Function):
    """`Statistics` of rows (R, V) and targets (R,), with the one gradient that all three make.

    Autograd would pass over (R, V) values once for each operation of each of them.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, mean: bool) -> tuple[Tensor | None, ...]:
        """Sums of each row."""
        parts = rows.tensor_split(_parts_of(rows))
        normaliser = torch.cat([part.logsumexp(dim=-1) for part in parts])
        target = rows.gather(-1, targets[:, None])[:, 0]
        ctx.save_for_backward(rows, targets)
        return normaliser, target, rows.mean(dim=-1) if mean else None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """``softmax`` for the normaliser, one hot for the target, 1 / V for the mean."""
        rows, targets = ctx.saved_tensors
        to_normaliser, to_target, to_mean = gradients
        assert to_normaliser is not None and to_target is not None
        if torch.is_grad_enabled():
            # Somebody asks for second derivatives: every operation must be recorded.
            traced = rows.softmax(dim=-1) * to_normaliser[:, None]
            if to_mean is not None:
                traced = traced + to_mean[:, None] / rows.shape[-1]
            return traced.scatter_add(-1, targets[:, None], to_target[:, None]), None, None
        gradient, parts = torch.empty_like(rows), _parts_of(rows)
        for into, part, factor in zip(
            gradient.tensor_split(parts),
            rows.tensor_split(parts),
            to_normaliser.tensor_split(parts),
            strict=True,
        ):
            torch.softmax(part, dim=-1, out=into).mul_(factor[:, None])
        if to_mean is not None:
            gradient.add_(to_mean[:, None] / rows.shape[-1])
        return gradient.scatter_add_(-1, targets[:, None], to_target[:, None]), None, None


def _parts_of(rows: Tensor) -> int:
    """How many parts are worked on one after the other; a GPU has no such cache."""
    return -(-rows.numel() // CACHED_VALUES) if rows.device.type == "cpu" else 1


def _costs(spec: ModelSpec, found: Statistics) -> Tensor:
    """What each target costs, in the shape of the targets."""
    head, expected = spec.head, found.target
    if found.mean is not None:
        smoothing = head.label_smoothing
        expected = (1.0 - smoothing) * found.target + smoothing * found.mean
    costs = found.normaliser - expected
    if head.kind == "language" and head.z_loss:
        costs = costs + head.z_loss * found.normaliser.square()
    return costs


def scored(targets: Tensor, layout: Layout) -> Tensor:
    """Targets without those that a prompt shows: target t is token t + 1."""
    if layout.prompt is None:
        return targets
    token = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    return torch.where(token < layout.prompt[:, None], IGNORED, targets)


def _shifted(targets: Tensor, layout: Layout, *, places: int) -> Tensor:
    """The target `places` further on, `IGNORED` behind the row or in another document."""
    shifted = torch.full_like(targets, IGNORED)
    later, document = targets[:, places:], layout.document
    if document is not None:
        same = document[:, : later.shape[1]] == document[:, places:]
        later = torch.where(same, later, IGNORED)
    shifted[:, : later.shape[1]] = later
    return shifted
