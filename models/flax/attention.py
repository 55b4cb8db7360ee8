"""Multi-head attention, grouped where there are fewer key/value heads than query heads."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from models.dropout import drop_of
from models.positions import rotation
from models.random import Site
from models.scores import scale_of
from models.spec import Inputs, ModelSpec, Policy, Rope
from models.flax.kernels import fused, masked, penalty, seen, written_out
from models.flax.layout import Layout
from models.flax.linear import Linear, worth_keeping
from models.flax.norm import LayerNorm, RmsNorm, norm
from models.flax.random import Draw, Layer, dropout
from models.weights import Table, head_width


class Cache(NamedTuple):
    """What a layer keeps of the positions so far: rotated keys, and values, (B, G, S, H)."""

    key: Array
    value: Array


class Heads(NamedTuple):
    """Queries, (B, N, T, H), and keys and values, (B, G, T, H), normalised and rotated."""

    query: Array
    key: Array
    value: Array


class Attention(nnx.Module):
    """``softmax(Q K^T scale) V`` (Vaswani et al. 2017; grouped: Ainslie et al. 2023)."""

    def __init__(
        self, spec: ModelSpec, table: Table, name: str, policy: Policy, *, layer: int
    ) -> None:
        own = spec.layer(layer)
        self.query = Linear(table, f"{name}.query", policy)
        self.key = Linear(table, f"{name}.key", policy)
        self.value = Linear(table, f"{name}.value", policy)
        qk_norm = own.attention.qk_norm
        if qk_norm is None:
            self.query_norm, self.key_norm = None, None
        else:
            self.query_norm = norm(qk_norm.norm, table, f"{name}.query_norm", policy)
            self.key_norm = norm(qk_norm.norm, table, f"{name}.key_norm", policy)
        self.output = Linear(table, f"{name}.output", policy)
        self.attention, self.positions, self.inputs = own.attention, own.positions, spec.inputs
        self.head_width, self.scale = head_width(spec, layer), scale_of(spec, layer)
        self.drop = drop_of(spec, Site.SCORE_DROPOUT)
        self.fused = spec.execution.kernel != "reference" and own.attention.soft_cap is None
        self.compute, self.reduce = policy.compute, policy.reduce

    def __call__(self, x: Array, layout: Layout, draw: Draw | None, *, layer: Layer) -> Array:
        """Mix positions of (B, T, D)."""
        query, key, value = self._heads(x, layout)
        if self.fused and (draw is None or not self.drop):
            mixed = fused(
                query,
                key,
                value,
                layout,
                attention=self.attention,
                scale=self.scale,
                alibi=self.positions.kind == "alibi",
                reduce=self.reduce,
            )
        else:
            mixed = written_out(
                query,
                key,
                value,
                visible=seen(self.attention, layout, layout),
                scale=self.scale,
                soft_cap=self.attention.soft_cap,
                bias=self._bias(layout, layout),
                drop=partial(dropout, draw=draw, drop=self.drop, layer=layer),
                reduce=self.reduce,
            )
        return self._joined(worth_keeping(mixed))

    def decode(
        self, x: Array, layout: Layout, cache: Cache, *, filled: int | None = None
    ) -> tuple[Array, Cache]:
        """Mix positions that follow those of a cache, and write them into it.

        The weights of all new positions are held at once, so a long prompt comes in pieces; with
        a prefix mask it comes whole.

        Args:
            x: the new positions, (B, T, D), right-padded where rows have fewer.
            layout: where they stand, `layout_after`; each row goes on from a place of its own.
            cache: replaced by what comes back; has room for all new positions, padding included.
            filled: a number of slots that no new position lies behind; None: all.
        """
        query, key, value = self._heads(x, layout)
        cache = Cache(
            _written(cache.key, key, layout.place), _written(cache.value, value, layout.place)
        )
        key, value = (lax.bitcast_convert_type(part[:, :, :filled], self.compute) for part in cache)
        held = _slots(key)
        visible = seen(self.attention, layout, held)
        if self.inputs.kind == "tokens" and self.inputs.separator is not None:
            begun = (layout.place - layout.index)[:, :, None]
            visible = visible & (held.place[:, None, :] >= begun)
        kernel = masked if self.fused else partial(written_out, soft_cap=self.attention.soft_cap)
        mixed = kernel(
            query,
            key,
            value,
            visible=visible,
            scale=self.scale,
            bias=self._bias(layout, held),
            reduce=self.reduce,
        )
        return self._joined(mixed), cache

    def empty_cache(self, batch: int, *, length: int) -> Cache:
        """A cache of `length` slots for each row."""
        shape = (batch, self.attention.key_value_heads, length, self.head_width)
        # Bits of bfloat16: XLA's CPU (JAX 0.10) would widen a whole cache of it to write into it.
        dtype = jnp.uint16 if self.compute == "bfloat16" else self.compute
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def _heads(self, x: Array, layout: Layout) -> Heads:
        query = self._split(self.query(x), self.query_norm)
        key = self._split(self.key(x), self.key_norm)
        if self.positions.kind == "rope":
            tables = angles(self.positions, self.head_width, self.inputs, self.reduce)
            cosine, sine = (table[layout.index][:, None] for table in tables)
            query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        return Heads(query, key, self._split(self.value(x), None))

    def _split(self, x: Array, norm: RmsNorm | LayerNorm | None) -> Array:
        """Split (B, T, heads * H) into (B, heads, T, H) and normalise, in the order asked for."""
        qk_norm = self.attention.qk_norm
        if norm is not None and qk_norm is not None and qk_norm.over == "width":
            x, norm = norm(x), None
        x = x.reshape(*x.shape[:2], -1, self.head_width).swapaxes(1, 2)
        return x if norm is None else norm(x)

    def _bias(self, query: Layout, key: Layout) -> Array | None:
        if self.positions.kind != "alibi":
            return None
        return penalty(self.attention.heads, query, key, dtype=self.reduce)

    def _joined(self, mixed: Array) -> Array:
        """Map (B, N, T, H) to (B, T, D)."""
        batch, _, length, _ = mixed.shape
        return self.output(mixed.swapaxes(1, 2).reshape(batch, length, -1))


def angles(rope: Rope, head_width: int, inputs: Inputs, dtype: DTypeLike) -> tuple[Array, Array]:
    """Cosine and sine of every position, (S, R / 2)."""
    cosine, sine = rotation(rope, head_width, inputs)
    return jnp.asarray(cosine, dtype), jnp.asarray(sine, dtype)


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
    """Turn the pairs (i, i + R/2) of (B, N, T, H); values behind the first R stay.

    Args:
        cosine, sine: of the angles, (1 or B, 1, T, R / 2), in the type to compute in.
    """
    pairs = cosine.shape[-1]
    first, second, rest = jnp.split(x, [pairs, 2 * pairs], axis=-1)
    wide, other = first.astype(cosine.dtype), second.astype(cosine.dtype)
    turned = (wide * cosine - other * sine, other * cosine + wide * sine)
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), rest], axis=-1)


def _written(held: Array, new: Array, place: Array) -> Array:
    """Held values, (B, G, S, H), with new ones, (B, G, T, H), at their places, (B, T)."""
    rows = jnp.arange(len(held))[:, None]
    return held.at[rows, :, place].set(lax.bitcast_convert_type(new.swapaxes(1, 2), held.dtype))


def _slots(held: Array) -> Layout:
    """The layout of what a cache holds, (B, G, S, H): a slot is a place."""
    place = jnp.arange(held.shape[2], dtype=jnp.int32)[None, :]
    return Layout(place, place, None, None, None)
