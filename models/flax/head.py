"""From the normalised residual stream to logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models.dropout import drop_of
from models.flax.activation import activation
from models.flax.layout import Layout
from models.flax.linear import Linear, project
from models.flax.norm import norm
from models.flax.random import Draw, dropout
from models.random import Site
from models.spec import ModelSpec, Policy
from models.weights import Table


class Output(nnx.Module):
    """``scale (x W^T / m + b)`` in the policy's `reduce` type, where muP sets m (else 1).

    muP divides the product alone by m = width / base width (Yang et al. 2022, arXiv:2203.03466,
    table 8). A tied head brings W from the embedding.
    """

    def __init__(
        self, table: Table, name: str, policy: Policy, *, scale: float, wider: float
    ) -> None:
        def zeros(part: str) -> nnx.Param[Array] | None:
            row = table.get(f"{name}.{part}")
            return None if row is None else nnx.Param(jnp.zeros(row.shape, policy.parameters))

        self.weight = zeros("weight")
        self.bias = zeros("bias")
        self.scale, self.factor = scale, scale / wider
        self.reduce = policy.reduce

    def __call__(self, x: Array, tied: Array | None) -> Array:
        """Map (..., D) to (..., V) or (..., classes)."""
        weight = tied if self.weight is None else self.weight[...]
        assert weight is not None
        if self.factor != 1.0:
            x = (x.astype(self.reduce) * self.factor).astype(x.dtype)
        y = project(x, weight, self.reduce)
        return y if self.bias is None else y + self.bias[...].astype(self.reduce) * self.scale


class Head(nnx.Module):
    """Pooling, a transform, the output matrix and what is done to logits."""

    def __init__(self, spec: ModelSpec, table: Table, name: str, policy: Policy) -> None:
        head, mup = spec.head, spec.init.mup
        language = head if head.kind == "language" else None
        transform = language.transform if language else None
        wider = 1.0 if mup is None else spec.width / mup.base_width
        scale = language.scale if language else 1.0
        pooled = f"{name}.pooling.weight" in table
        self.pooling = Linear(table, f"{name}.pooling", policy) if pooled else None
        self.transform = Linear(table, f"{name}.transform", policy) if transform else None
        self.norm = norm(transform.norm, table, f"{name}.norm", policy) if transform else None
        self.output = Output(table, f"{name}.output", policy, scale=scale, wider=wider)
        self.activation = transform.activation if transform else None
        self.soft_cap = language.soft_cap if language else None
        self.how = head.pooling if head.kind == "classes" else None
        self.extra, self.pooling_scale = spec.inputs.extra, (spec.width * wider) ** -0.5
        self.reduce = policy.reduce
        self.drop = drop_of(spec, Site.HEAD_DROPOUT)

    def read(self, x: Array, layout: Layout, draw: Draw | None) -> Array:
        """What is read of (B, T, D): every position, or (B, D), pooled for a class head."""
        return dropout(self._pooled(x, layout.lengths), draw, self.drop)

    def logits(self, x: Array, tied: Array | None) -> Array:
        """Map (..., D) to (..., V) or (..., classes).

        Args:
            tied: the embedding table, (V, D), where it is the output matrix too.
        """
        if self.transform is not None and self.norm is not None and self.activation is not None:
            x = self.norm(activation(self.activation, self.transform(x)))
        y = self.output(x, tied)
        return y if self.soft_cap is None else self.soft_cap * jnp.tanh(y / self.soft_cap)

    def _pooled(self, x: Array, lengths: Array | None) -> Array:
        """One vector of each row, (B, D), for a class head."""
        match self.how:
            case None:
                return x
            case "first":
                return x[:, 0]
            case "last":
                return x[:, -1] if lengths is None else x[jnp.arange(len(x)), lengths - 1]
        place, wide = jnp.arange(x.shape[1]), x.astype(self.reduce)
        counted = jnp.broadcast_to(place >= self.extra, x.shape[:2])
        if lengths is not None:
            counted = counted & (place < lengths[:, None])
        if self.pooling is None:
            shares = counted / counted.sum(axis=-1, keepdims=True).astype(self.reduce)
        else:
            scores = self.pooling(wide)[..., 0] * self.pooling_scale
            shares = jax.nn.softmax(jnp.where(counted, scores, -jnp.inf), axis=-1)
        return jnp.einsum("BT,BTD->BD", shares, wide).astype(x.dtype)
