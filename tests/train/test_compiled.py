"""Layers fused by `torch.compile`: the same training, and what cannot be compiled is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.presets import tiny_language
from models.spec import ExecutionSpec
from models.torch.model import Model
from optim.rules import SophiaH
from tasks.train.compiling import check_compiled, check_compiler
from tasks.train.torch_step import TorchEngine
from tests.models.triangle import case_of, check_forward, check_gradients, run_torch
from tests.models.variants.table import VARIANTS
from tests.tolerances import CURVE_FLOAT64
from tests.train.engines import MODELS, OPTIM, batch, losses, run, train_spec

STEPS = 4


@pytest.mark.slow
# The compiler warns of what it looks at: gradients of inputs, functions that remember.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_layers_train_as_others_do() -> None:
    """Dropout, micro-batches, a rule that differentiates twice, and measuring."""
    model = MODELS["tiny_language"]
    optim = OPTIM.model_copy(update={"rule": SophiaH(every_steps=2)})
    curves, weights = [], []
    for compiled in (False, True):
        spec = train_spec(precision="float64", accumulation=2)
        engine = TorchEngine(model, optim, spec.model_copy(update={"compile": compiled}))
        curve = losses(run(engine, model, steps=STEPS, optim=optim))
        measured = engine.loss(batch(model, step=STEPS))
        curves.append([*curve, measured.loss])
        weights.append(engine.state().weights)
        engine.close()
    np.testing.assert_allclose(curves[1], curves[0], rtol=CURVE_FLOAT64)
    for name, weight in weights[0].items():
        np.testing.assert_allclose(weights[1][name], weight, atol=CURVE_FLOAT64)


@pytest.mark.proof
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "variant",
    [name for name, spec in VARIANTS.items() if spec.execution.checkpointing != "matmuls"],
)
def test_every_architecture_can_be_compiled(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler traces is what the reference computes; its code for a CPU is torch's."""
    torch.compiler.reset()
    plain = Model.__init__

    def compiled(model: Model, *given: Any, **named: Any) -> None:
        plain(model, *given, **named)
        for block in model.blocks():
            block.compile(backend="aot_eager")

    monkeypatch.setattr(Model, "__init__", compiled)
    case = case_of(VARIANTS[variant])
    result = run_torch(case, "float64")
    check_forward(case, result)
    check_gradients(case, result)


@pytest.mark.parametrize(
    ("named", "execution", "said"),
    [
        ({"workers": 2, "zero_stage": 3}, {}, "train.zero_stage=2"),
        ({}, {"checkpointing": "matmuls"}, "Try blocks, or none"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    named: dict[str, Any], execution: dict[str, Any], said: str
) -> None:
    model = tiny_language().model_copy(update={"execution": ExecutionSpec(**execution)})
    train = train_spec(precision="float32", **named).model_copy(update={"compile": True})
    with pytest.raises(ValueError, match=said) as refused:
        check_compiled(model, train)
    assert "train.compile must be false" in str(refused.value)
    # Flax compiles the whole step, and all of these with it.
    check_compiled(model, train.model_copy(update={"backend": "flax"}))
    check_compiled(model, train.model_copy(update={"compile": False}))


def test_a_missing_compiler_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler")
    train = train_spec().model_copy(update={"compile": True})
    with pytest.raises(ValueError, match="no 'no-such-compiler' on this machine.*CXX"):
        TorchEngine(tiny_language(), OPTIM, train)
