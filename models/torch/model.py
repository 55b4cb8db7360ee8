"""The transformer in PyTorch; `models/flax/model.py` is its translation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from models.inputs import IGNORED
from models.spec import POLICIES, ModelSpec, Precision
from models.torch.attention import Cache
from models.torch.block import Block, Passed
from models.torch.embedding import Embedding
from models.torch.experts import Routing
from models.torch.head import Head
from models.torch.layout import Cursor, Layout, layout_after, layout_of
from models.torch.loss import Mix, Tally, scored, tally
from models.torch.norm import norm
from models.torch.random import Draw
from models.weights import weight_table

# Programs of a layer: for training and measuring, for sizes that are fixed and that vary.
RECOMPILED = 8


class Hidden(NamedTuple):
    """What the layers make of a batch.

    Attributes:
        trunk: residual stream after the last layer, before the final norm, (B, T, D).
        layout: where each position stands.
        routings: of the layers with experts, in order.
    """

    trunk: Tensor
    layout: Layout
    routings: tuple[Routing, ...]


class Judged(NamedTuple):
    """What a model says of a batch, and what that costs.

    Attributes:
        tally: what training minimises, as sums.
        logits: (B, T, V) or (B, classes).
        scored: which targets count, in their shape.
    """

    tally: Tally
    logits: Tensor
    scored: Tensor


class Decoded(NamedTuple):
    """Logits behind the last token of each row, (B, V), and what the next tokens go on from."""

    logits: Tensor
    caches: tuple[Cache, ...]
    cursor: Cursor


class Model(nn.Module):
    """A transformer whose state-dict keys are the names of the weight table.

    Called with targets it gives what training minimises; `logits` gives what it answers. Weights
    start at zero (gains at one) until `models.torch.weights.load_weights` fills them.
    """

    def __init__(self, spec: ModelSpec, *, precision: Precision = "float32") -> None:
        super().__init__()
        table, policy = weight_table(spec), POLICIES[precision]
        self.spec, self.policy = spec, policy
        self.embedding = Embedding(spec, table, "embedding", policy)
        self.layers = nn.ModuleList(
            [Block(spec, table, f"layers.{n}", policy, layer=n) for n in range(spec.layers)]
        )
        self.ahead = nn.ModuleList(
            [
                Block(spec, table, f"ahead.{n}", policy, layer=spec.layers + n)
                for n in range(spec.ahead)
            ]
        )
        final = spec.block.arrangement != "post"
        self.norm = norm(spec.norm, table, "norm", policy) if final else None
        self.head = Head(spec, table, "head", policy)
        for name, row in table.items():
            self.get_parameter(name).requires_grad_(row.trained)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        draw: Draw | None = None,
        lengths: Tensor | None = None,
        mix: Mix | None = None,
        shift: Tensor | None = None,
    ) -> Tally:
        """What training minimises, as sums over the batch.

        Args:
            inputs: (B, T) integer tokens; (B, height, width, channels) pixels in 0..1; or
                (B, frames, features).
            targets: (B, T) next tokens or (B,) classes; `IGNORED` ones are not scored.
            draw: keys what training drops; None switches that off.
            lengths: tokens or frames of each row that count, (B,); None: all. Targets behind them
                are to be `IGNORED`.
            mix: second targets; None: each sample is one.
            shift: a disturbance that is added to pixels or frames, in their shape, or to the
                embeddings of tokens, (B, T, D); None: nothing.
        """
        judged = self.judged(inputs, targets, draw=draw, lengths=lengths, mix=mix, shift=shift)
        return judged.tally

    def judged(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        draw: Draw | None = None,
        lengths: Tensor | None = None,
        mix: Mix | None = None,
        shift: Tensor | None = None,
    ) -> Judged:
        """The same with the logits that it is made of."""
        trunk, layout, routings = self.hidden(inputs, draw=draw, lengths=lengths, shift=shift)
        ahead = []
        for index, block in enumerate(self.ahead):
            x, routing = self._pass(block, trunk, layout, draw, layer=self.spec.layers + index)
            ahead.append(self.answer(x, layout, draw=draw))
            routings += () if routing is None else (routing,)
        logits = self.answer(trunk, layout, draw=draw)
        sums = tally(
            self.spec, logits, targets, layout=layout, ahead=ahead, routings=routings, mix=mix
        )
        return Judged(sums, logits, scored(targets, layout) != IGNORED)

    def logits(
        self,
        inputs: Tensor,
        *,
        draw: Draw | None = None,
        lengths: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Logits of every position, (B, T, V), or of every sample, (B, classes).

        Args:
            lengths: tokens or frames of each row that count, (B,); None: all.
            shift: a disturbance, as for the targets' cost; None: nothing.
        """
        trunk, layout, _ = self.hidden(inputs, draw=draw, lengths=lengths, shift=shift)
        return self.answer(trunk, layout, draw=draw)

    def hidden(
        self,
        inputs: Tensor,
        *,
        draw: Draw | None = None,
        lengths: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Hidden:
        """The residual stream after the last layer."""
        layout = layout_of(self.spec, inputs, lengths=lengths)
        x = self.embedding(inputs, layout, draw, lengths=lengths, shift=shift)
        x, routings = self._layers(x, layout, draw)
        return Hidden(x, layout, routings)

    def decode(
        self,
        tokens: Tensor,
        caches: Sequence[Cache],
        cursor: Cursor,
        *,
        lengths: Tensor,
        filled: int | None = None,
    ) -> Decoded:
        """The logits behind tokens that follow what caches hold.

        Args:
            tokens: (B, T), right-padded.
            caches: of every layer; changed in place.
            cursor: how far each row has come.
            lengths: tokens of each row that count, 0..T, (B,); the logits of 0 mean nothing.
            filled: slots of the caches that may be read; None: all.
        """
        layout, cursor = layout_after(self.spec, tokens, cursor, lengths=lengths)
        x = self.embedding(tokens, layout, None)
        written = []
        for layer, (block, cache) in enumerate(zip(self.blocks(), caches, strict=True)):
            x, cache = block.decode(x, layout, cache, layer=layer, filled=filled)
            written.append(cache)
        last = x[torch.arange(len(x), device=x.device), lengths - 1]
        return Decoded(self.answer(last[:, None], layout)[:, 0], tuple(written), cursor)

    def compile_layers(self) -> None:
        """Let `torch.compile` fuse each layer from now on; equal layers share a program.

        What differs from layer to layer, as dropout by depth, takes a program for each.
        """
        for block in (*self.layers, *self.ahead):
            block.compile(recompile_limit=RECOMPILED * (len(self.layers) + len(self.ahead)))

    def blocks(self) -> list[Block]:
        """The layers, in order."""
        return [block for block in self.layers if isinstance(block, Block)]

    def answer(self, trunk: Tensor, layout: Layout, *, draw: Draw | None = None) -> Tensor:
        """From the residual stream, (B, T, D), to logits."""
        x = trunk if self.norm is None else self.norm(trunk)
        return self.head.logits(self.head.read(x, layout, draw), self.tied)

    @property
    def tied(self) -> Tensor | None:
        """The embedding table, where it is the output matrix too."""
        head = self.spec.head
        return self.embedding.table.weight if head.kind == "language" and head.tied else None

    def _layers(
        self, x: Tensor, layout: Layout, draw: Draw | None
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """All layers, one after the other."""
        routings: tuple[Routing, ...] = ()
        for layer, block in enumerate(self.layers):
            x, routing = self._pass(block, x, layout, draw, layer=layer)
            routings += () if routing is None else (routing,)
        return x, routings

    def _pass(
        self, block: nn.Module, x: Tensor, layout: Layout, draw: Draw | None, *, layer: int
    ) -> Passed:
        """One layer, whose backward pass computes again what is not kept."""
        policy = self.spec.execution.checkpointing
        if policy == "none" or not torch.is_grad_enabled():
            passed: Passed = block(x, layout, draw, layer=layer)
            return passed
        keep = KEEP_PRODUCTS if policy == "matmuls" else checkpoint.noop_context_fn
        again: Passed = checkpoint.checkpoint(
            partial(block, layer=layer),
            x,
            layout,
            draw,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=keep,
        )
        return again


def _products(
    context: object, operation: object, *args: object, **kwargs: object
) -> checkpoint.CheckpointPolicy:
    """Keep what a product with a weight gives; compute everything else again."""
    products: Sequence[object] = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    if operation in products:
        return checkpoint.CheckpointPolicy.MUST_SAVE
    return checkpoint.CheckpointPolicy.PREFER_RECOMPUTE


KEEP_PRODUCTS = partial(checkpoint.create_selective_checkpoint_contexts, _products)
