"""Multi-head attention, grouped where there are fewer key/value heads than query heads."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.dropout import drop_of
from models.positions import rotation
from models.random import Site
from models.scores import scale_of
from models.spec import Inputs, ModelSpec, Policy, Rope
from models.torch.kernels import fused, masked, penalty, seen, written_out
from models.torch.layout import Layout
from models.torch.linear import DTYPES, Linear
from models.torch.norm import LayerNorm, RmsNorm, norm
from models.torch.random import Draw, dropout
from models.weights import Table, head_width


class Cache(NamedTuple):
    """What a layer keeps of the positions so far: rotated keys, and values, (B, G, S, H)."""

    key: Tensor
    value: Tensor


class Heads(NamedTuple):
    """Queries, (B, N, T, H), and keys and values, (B, G, T, H), normalised and rotated."""

    query: Tensor
    key: Tensor
    value: Tensor


class Attention(nn.Module):
    """``softmax(Q K^T scale) V`` (Vaswani et al. 2017; grouped: Ainslie et al. 2023)."""

    def __init__(
        self, spec: ModelSpec, table: Table, name: str, policy: Policy, *, layer: int
    ) -> None:
        super().__init__()
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
        self.compute, self.reduce = DTYPES[policy.compute], DTYPES[policy.reduce]

    def forward(self, x: Tensor, layout: Layout, draw: Draw | None, *, layer: int) -> Tensor:
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
        return self._joined(mixed)

    def decode(
        self, x: Tensor, layout: Layout, cache: Cache, *, filled: int | None = None
    ) -> tuple[Tensor, Cache]:
        """Mix positions that follow those of a cache, and write them into it.

        The weights of all new positions are held at once, so a long prompt comes in pieces; with
        a prefix mask it comes whole.

        Args:
            x: the new positions, (B, T, D), right-padded where rows have fewer.
            layout: where they stand, `layout_after`; each row goes on from a place of its own.
            cache: changed in place; has room for all new positions, padding included.
            filled: a number of slots that no new position lies behind; None: all.
        """
        query, key, value = self._heads(x, layout)
        rows = torch.arange(len(x), device=x.device)[:, None]
        cache.key.transpose(1, 2)[rows, layout.place] = key.transpose(1, 2)
        cache.value.transpose(1, 2)[rows, layout.place] = value.transpose(1, 2)
        key, value = (part[:, :, :filled] for part in cache)
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
        """A cache of `length` slots for each row, where the weights are."""
        shape = (batch, self.attention.key_value_heads, length, self.head_width)
        device = self.key.weight.device
        return Cache(
            torch.zeros(shape, dtype=self.compute, device=device),
            torch.zeros(shape, dtype=self.compute, device=device),
        )

    def _heads(self, x: Tensor, layout: Layout) -> Heads:
        query = self._split(self.query(x), self.query_norm)
        key = self._split(self.key(x), self.key_norm)
        if self.positions.kind == "rope":
            cosine, sine = (table[layout.index][:, None] for table in self._angles())
            query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        return Heads(query, key, self._split(self.value(x), None))

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _angles(self) -> tuple[Tensor, Tensor]:
        device = self.key.weight.device
        return angles(self.positions, self.head_width, self.inputs, self.reduce, device)

    def _split(self, x: Tensor, norm: RmsNorm | LayerNorm | None) -> Tensor:
        """Split (B, T, heads * H) into (B, heads, T, H) and normalise, in the order asked for."""
        qk_norm = self.attention.qk_norm
        if norm is not None and qk_norm is not None and qk_norm.over == "width":
            x, norm = norm(x), None
        x = x.reshape(*x.shape[:2], -1, self.head_width).transpose(1, 2)
        return x if norm is None else norm(x)

    def _bias(self, query: Layout, key: Layout) -> Tensor | None:
        if self.positions.kind != "alibi":
            return None
        return penalty(self.attention.heads, query, key, dtype=self.reduce)

    def _joined(self, mixed: Tensor) -> Tensor:
        """Map (B, N, T, H) to (B, T, D)."""
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


@lru_cache(maxsize=16)
def angles(
    rope: Rope, head_width: int, inputs: Inputs, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position, (S, R / 2), once for all layers.

    No buffers: casting a module to bfloat16 would round them.
    """
    # What is made in inference mode could not be used in training.
    with torch.inference_mode(mode=False):
        cosine, sine = (
            torch.tensor(table, dtype=dtype, device=device)
            for table in rotation(rope, head_width, inputs)
        )
        return cosine, sine


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (i, i + R/2) of (B, N, T, H); values behind the first R stay.

    Args:
        cosine, sine: of the angles, (1 or B, 1, T, R / 2), in the type to compute in.
    """
    pairs = cosine.shape[-1]
    first, second, rest = torch.tensor_split(x, [pairs, 2 * pairs], dim=-1)
    wide, other = first.to(cosine.dtype), second.to(cosine.dtype)
    turned = (wide * cosine - other * sine, other * cosine + wide * sine)
    return torch.cat([*(part.to(x.dtype) for part in turned), rest], dim=-1)


def _slots(held: Tensor) -> Layout:
    """The layout of what a cache holds, (B, G, S, H): a slot is a place."""
    place = torch.arange(held.shape[2], dtype=torch.int32, device=held.device)[None, :]
    return Layout(place, place, None, None, None)
