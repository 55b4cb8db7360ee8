"""From tokens, patches or frames to the residual stream, (B, T, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import drop_of
from models.positions import sinusoids
from models.random import Site
from models.spec import ModelSpec, Policy
from models.torch.activation import activation
from models.torch.layout import Layout
from models.torch.linear import DTYPES, Linear
from models.torch.norm import norm
from models.torch.random import Draw, dropout, kept, kept_share
from models.weights import Table


class Rows(nn.Module):
    """Trained vectors, (count, D)."""

    def __init__(self, table: Table, name: str, policy: Policy) -> None:
        super().__init__()
        shape = table[f"{name}.weight"].shape
        self.weight = nn.Parameter(torch.zeros(shape, dtype=DTYPES[policy.parameters]))

    def forward(self, index: Tensor) -> Tensor:
        """Look (...) up, (..., D)."""
        return functional.embedding(index, self.weight)


class Embedding(nn.Module):
    """The first residual stream: what the model reads, the extra positions, and where they are.

    Vectors are added in the policy's `reduce` type and rounded to `compute` once.
    """

    sinusoids: Tensor | None

    def __init__(self, spec: ModelSpec, table: Table, name: str, policy: Policy) -> None:
        super().__init__()

        def rows(part: str) -> Rows | None:
            asked = f"{name}.{part}.weight" in table
            return Rows(table, f"{name}.{part}", policy) if asked else None

        inputs = spec.inputs
        if inputs.kind == "tokens":
            self.table = Rows(table, f"{name}.table", policy)
        else:
            self.stem = Linear(table, f"{name}.stem", policy)
        self.class_token = rows("class_token")
        self.registers = rows("registers")
        self.positions = rows("positions")
        own = inputs.norm if inputs.kind == "tokens" else None
        self.norm = norm(own, table, f"{name}.norm", policy) if own is not None else None
        self.spec = spec
        self.compute, self.reduce = DTYPES[policy.compute], DTYPES[policy.reduce]
        self.drop = drop_of(spec, Site.EMBEDDING_DROPOUT)
        self.token_drop = drop_of(spec, Site.TOKEN_DROPOUT)
        self.temporal_drop = drop_of(spec, Site.TEMPORAL_DROPOUT)
        self._hold_sinusoids()

    def forward(
        self,
        inputs: Tensor,
        layout: Layout,
        draw: Draw | None,
        *,
        lengths: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Map a batch to (B, T, D).

        Args:
            inputs: (B, T) integer tokens; (B, height, width, channels) pixels; or
                (B, frames, features).
            lengths: frames of each row that count, (B,); a convolution reads zeros behind them.
            shift: added to pixels or frames, in their shape; of tokens, (B, T, D), to what is read
                of them, before positions, norm and dropout.
        """
        tokens = self.spec.inputs.kind == "tokens"
        x = self._read(inputs if shift is None or tokens else inputs + shift, lengths)
        if shift is not None and tokens:
            x = x + shift.to(self.reduce)
        for rows in (self.registers, self.class_token):
            if rows is not None:
                weight = rows.weight.to(self.reduce)
                x = torch.cat([weight.expand(len(x), *weight.shape), x], dim=1)
        if self.positions is not None:
            x = x + self.positions(layout.index).to(self.reduce)
        if self.sinusoids is not None:
            x = x + self.sinusoids[layout.index]
        if self.norm is not None:
            x = self.norm(x)
        x = dropout(x.to(self.compute), draw, self.drop)
        x = dropout(x, draw, self.token_drop, over=(x.shape[1], 1))
        return self._temporal(x, draw)

    def _read(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        """Each token, patch or window of frames as a vector, (B, T, D) without extra positions."""
        read = self.spec.inputs
        match read.kind:
            case "tokens":
                found: Tensor = self.table(inputs).to(self.reduce)
                return found if read.scale == 1.0 else found * read.scale
            case "patches":
                x: Tensor = self.stem(patches(inputs, side=read.patch).to(self.compute))
            case "frames" if read.stem.kind == "linear":
                x = self.stem(inputs.to(self.compute))
            case "frames":
                cut = windows(self.spec, inputs, lengths)
                x = activation("gelu", self.stem(cut.to(self.compute)))
        return x.to(self.reduce)

    def _temporal(self, x: Tensor, draw: Draw | None) -> Tensor:
        """Drop whole blocks of `span` positions; position t belongs to block t // span."""
        drop, temporal = self.temporal_drop, self.spec.dropout.temporal
        if draw is None or temporal is None or not drop:
            return x
        block = torch.arange(x.shape[1], device=x.device) // temporal.span
        blocks = -(-x.shape[1] // temporal.span)
        keep = kept(draw, drop, (len(x), blocks), device=x.device)[:, block, None]
        return torch.where(keep, x / kept_share(draw, drop, layer=0), 0.0)

    def _hold_sinusoids(self) -> None:
        """Keep the fixed positions where the model is: a buffer that no state dict holds."""
        held, spec = None, self.spec
        if spec.positions.kind == "sinusoidal":
            fixed = sinusoids(spec.positions, spec.width, spec.inputs)
            held = torch.tensor(fixed, dtype=self.reduce)
        self.register_buffer("sinusoids", held, persistent=False)


def patches(images: Tensor, *, side: int) -> Tensor:
    """Pixels of each patch, (B, T, side * side * channels), patches in row-major order.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // side, width // side
    cut = images.reshape(batch, rows, side, columns, side, channels).transpose(2, 3)
    return cut.reshape(batch, rows * columns, side * side * channels)


def windows(spec: ModelSpec, frames: Tensor, lengths: Tensor | None) -> Tensor:
    """The frames that each output of a convolution reads, (B, T, kernel * features).

    Args:
        frames: (B, frames, features).
        lengths: frames of each row that count, (B,); zeros are read in front and behind.
    """
    assert spec.inputs.kind == "frames" and spec.inputs.stem.kind == "convolution"
    count = frames.shape[1]
    kernel, stride = spec.inputs.stem.kernel, spec.inputs.stem.stride
    before = kernel - stride if spec.causal else (kernel - 1) // 2
    first = torch.arange(spec.inputs.steps(count), device=frames.device) * stride - before
    frame = first[:, None] + torch.arange(kernel, device=frames.device)
    ends = frame.new_tensor([count]) if lengths is None else lengths
    inside = (frame >= 0) & (frame < ends[:, None, None])
    read = frames[:, frame.clamp(0, count - 1)]
    return torch.where(inside[..., None], read, 0.0).flatten(2)
