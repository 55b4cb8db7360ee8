"""The transformer in Flax NNX; `models/torch/model.py` is its translation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models.flax.attention import Cache
from models.flax.block import Block, Passed
from models.flax.embedding import Embedding
from models.flax.experts import Routing
from models.flax.head import Head
from models.flax.layout import Cursor, Layout, layout_after, layout_of
from models.flax.linear import KEPT, PRODUCT
from models.flax.loss import Mix, Tally, scored, tally
from models.flax.norm import norm
from models.flax.random import Draw, Layer
from models.inputs import IGNORED
from models.spec import POLICIES, ModelSpec, Precision
from models.stretches import stretches
from models.weights import weight_table


class Hidden(NamedTuple):
    """What the layers make of a batch.

    Attributes:
        trunk: residual stream after the last layer, before the final norm, (B, T, D).
        layout: where each position stands.
        routings: of the layers with experts, in order.
    """

    trunk: Array
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
    logits: Array
    scored: Array


class Decoded(NamedTuple):
    """Logits behind the last token of each row, (B, V), and what the next tokens go on from."""

    logits: Array
    caches: tuple[Cache, ...]
    cursor: Cursor


class Model(nnx.Module):
    """A transformer whose state paths are the names of the weight table.

    Called with targets it gives what training minimises; `logits` gives what it answers. Weights
    start at zero (gains at one) until `models.flax.weights.load_weights` fills them.
    """

    def __init__(self, spec: ModelSpec, *, precision: Precision = "float32") -> None:
        table, policy = weight_table(spec), POLICIES[precision]
        self.spec, self.policy = spec, policy
        self.embedding = Embedding(spec, table, "embedding", policy)
        self.layers = nnx.List(
            [Block(spec, table, f"layers.{n}", policy, layer=n) for n in range(spec.layers)]
        )
        self.ahead = nnx.List(
            [
                Block(spec, table, f"ahead.{n}", policy, layer=spec.layers + n)
                for n in range(spec.ahead)
            ]
        )
        final = spec.block.arrangement != "post"
        self.norm = norm(spec.norm, table, "norm", policy) if final else None
        self.head = Head(spec, table, "head", policy)

    def __call__(
        self,
        inputs: Array,
        targets: Array,
        *,
        draw: Draw | None = None,
        lengths: Array | None = None,
        mix: Mix | None = None,
        shift: Array | None = None,
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
        inputs: Array,
        targets: Array,
        *,
        draw: Draw | None = None,
        lengths: Array | None = None,
        mix: Mix | None = None,
        shift: Array | None = None,
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
        inputs: Array,
        *,
        draw: Draw | None = None,
        lengths: Array | None = None,
        shift: Array | None = None,
    ) -> Array:
        """Logits of every position, (B, T, V), or of every sample, (B, classes).

        Args:
            lengths: tokens or frames of each row that count, (B,); None: all.
            shift: a disturbance, as for the targets' cost; None: nothing.
        """
        trunk, layout, _ = self.hidden(inputs, draw=draw, lengths=lengths, shift=shift)
        return self.answer(trunk, layout, draw=draw)

    def hidden(
        self,
        inputs: Array,
        *,
        draw: Draw | None = None,
        lengths: Array | None = None,
        shift: Array | None = None,
    ) -> Hidden:
        """The residual stream after the last layer."""
        layout = layout_of(self.spec, inputs, lengths=lengths)
        x = self.embedding(inputs, layout, draw, lengths=lengths, shift=shift)
        x, routings = self._layers(x, layout, draw)
        return Hidden(x, layout, routings)

    def decode(
        self,
        tokens: Array,
        caches: Sequence[Cache],
        cursor: Cursor,
        *,
        lengths: Array,
        filled: int | None = None,
    ) -> Decoded:
        """The logits behind tokens that follow what caches hold.

        Args:
            tokens: (B, T), right-padded.
            caches: of every layer.
            cursor: how far each row has come.
            lengths: tokens of each row that count, 0..T, (B,); the logits of 0 mean nothing.
            filled: slots of the caches that may be read; None: all.
        """
        layout, cursor = layout_after(self.spec, tokens, cursor, lengths=lengths)
        x = self.embedding(tokens, layout, None)
        written = []
        for layer, (block, cache) in enumerate(zip(self.layers, caches, strict=True)):
            x, cache = block.decode(x, layout, cache, layer=layer, filled=filled)
            written.append(cache)
        last = x[jnp.arange(len(x)), lengths - 1]
        return Decoded(self.answer(last[:, None], layout)[:, 0], tuple(written), cursor)

    def answer(self, trunk: Array, layout: Layout, *, draw: Draw | None = None) -> Array:
        """From the residual stream, (B, T, D), to logits."""
        x = trunk if self.norm is None else self.norm(trunk)
        return self.head.logits(self.head.read(x, layout, draw), self.tied)

    @property
    def tied(self) -> Array | None:
        """The embedding table, where it is the output matrix too."""
        head = self.spec.head
        return self.embedding.table.weight[...] if head.kind == "language" and head.tied else None

    def _layers(
        self, x: Array, layout: Layout, draw: Draw | None
    ) -> tuple[Array, tuple[Routing, ...]]:
        """All layers, one after the other; stretches of equal ones as a loop compiled once."""
        routings: tuple[Routing, ...] = ()
        for stretch in stretches(self.spec):
            if stretch.repeats == 1:
                for layer in range(stretch.first, stretch.first + stretch.period):
                    x, routing = self._pass(self.layers[layer], x, layout, draw, layer=layer)
                    routings += () if routing is None else (routing,)
            else:
                blocks = self.layers[stretch.first : stretch.first + stretch.layers]
                x, found = self._scan(list(blocks), stretch.period, x, layout, draw, stretch.first)
                routings += found
        return x, routings

    def _scan(
        self,
        blocks: list[Block],
        period: int,
        x: Array,
        layout: Layout,
        draw: Draw | None,
        first: int,
    ) -> tuple[Array, tuple[Routing, ...]]:
        """Loop over repeats of `period` blocks with their weights stacked."""
        graphs = [nnx.graphdef(block) for block in blocks[:period]]
        repeats = [blocks[n : n + period] for n in range(0, len(blocks), period)]
        states = [tuple(nnx.state(block) for block in repeat) for repeat in repeats]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        starts = first + period * jnp.arange(len(repeats), dtype=jnp.uint32)

        def body(
            x: Array, turn: tuple[tuple[Any, ...], Array]
        ) -> tuple[Array, tuple[Routing, ...]]:
            found: tuple[Routing, ...] = ()
            for place, (graph, state) in enumerate(zip(graphs, turn[0], strict=True)):
                block = nnx.merge(graph, state)
                x, routing = self._pass(block, x, layout, draw, layer=turn[1] + place)
                found += () if routing is None else (routing,)
            return x, found

        x, found = jax.lax.scan(body, x, (stacked, starts))
        ordered = [
            jax.tree.map(lambda leaf: leaf[turn], routing)
            for turn in range(len(repeats))
            for routing in found
        ]
        return x, tuple(ordered)

    def _pass(
        self, block: Block, x: Array, layout: Layout, draw: Draw | None, *, layer: Layer
    ) -> Passed:
        """One layer, whose backward pass computes again what is not kept.

        Products and mixed values are kept at the least expense; what lies between them fuses into
        its readers, which costs less than writing it down and reading it again.
        """
        policy = self.spec.execution.checkpointing
        graph, state = nnx.split(block)

        def again(state: Any, x: Array, draw: Draw | None, layer: Layer) -> Passed:
            return nnx.merge(graph, state)(x, layout, draw, layer=layer)

        policies = jax.checkpoint_policies
        keep = {
            "none": policies.save_only_these_names(KEPT, PRODUCT),
            "matmuls": policies.save_only_these_names(PRODUCT),
            "blocks": None,
        }
        # Where nothing dear is computed again, the compiler may find that it has a value already.
        kept = jax.checkpoint(again, policy=keep[policy], prevent_cse=policy != "none")
        passed: Passed = kept(state, x, draw, layer)
        return passed
