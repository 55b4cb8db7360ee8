"""A matrix of the weight table, held as ``(out, in)``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.spec import Policy
from models.weights import Table

DTYPES = {
    "float16": torch.float16,
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}


class Linear(nn.Linear):
    """``x W^T + b``; shape and bias are those of the table's rows `name.weight`, `name.bias`."""

    def __init__(self, table: Table, name: str, policy: Policy) -> None:
        out, into = table[f"{name}.weight"].shape
        bias = f"{name}.bias" in table
        super().__init__(into, out, bias=bias, dtype=DTYPES[policy.parameters])

    def reset_parameters(self) -> None:
        """Start at zero: the first values come from the weight table, not from torch."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the type of x."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` in the type of x; W may be `packed` in that type."""
    bias = None if bias is None else bias.to(x.dtype)
    if not weight.is_mkldnn:
        return functional.linear(x, weight.to(x.dtype), bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def packed(weight: Tensor) -> Tensor:
    """A matrix in the order in which a CPU multiplies a few rows, for `linear` alone.

    Torch's own product of one to eight rows takes two to three times as long; XLA's does not.
    """
    known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if not known or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return weight
    order: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return order
