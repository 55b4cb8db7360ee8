"""What our dropout costs beside each framework's own: `python benchmarks/models/randomness.py`.

A training step (forward and backward) of four layers of width 256 over 8 x 256 tokens, with dropout
0.1 on embeddings, residual branches and hidden values. Three programs take turns: no dropout, the
framework's own dropout at the same places, and ours. Medians of rounds, so that a busy machine
slows all three alike. The bar: ours costs at most a tenth of a step more than the native one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from models.dropout import Drop
from models.spec import (
    AttentionSpec,
    DropoutSpec,
    Gated,
    LanguageHead,
    ModelSpec,
    RmsNorm,
    Rope,
    TokenInputs,
)
from models.weights import initial_weights

BATCH, LENGTH, SHARE = 8, 256, 0.1
BAR = 0.1
Step = Callable[[int], Any]


def spec(*, dropped: bool) -> ModelSpec:
    """The model, with dropout or without."""
    share = SHARE if dropped else 0.0
    return ModelSpec(
        inputs=TokenInputs(vocabulary=4096, context=LENGTH),
        width=256,
        layers=4,
        positions=Rope(),
        attention=AttentionSpec(heads=4, key_value_heads=4),
        feed_forward=Gated(hidden=704),
        norm=RmsNorm(),
        head=LanguageHead(),
        dropout=DropoutSpec(embedding=share, residual=share, hidden=share),
    )


def tokens() -> np.ndarray[Any, np.dtype[np.int64]]:
    """A batch of windows, one token longer than the context."""
    return np.random.default_rng(0).integers(0, 4096, (BATCH, LENGTH + 1))


def torch_step(*, dropped: bool, native: bool) -> Step:
    """One step of the torch twin."""
    import torch
    from torch import Tensor
    from torch.nn import functional

    from models.torch import block, embedding, feed_forward, random
    from models.torch.model import Model
    from models.torch.random import Draw
    from models.torch.weights import load_weights

    model = Model(spec(dropped=dropped), precision="float32")
    load_weights(model, initial_weights(spec(dropped=dropped), seed=0))
    windows = torch.from_numpy(tokens())

    def own(values: Tensor, draw: Draw | None, drop: Drop, **key: Any) -> Tensor:
        return functional.dropout(values, drop.shares[0]) if drop else values

    def step(number: int) -> None:
        draw = Draw.of(seed=0, step=number, samples=np.arange(BATCH) + number * BATCH)
        for part in (block, embedding, feed_forward):
            part.dropout = own if native else random.dropout  # type: ignore[attr-defined]
        model.zero_grad()
        torch.autograd.backward(model(windows[:, :-1], windows[:, 1:], draw=draw).objective)

    return step


def flax_step(*, dropped: bool, native: bool) -> Step:
    """One step of the Flax twin, compiled."""
    import jax
    from jax import Array

    from models.flax import block, embedding, feed_forward, random
    from models.flax.model import Model
    from models.flax.random import Draw
    from models.flax.weights import load_weights, merge, split

    model = Model(spec(dropped=dropped), precision="float32")
    load_weights(model, initial_weights(spec(dropped=dropped), seed=0))
    graph, arrays = split(model)
    windows = jax.numpy.asarray(tokens())

    def own(values: Array, draw: Draw, drop: Drop, *, layer: Any = 0, **shape: Any) -> Array:
        if not drop:
            return values
        # One key a site, layer and step, split as `flax.nnx.Dropout` does.
        key = jax.random.fold_in(jax.random.key(0), draw.step)
        key = jax.random.fold_in(jax.random.fold_in(key, layer), int(drop.site))
        keep = jax.random.bernoulli(key, 1.0 - drop.shares[0], values.shape)
        return jax.numpy.where(keep, values / (1.0 - drop.shares[0]), 0.0)

    @jax.jit
    def gradients(arrays: dict[str, Array], draw: Draw) -> dict[str, Array]:
        # Tracing is what reads these names, once for each program.
        for part in (block, embedding, feed_forward):
            part.dropout = own if native else random.dropout  # type: ignore[attr-defined]

        def objective(arrays: dict[str, Array]) -> Array:
            tally = merge(graph, arrays)(windows[:, :-1], windows[:, 1:], draw=draw)
            total: Array = tally.objective
            return total

        found: dict[str, Array] = jax.grad(objective)(arrays)
        return found

    def step(number: int) -> None:
        draw = Draw.of(seed=0, step=number, samples=np.arange(BATCH) + number * BATCH)
        jax.block_until_ready(gradients(arrays, draw))  # type: ignore[no-untyped-call]

    return step


def measure(make: Callable[..., Step], *, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each program."""
    steps = {
        "none": make(dropped=False, native=False),
        "native": make(dropped=True, native=True),
        "ours": make(dropped=True, native=False),
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            step(number)
            # Compilation and first touches are in the first two rounds.
            if number >= 2:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    """Measure both twins and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--twin", choices=["torch", "flax"], nargs="*", default=["torch", "flax"])
    arguments = parser.parse_args()
    makers = {"torch": torch_step, "flax": flax_step}
    for twin in arguments.twin:
        seconds = measure(makers[twin], rounds=arguments.rounds)
        over = (seconds["ours"] - seconds["native"]) / seconds["native"]
        rounded = {name: round(value, 4) for name, value in seconds.items()}
        figures = {"twin": twin, "seconds": rounded, "over_native": round(over, 4)}
        print(json.dumps({**figures, "passes": over <= BAR}))


if __name__ == "__main__":
    main()
