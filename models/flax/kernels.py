"""From queries, keys and values to mixed values: which scores count, and two ways to the sum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from models.flax.layout import Layout
from models.flax.linear import worth_keeping
from models.positions import slopes
from models.scores import spans
from models.spec import AttentionSpec

CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
# The widest heads that its backward pass takes on every GPU since Ampere.
CUDNN_WIDTH = 128


def seen(attention: AttentionSpec, query: Layout, key: Layout) -> Array:
    """Which keys (last axis) each query may see, (1 or B, T, S)."""
    after, before = query.place[:, :, None], key.place[:, None, :]
    if attention.mask.kind == "bidirectional":
        visible = jnp.ones_like(after - before, dtype=bool)
    else:
        visible = before <= after
    if query.prompt is not None:
        prompt = query.prompt[:, None, None]
        visible = visible | ((after < prompt) & (before < prompt))
    if attention.window is not None:
        visible = visible & (jnp.abs(after - before) < attention.window)
    if query.document is not None and key.document is not None:
        visible = visible & (query.document[:, :, None] == key.document[:, None, :])
    if key.lengths is not None:
        visible = visible & (before < key.lengths[:, None, None])
    return visible


def penalty(heads: int, query: Layout, key: Layout, *, dtype: DTypeLike) -> Array:
    """What ALiBi adds to scores: ``-slope * distance``, (1 or B, N, T, S)."""
    distance = jnp.abs(query.place[:, None, :, None] - key.place[:, None, None, :])
    slope = jnp.asarray(slopes(heads), dtype)
    return -slope[:, None, None] * distance


def written_out(
    query: Array,
    key: Array,
    value: Array,
    *,
    visible: Array,
    scale: float,
    soft_cap: float | None,
    bias: Array | None,
    reduce: DTypeLike,
    drop: Callable[[Array], Array] | None = None,
) -> Array:
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
    scores = jnp.einsum("BGTH,BGSH->BGTS", rows, key, preferred_element_type=reduce)
    scores = worth_keeping(scores).reshape(batch, heads, length, keys) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(visible[:, None], scores, -jnp.inf)
    highest = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    powers = jnp.exp(scores - jnp.where(highest == -jnp.inf, 0.0, highest))
    total = powers.sum(axis=-1, keepdims=True)
    shares = powers / jnp.where(total == 0, 1.0, total)
    shares = (shares if drop is None else drop(shares)).astype(value.dtype)
    shares = shares.reshape(batch, groups, -1, keys)
    mixed = jnp.einsum("BGTS,BGSH->BGTH", shares, value, preferred_element_type=reduce)
    return mixed.astype(value.dtype).reshape(query.shape)


def fused(
    query: Array,
    key: Array,
    value: Array,
    layout: Layout,
    *,
    attention: AttentionSpec,
    scale: float,
    alibi: bool,
    reduce: DTypeLike,
) -> Array:
    """Attend without ever holding all scores; shapes as in `written_out`, S = T.

    On a GPU by cuDNN's flash attention where it computes what is asked for. Elsewhere by blocks,
    whose scores the backward pass computes again.
    """
    heads = query.shape[1]
    if not alibi and suits_cudnn(query, layout, attention):
        mixed: Array = jax.nn.dot_product_attention(
            *(each.swapaxes(1, 2) for each in (query, key, value)),
            scale=scale,
            is_causal=attention.mask.kind == "causal",
            local_window_size=attention.window and (attention.window - 1, 0),
            implementation="cudnn",
        )
        return mixed.swapaxes(1, 2)

    def block(query: Array, key: Array, value: Array, asking: Layout, asked: Layout) -> Array:
        return masked(
            query,
            key,
            value,
            visible=seen(attention, asking, asked),
            scale=scale,
            bias=penalty(heads, asking, asked, dtype=reduce) if alibi else None,
            reduce=reduce,
        )

    blocks = []
    for span in spans(attention, query.shape[2]):
        asking, asked = layout.part(span.queries), layout.part(span.keys)
        own = query[:, :, span.queries]
        blocks.append(block(own, key[:, :, span.keys], value[:, :, span.keys], asking, asked))
    return jnp.concatenate(blocks, axis=2)


def suits_cudnn(query: Array, layout: Layout, attention: AttentionSpec) -> bool:
    """Whether cuDNN has a kernel, forward and backward, for (B, N, T, H) and this mask.

    Rows that are whole, each one document; a window only behind each query.
    """
    conditions = (layout.document, layout.prompt, layout.lengths)
    width = query.shape[-1]
    return (
        jax.default_backend() == "gpu"
        and query.dtype in CUDNN_DTYPES
        and width % 8 == 0
        and width <= CUDNN_WIDTH
        and all(condition is None for condition in conditions)
        and (attention.window is None or attention.mask.kind == "causal")
    )


def masked(
    query: Array,
    key: Array,
    value: Array,
    *,
    visible: Array,
    scale: float,
    bias: Array | None,
    reduce: DTypeLike,
) -> Array:
    """`written_out` without cap and dropout, as XLA is fastest: sums divide what is mixed."""
    batch, groups, width = len(query), key.shape[1], query.shape[-1]
    rows = (query.astype(reduce) * scale).astype(query.dtype).reshape(batch, groups, -1, width)
    mixed = _mixed(rows, key, value, (visible[:, None], bias), str(reduce))
    return mixed.reshape(query.shape)


Shown = tuple[Array, Array | None]
Held = tuple[Array, Array, Array, Shown, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _mixed(rows: Array, key: Array, value: Array, shown: Shown, reduce: str) -> Array:
    """``softmax(rows K^T + bias) V`` with one gradient for all of it.

    Its products are of the type of the rows; JAX by itself would widen them in the backward pass.

    Args:
        rows: queries times the scale, (B, G, N / G * T, H).
        shown: keys that count, (1 or B, 1, T, S), and the bias, (1 or B, N, T, S).
    """
    return _forward(rows, key, value, shown, reduce)[0]


def _forward(
    rows: Array, key: Array, value: Array, shown: Shown, reduce: str
) -> tuple[Array, Held]:
    scores = _scores(rows, key, shown, reduce)
    highest = scores.max(axis=-1, keepdims=True)
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    powers = jnp.exp(scores - highest)
    total = powers.sum(axis=-1, keepdims=True)
    total = jnp.where(total == 0, 1.0, total)
    shares = powers.astype(value.dtype)
    mixed = jnp.einsum("BGTS,BGSH->BGTH", shares, value, preferred_element_type=reduce)
    mixed = worth_keeping((mixed / total).astype(value.dtype))
    normaliser = worth_keeping(highest + jnp.log(total))
    return mixed, (rows, key, value, shown, mixed, normaliser)


def _backward(reduce: str, held: Held, change: Array) -> tuple[Array, Array, Array, None]:
    """Dao et al. 2022, arXiv:2205.14135, algorithm 4."""
    rows, key, value, shown, mixed, normaliser = held
    own = value.dtype
    shares = jnp.exp(_scores(rows, key, shown, reduce) - normaliser)
    to_shares = jnp.einsum("BGTH,BGSH->BGTS", change, value, preferred_element_type=reduce)
    drift = (change.astype(reduce) * mixed.astype(reduce)).sum(axis=-1, keepdims=True)
    to_scores = (shares * (to_shares - drift)).astype(own)
    shares = shares.astype(own)
    to_rows = jnp.einsum("BGTS,BGSH->BGTH", to_scores, key, preferred_element_type=reduce)
    to_key = jnp.einsum("BGTS,BGTH->BGSH", to_scores, rows, preferred_element_type=reduce)
    to_value = jnp.einsum("BGTS,BGTH->BGSH", shares, change, preferred_element_type=reduce)
    return to_rows.astype(own), to_key.astype(own), to_value.astype(own), None


_mixed.defvjp(_forward, _backward)


def _scores(rows: Array, key: Array, shown: Shown, reduce: str) -> Array:
    """Scores of (B, G, N / G * T, S); minus infinity where a key does not count."""
    visible, bias = shown
    scores = jnp.einsum("BGTH,BGSH->BGTS", rows, key, preferred_element_type=reduce)
    split = scores.reshape(len(rows), -1, *visible.shape[2:])
    split = split if bias is None else split + bias
    return jnp.where(visible, split, -jnp.inf).reshape(scores.shape)
