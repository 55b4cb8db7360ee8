"""LitGPT's model and loss in the plain loop, compiled as its `pretrain` compiles it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.models.shapes import Shape
from benchmarks.train.course import Task, shape_of, weights_of
from benchmarks.train.plain import load, run
from benchmarks.train.turns import Turns

# Optional: no stubs and, where it is not installed, nothing to check.
MODEL: Any = importlib.import_module("litgpt.model")
UTILS: Any = importlib.import_module("litgpt.utils")


class Loss(nn.Module):
    """Tokens and targets -> mean loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """(B, T), (B, T) -> ()."""
        loss: Tensor = UTILS.chunked_cross_entropy(self.model(tokens), targets)
        return loss


def train(task: Task, turns: Turns) -> None:
    """Train until the turns end."""
    run(task, turns, model=model_of(shape_of(tiny=task.tiny)))


def model_of(shape: Shape) -> nn.Module:
    """The model with the first weights of all contenders."""
    spec = shape.spec
    inputs, part, norm, turned = spec.inputs, spec.feed_forward, spec.norm, spec.positions
    assert inputs.kind == "tokens" and part.kind == "gated"
    assert norm.kind == "rms" and turned.kind == "rope"
    model: Any = MODEL.GPT(
        MODEL.Config(
            block_size=inputs.context,
            vocab_size=inputs.vocabulary,
            padded_vocab_size=inputs.vocabulary,
            n_layer=spec.layers,
            n_head=spec.attention.heads,
            n_embd=spec.width,
            rotary_percentage=1.0,
            rope_base=round(turned.base),
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=norm.epsilon,
            mlp_class_name="LLaMAMLP",
            intermediate_size=part.hidden,
        )
    )
    model.transformer.wte.weight = model.lm_head.weight
    ours = weights_of(shape)
    table = ours["embedding.table.weight"]
    theirs = {"lm_head.weight": table, "transformer.wte.weight": table}
    theirs["transformer.ln_f.weight"] = ours["norm.weight"]
    for n in range(spec.layers):
        layer, block = f"layers.{n}", f"transformer.h.{n}"
        joined = [ours[f"{layer}.attention.{part}.weight"] for part in ("query", "key", "value")]
        theirs[f"{block}.attn.qkv.weight"] = np.concatenate(joined)
        theirs[f"{block}.attn.proj.weight"] = ours[f"{layer}.attention.output.weight"]
        theirs[f"{block}.norm_1.weight"] = ours[f"{layer}.attention_norm.weight"]
        theirs[f"{block}.norm_2.weight"] = ours[f"{layer}.feed_forward_norm.weight"]
        for own, name in (("gate", "fc_1"), ("up", "fc_2"), ("down", "proj")):
            theirs[f"{block}.mlp.{name}.weight"] = ours[f"{layer}.feed_forward.{own}.weight"]
    load(model, theirs)
    return Loss(model)
