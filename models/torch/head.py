"""From the normalised residual stream to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.dropout import drop_of
from models.random import Site
from models.spec import ModelSpec, Policy
from models.torch.activation import activation
from models.torch.layout import Layout
from models.torch.linear import DTYPES, Linear, linear
from models.torch.norm import norm
from models.torch.random import Draw, dropout
from models.weights import Table


class Output(nn.Module):
    """``scale (x W^T / m + b)`` in the policy's `reduce` type, where muP sets m (else 1).

    muP divides the product alone by m = width / base width (Yang et al. 2022, arXiv:2203.03466,
    table 8). A tied head brings W from the embedding.
    """

    def __init__(
        self, table: Table, name: str, policy: Policy, *, scale: float, wider: float
    ) -> None:
        super().__init__()

        def zeros(part: str) -> nn.Parameter | None:
            row, dtype = table.get(f"{name}.{part}"), DTYPES[policy.parameters]
            return None if row is None else nn.Parameter(torch.zeros(row.shape, dtype=dtype))

        self.weight = zeros("weight")
        self.bias = zeros("bias")
        self.scale, self.factor = scale, scale / wider
        self.reduce = DTYPES[policy.reduce]

    def forward(self, x: Tensor, tied: Tensor | None) -> Tensor:
        """Map (..., D) to (..., V) or (..., classes)."""
        weight = tied if self.weight is None else self.weight
        assert weight is not None
        if self.factor != 1.0:
            x = (x.to(self.reduce) * self.factor).to(x.dtype)
        y = project(x, weight, reduce=self.reduce)
        return y if self.bias is None else y + self.bias.to(self.reduce) * self.scale


class Head(nn.Module):
    """Pooling, a transform, the output matrix and what is done to logits."""

    def __init__(self, spec: ModelSpec, table: Table, name: str, policy: Policy) -> None:
        super().__init__()
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
        self.reduce = DTYPES[policy.reduce]
        self.drop = drop_of(spec, Site.HEAD_DROPOUT)

    def read(self, x: Tensor, layout: Layout, draw: Draw | None) -> Tensor:
        """What is read of (B, T, D): every position, or (B, D), pooled for a class head."""
        return dropout(self._pooled(x, layout.lengths), draw, self.drop)

    def logits(self, x: Tensor, tied: Tensor | None) -> Tensor:
        """Map (..., D) to (..., V) or (..., classes).

        Args:
            tied: the embedding table, (V, D), where it is the output matrix too.
        """
        if self.transform is not None and self.norm is not None and self.activation is not None:
            x = self.norm(activation(self.activation, self.transform(x)))
        y: Tensor = self.output(x, tied)
        return y if self.soft_cap is None else self.soft_cap * torch.tanh(y / self.soft_cap)

    def _pooled(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """One vector of each row, (B, D), for a class head."""
        match self.how:
            case None:
                return x
            case "first":
                return x[:, 0]
            case "last":
                row = torch.arange(len(x), device=x.device)
                return x[:, -1] if lengths is None else x[row, lengths - 1]
        place, wide = torch.arange(x.shape[1], device=x.device), x.to(self.reduce)
        counted = (place >= self.extra).expand(len(x), -1)
        if lengths is not None:
            counted = counted & (place < lengths[:, None])
        if self.pooling is None:
            shares = counted / counted.sum(dim=-1, keepdim=True).to(self.reduce)
        else:
            scores = self.pooling(wide)[..., 0] * self.pooling_scale
            shares = torch.where(counted, scores, -torch.inf).softmax(dim=-1)
        return torch.einsum("BT,BTD->BD", shares, wide).to(x.dtype)


def project(x: Tensor, weight: Tensor, *, reduce: torch.dtype) -> Tensor:
    """``x W^T``, from the type of x to `reduce`.

    A product of bfloat16 is rounded to it on the way, which torch's products cannot avoid.
    """
    return linear(x, weight).to(reduce)
