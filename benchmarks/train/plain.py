"""The loop that people write by hand: plain modules, `torch.compile`, AdamW, and nothing else.

In the manner of nanoGPT (one projection for query, key and value, torch's attention, autocast,
fused AdamW, clipping, decay of matrices alone) with the parts of a Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.shapes import Shape
from benchmarks.train.course import LIMIT, RATE, RULE, Task, shape_of, steps_of, weights_of
from benchmarks.train.turns import Turns
from models.spec import ModelSpec


class Attention(nn.Module):
    """Causal attention with rotated queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.joined = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, length, width = x.shape
        parts = self.joined(x).split(width, dim=-1)
        query, key, value = (
            each.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for each in parts
        )
        mixed = functional.scaled_dot_product_attention(
            rotated(query, cos, sin), rotated(key, cos, sin), value, is_causal=True
        )
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Layer(nn.Module):
    """Attention and a gated part, each behind a norm."""

    def __init__(self, width: int, heads: int, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=epsilon)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = nn.RMSNorm(width, eps=epsilon)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        y = self.feed_forward_norm(x)
        out: Tensor = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return out


class Llama(nn.Module):
    """Tokens and targets -> mean loss."""

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        inputs, part, norm, turned = spec.inputs, spec.feed_forward, spec.norm, spec.positions
        assert inputs.kind == "tokens" and part.kind == "gated"
        assert norm.kind == "rms" and turned.kind == "rope"
        heads, head = spec.attention.heads, spec.width // spec.attention.heads
        self.embedding = nn.Embedding(inputs.vocabulary, spec.width)
        self.layers = nn.ModuleList(
            [Layer(spec.width, heads, part.hidden, norm.epsilon) for _ in range(spec.layers)]
        )
        self.norm = nn.RMSNorm(spec.width, eps=norm.epsilon)
        self.head = nn.Linear(spec.width, inputs.vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        rates = turned.base ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
        angles = torch.outer(torch.arange(inputs.context, dtype=torch.float64), rates)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """(B, T), (B, T) -> ()."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys (B, H, T, K) with their two halves rotated; in their own precision."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


def train(task: Task, turns: Turns) -> None:
    """Train until the turns end."""
    shape = shape_of(tiny=task.tiny)
    model = Llama(shape.spec)
    load(model, _renamed(shape, weights_of(shape)))
    run(task, turns, model=model)


def load(model: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Fill a model; tied weights and buffers are not among the weights.

    Raises:
        ValueError: a weight of the model was not given.
    """
    tensors = {name: torch.from_numpy(np.ascontiguousarray(weights[name])) for name in weights}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    left = set(missing) & dict(model.named_parameters()).keys()
    if left or unexpected:
        raise ValueError(f"weights must be the model's; left {left}, unknown {unexpected}.")


def run(task: Task, turns: Turns, *, model: nn.Module) -> None:
    """The loop.

    Args:
        model: tokens and targets -> mean loss.
    """
    optimizer = optimizer_of(model)
    forward = cast(nn.Module, torch.compile(model) if task.compiled else model)
    for inputs, targets in steps_of(task):
        tokens, wanted = torch.from_numpy(inputs), torch.from_numpy(targets)
        with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bfloat16"):
            loss: Tensor = forward(tokens, wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if turns.after_step(float(loss.detach())):
            return


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    """Torch's fused AdamW; what is a matrix or a table decays."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": RULE.decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (RULE.beta1, RULE.beta2)
    return torch.optim.AdamW(groups, lr=RATE, betas=betas, eps=RULE.epsilon, fused=True)


def _renamed(shape: Shape, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The weight table's arrays by the names of `Llama`."""
    named = {
        "embedding.weight": weights["embedding.table.weight"],
        "norm.weight": weights["norm.weight"],
    }
    named["head.weight"] = named["embedding.weight"]
    for layer in (f"layers.{n}" for n in range(shape.spec.layers)):
        attention = f"{layer}.attention"
        joined = [weights[f"{attention}.{part}.weight"] for part in ("query", "key", "value")]
        named[f"{attention}.joined.weight"] = np.concatenate(joined)
        named[f"{attention}.output.weight"] = weights[f"{attention}.output.weight"]
        for norm in ("attention_norm", "feed_forward_norm"):
            named[f"{layer}.{norm}.weight"] = weights[f"{layer}.{norm}.weight"]
        for part in ("gate", "up", "down"):
            named[f"{layer}.{part}.weight"] = weights[f"{layer}.feed_forward.{part}.weight"]
    return named
