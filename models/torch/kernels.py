"""From queries, keys and values to mixed values: which scores count, and two ways to the sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from models.positions import slopes
from models.scores import spans
from models.spec import AttentionSpec
from models.torch.layout import Layout


def seen(attention: AttentionSpec, query: Layout, key: Layout) -> Tensor:
    """Which keys (last axis) each query may see, (1 or B, T, S)."""
    after, before = query.place[:, :, None], key.place[:, None, :]
    if attention.mask.kind == "bidirectional":
        visible = torch.ones_like(after - before, dtype=torch.bool)
    else:
        visible = before <= after
    if query.prompt is not None:
        prompt = query.prompt[:, None, None]
        visible = visible | ((after < prompt) & (before < prompt))
    if attention.window is not None:
        visible = visible & ((after - before).abs() < attention.window)
    if query.document is not None and key.document is not None:
        visible = visible & (query.document[:, :, None] == key.document[:, None, :])
    if key.lengths is not None:
        visible = visible & (before < key.lengths[:, None, None])
    return visible


def penalty(heads: int, query: Layout, key: Layout, *, dtype: torch.dtype) -> Tensor:
    """What ALiBi adds to scores: ``-slope * distance``, (1 or B, N, T, S)."""
    distance = (query.place[:, None, :, None] - key.place[:, None, None, :]).abs()
    slope: Tensor = _slopes(heads).to(distance.device, dtype)
    return -slope[:, None, None] * distance


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _slopes(heads: int) -> Tensor:
    return torch.tensor(slopes(heads))


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    visible: Tensor,
    scale: float,
    soft_cap: float | None,
    bias: Tensor | None,
    reduce: torch.dtype,
    drop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Attend by holding every score (Vaswani et al. 2017, eq. 1).

    Args:
        query: (B, N, T, H).
        key, value: (B, G, S, H); query head n reads n * G // N.
        visible: keys that count, (1 or B, T, S); a query that sees none gets zeros.
        soft_cap: bounds scores, before the bias is added.
        bias: added to scores, (1 or B, N, T, S).
        reduce: type of scores and softmax.
        drop: what training does to the weights, (B, N, T, S).
    """
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1:3]
    rows = query.reshape(batch, groups, -1, width)
    scores = (rows.to(reduce) @ key.to(reduce).mT).reshape(batch, heads, length, keys) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    highest = scores.detach().amax(dim=-1, keepdim=True)
    powers = torch.exp(scores - torch.where(highest == -torch.inf, 0.0, highest))
    total = powers.sum(dim=-1, keepdim=True)
    shares = powers / torch.where(total == 0, 1.0, total)
    shares = (shares if drop is None else drop(shares)).to(value.dtype)
    mixed = shares.reshape(batch, groups, -1, keys) @ value
    return mixed.reshape(query.shape)


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    attention: AttentionSpec,
    scale: float,
    alibi: bool,
    reduce: torch.dtype,
) -> Tensor:
    """Attend without ever holding all scores; shapes as in `written_out`, S = T."""
    conditions = (layout.document, layout.prompt, layout.lengths, attention.window)
    if not alibi and all(condition is None for condition in conditions):
        causal = attention.mask.kind == "causal"
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scale, enable_gqa=True
        )
    blocks = []
    for span in spans(attention, query.shape[2]):
        asking, asked = layout.part(span.queries), layout.part(span.keys)
        block = masked(
            query[:, :, span.queries],
            key[:, :, span.keys],
            value[:, :, span.keys],
            visible=seen(attention, asking, asked),
            scale=scale,
            bias=penalty(query.shape[1], asking, asked, dtype=reduce) if alibi else None,
            reduce=reduce,
        )
        blocks.append(block)
    return torch.cat(blocks, dim=2)


def masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    visible: Tensor,
    scale: float,
    bias: Tensor | None,
    reduce: torch.dtype,
) -> Tensor:
    """`written_out` without cap and dropout, in torch's own kernels."""
    mask = visible[:, None]
    if bias is not None:
        mask = bias.to(reduce).masked_fill(~mask, -torch.inf)
    dtype = value.dtype
    if query.shape[2] == 1:
        # Torch's kernel takes less than half as long in float32, the casts included.
        query, key, value = (each.to(reduce) for each in (query, key, value))
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )
    return mixed.to(dtype)
