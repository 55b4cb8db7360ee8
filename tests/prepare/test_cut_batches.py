"""A batch that is cut to its longest sample trains as the same batch padded to the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pytest

from models.presets import tiny_image, tiny_language
from models.spec import (
    ClassHead,
    ConvolutionStem,
    DropoutSpec,
    FrameInputs,
    InitSpec,
    ModelSpec,
    Normal,
    TokenInputs,
)
from optim.controls import controls
from tasks.artifacts import LengthOrder
from tasks.prepare.by_length import ByLength
from tasks.prepare.draw import Drawn, draw
from tasks.train.engine import Engine
from tasks.train.flax_step import FlaxEngine
from tasks.train.torch_step import TorchEngine
from tests.prepare.test_by_length import rows, sequences
from tests.tolerances import FORWARD_FLOAT64, GRADIENT_FLOAT64
from tests.train.engines import BATCH, OPTIM, train_spec

CONTEXT = 24
LENGTHS = np.random.default_rng(5).integers(1, CONTEXT + 1, 64)
# Values are dropped position by position, so that cutting does not change which.
CHANGES = {
    "dropout": DropoutSpec(embedding=0.1, residual=0.1),
    "init": InitSpec(matrix=Normal(std=0.1)),
}


def model(base: ModelSpec, inputs: TokenInputs | FrameInputs, classes: int | None) -> ModelSpec:
    head = {"head": ClassHead(classes=classes)} if classes else {}
    return base.model_copy(update={**CHANGES, "layers": 1, "inputs": inputs, **head})


TOKENS = TokenInputs(vocabulary=300, context=CONTEXT)
STEM = ConvolutionStem(kernel=3, stride=2)
FRAMES = FrameInputs(features=4, context=CONTEXT, stem=STEM, class_token=True)
KINDS = {
    "rows": (model(tiny_language(), TOKENS, None), rows(LENGTHS, context=CONTEXT)),
    "frames": (model(tiny_image(), FRAMES, 2), sequences(LENGTHS)),
}
BUILD: dict[str, Callable[..., Engine]] = {"flax": FlaxEngine, "torch": TorchEngine}


@pytest.fixture(params=KINDS)
def drawn(request: pytest.FixtureRequest) -> tuple[ModelSpec, ByLength, Drawn]:
    """A model, its samples, and a batch that is cut to about half of the context."""
    spec, samples = KINDS[request.param]
    held = ByLength.of(samples, LengthOrder(batches=8, lengths=4))  # type: ignore[arg-type]
    steps = (draw(held, seed=0, step=step, batch=BATCH) for step in range(16))
    wanted = (own for own in steps if own.lengths is not None and 9 < own.lengths.max() < 15)
    return spec, held, next(wanted)


@pytest.fixture(params=BUILD)
def engines(
    request: pytest.FixtureRequest, drawn: tuple[ModelSpec, ByLength, Drawn]
) -> Iterator[Callable[[], Engine]]:
    made: list[Engine] = []
    backend: Literal["flax", "torch"] = request.param

    def build() -> Engine:
        made.append(BUILD[backend](drawn[0], OPTIM, train_spec(backend)))
        return made[-1]

    yield build
    for engine in made:
        engine.close()


def test_cutting_changes_neither_loss_nor_gradient_nor_update(
    drawn: tuple[ModelSpec, ByLength, Drawn], engines: Callable[[], Engine]
) -> None:
    _, samples, found = drawn
    cut, whole = found.samples.read(found.indices), samples.read(found.indices)
    assert cut.inputs.shape[1] < whole.inputs.shape[1] == CONTEXT
    engine = engines()
    first, states = engine.state(), []
    now = controls(OPTIM, step=3, total_steps=50)
    for batch in (cut, whole):
        engine.load(first)
        result = engine.step(batch, now)
        states.append((result.loss, result.gradient_norm, engine.state().weights))
    (loss, norm, weights), (other_loss, other_norm, other_weights) = states
    assert loss == pytest.approx(other_loss, rel=FORWARD_FLOAT64, abs=0)
    assert norm == pytest.approx(other_norm, rel=GRADIENT_FLOAT64, abs=0)
    for name, weight in weights.items():
        assert np.allclose(weight, other_weights[name], rtol=0, atol=GRADIENT_FLOAT64), name
