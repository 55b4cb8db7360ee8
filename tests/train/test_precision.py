"""Sixteen bits between float32 weights: the same step at every stage, and the same decisions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.spec import TokenInputs
from models.weights import initial_weights
from optim.controls import Controls, controls
from optim.gradient import ClipNorm, GradientSpec
from optim.norms import remembered
from optim.spec import OptimSpec
from tasks.prepare.batch import Batch
from tasks.train.engine import Engine, EngineState, StepResult
from tasks.train.loop import Outcome, run_loop
from tasks.train.regularise_spec import Fgm, RDrop, RegulariseSpec
from tasks.train.scaling import LossScaleSpec
from tasks.train.spec import TrainSpec
from tasks.train.stopping import Stopping
from tests.optim.step_runs import (
    BATCH,
    MODEL,
    Ran,
    batches,
    by_definition,
    recipe,
    recipe_of,
)
from tests.tolerances import CURVE_FLOAT32_FACTOR, CURVE_FLOAT32_LOSS, CURVE_SIXTEEN_BITS_FACTOR
from tests.train.bigram import CONTEXT, TRAIN, VOCABULARY, checkpoints, tokens
from tests.train.engines import MODELS, shared
from tests.train.engines import batch as batch_of

Backend = Literal["flax", "torch"]
Stage = Literal[0, 1, 2, 3]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
BACKENDS: tuple[Backend, ...] = ("flax", "torch")
DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "mixed_bfloat16": torch.bfloat16,
    "mixed_float16": torch.float16,
}
MIXED: tuple[Precision, ...] = ("mixed_bfloat16", "mixed_float16")
STEPS = 12
# A scale that gradients bear, and one that no gradient of this model does, at one step of the run.
SCALE, TOO_LARGE, OVERFLOWS = 1024.0, 2.0**40, 5
# A scale that gradients bear and second derivatives do not.
BETWEEN = 2.0**15
NOTHING = RegulariseSpec()
BOTH = RegulariseSpec(consistency=RDrop(weight=0.5), adversarial=Fgm(radius=0.5))


class Run(NamedTuple):
    """What is trained, and how."""

    backend: Backend
    zero_stage: Stage
    accumulation: int
    precision: Precision | Literal["float64"]
    regularise: RegulariseSpec = NOTHING

    def opened(self, optim: OptimSpec) -> Engine:
        """An engine at its first weights."""
        train = TrainSpec(
            backend=self.backend,
            steps=STEPS,
            batch=BATCH,
            seed=7,
            precision=self.precision,
            zero_stage=self.zero_stage,
            accumulation=self.accumulation,
        )
        return shared(MODEL, optim, train, self.regularise)


EXACT = Run("torch", 0, 1, "float64")


def optim_of(rule: str, stage: str) -> OptimSpec:
    found = recipe(rule, stage)
    assert found is not None
    return found


def same(found: EngineState, expected: EngineState) -> bool:
    """To the bit."""
    return all(
        arrays.keys() == others.keys()
        and all(arrays[name].tobytes() == others[name].tobytes() for name in others)
        for arrays, others in (
            (found.weights, expected.weights),
            *((found.slots[slot], expected.slots[slot]) for slot in expected.slots),
        )
    )


def trained(
    run: Run,
    optim: OptimSpec,
    *,
    seen: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    kept: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> Ran:
    """Train; in float16 try one step with too large a scale first.

    Args:
        seen: what the model computes with instead of a weight.
        kept: what is left of a weight after each step.
    """
    engine = run.opened(optim)
    norms: tuple[float, ...] = ()
    figures = []
    for step, batch in enumerate(batches(STEPS)):
        now = controls(optim, step=step, total_steps=STEPS, norms=norms)
        if run.precision == "mixed_float16" and step == OVERFLOWS:
            before = engine.state()
            overflowed = engine.step(batch, now, loss_scale=TOO_LARGE)
            assert not overflowed.taken and not np.isfinite(overflowed.gradient_norm)
            assert same(engine.state(), before)
        start = engine.state()
        if seen is not None:
            engine.load(EngineState(mapped(seen, start.weights), start.slots))
        result = engine.step(batch, now, loss_scale=SCALE)
        if seen is not None:
            end = engine.state()
            moved = {name: end.weights[name] - seen(old) for name, old in start.weights.items()}
            weights = {name: old + moved[name] for name, old in start.weights.items()}
            engine.load(EngineState(weights, end.slots))
        if kept is not None:
            end = engine.state()
            engine.load(EngineState(mapped(kept, end.weights), end.slots))
        norms = remembered(optim.gradient, norms, result.gradient_norm)
        figures.append((result.objective, result.gradient_norm, result.taken))
    ended = engine.state()
    engine.close()
    objectives, found_norms, taken = zip(*figures, strict=True)
    return Ran(np.array(objectives), np.array(found_norms), list(taken), ended.weights)


def mapped(
    change: Callable[[NDArray[Any]], NDArray[Any]], weights: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    return {name: change(values) for name, values in weights.items()}


def rounding(precision: Precision) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def rounded(values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(torch.tensor(values).to(DTYPES[precision]).double().numpy())

    return rounded


def away(found: Ran, exact: Ran) -> NDArray[np.float64]:
    """How far objectives, norms and the way that weights went are off, relatively."""
    first = initial_weights(MODEL, seed=7)
    return np.array(
        [
            np.abs(found.objectives / exact.objectives - 1).max(),
            np.abs(found.norms / exact.norms - 1).max(),
            max(
                np.linalg.norm(found.weights[name] - end) / np.linalg.norm(end - first[name])
                for name, end in exact.weights.items()
            ),
        ]
    )


@functools.cache
def exactly(rule: str, stage: str, regularise: RegulariseSpec = NOTHING) -> Ran:
    optim = optim_of(rule, stage)
    if regularise == NOTHING:
        return by_definition(optim, steps=STEPS)
    return trained(EXACT._replace(regularise=regularise), optim)


@functools.cache
def band(
    rule: str, stage: str, precision: Precision, regularise: RegulariseSpec = NOTHING
) -> NDArray[np.float64]:
    """How far a precision may lead: where float64 leads on rounded weights, times a factor."""
    run, optim = EXACT._replace(regularise=regularise), optim_of(rule, stage)
    exact, rounded = exactly(rule, stage, regularise), rounding(precision)
    if precision == "float32":
        off = away(trained(run, optim, kept=rounded), exact)
        return CURVE_FLOAT32_LOSS + CURVE_FLOAT32_FACTOR * off
    return CURVE_SIXTEEN_BITS_FACTOR * away(trained(run, optim, seen=rounded), exact)


def assert_in_band(run: Run, rule: str, stage: str) -> None:
    assert run.precision != "float64"
    found, exact = trained(run, optim_of(rule, stage)), exactly(rule, stage, run.regularise)
    assert found.taken == exact.taken
    off = away(found, exact) / band(rule, stage, run.precision, run.regularise)
    assert (off < 1).all(), off


RUNS = [
    Run("flax", 1, 2, "mixed_bfloat16"),
    Run("flax", 1, 2, "mixed_float16"),
    *(Run("torch", stage, 1 + stage % 2, "mixed_bfloat16") for stage in (0, 1, 2, 3)),
    *(Run("torch", stage, 2 - stage % 2, "mixed_float16") for stage in (0, 1, 2, 3)),
]
ALL = [
    Run(backend, stage, accumulation, precision)
    for backend in BACKENDS
    for stage in (0, 1, 2, 3)
    for accumulation in (1, 2)
    for precision in MIXED
]


def named(run: Run) -> str:
    return f"{run.backend}-{run.zero_stage}-{run.accumulation}-{run.precision}"


@pytest.mark.parametrize("run", RUNS, ids=named)
def test_sixteen_bits_stay_in_the_band_and_an_overflow_changes_nothing(run: Run) -> None:
    """SGD, to whose step the size of a gradient, and so a scale left in it, is not the same."""
    assert_in_band(run, "sgd", "norm")


@pytest.mark.proof
@pytest.mark.parametrize("run", ALL, ids=named)
@pytest.mark.parametrize(
    ("rule", "stage"), [("sgd", "norm"), ("adan", "skip"), ("lion", "percentile")]
)
def test_every_stage_stays_in_the_band(rule: str, stage: str, run: Run) -> None:
    assert_in_band(run, rule, stage)


@pytest.mark.parametrize("precision", MIXED)
def test_a_planted_mistake_leaves_the_band(precision: Precision) -> None:
    """Clipping before the division by the scale, weights kept in sixteen bits, a mean twice."""
    optim, exact = optim_of("sgd", "norm"), exactly("sgd", "norm")
    rule, peak = optim.rule, optim.schedule.peak
    small = GradientSpec(clip=ClipNorm(limit=0.5 / SCALE))
    wrong = [
        trained(EXACT, recipe_of(rule, peak, gradient=small)),
        trained(EXACT, optim, kept=rounding(precision)),
        trained(EXACT, recipe_of(rule, peak / 2, gradient=optim.gradient)),
    ]
    for found in wrong:
        assert (away(found, exact) > band("sgd", "norm", precision)).any()


@pytest.mark.parametrize(
    "run",
    [
        Run("flax", 1, 1, "mixed_bfloat16", BOTH),
        Run("torch", 1, 2, "mixed_bfloat16", BOTH),
        Run("torch", 3, 1, "mixed_bfloat16", BOTH),
        Run("torch", 3, 2, "mixed_float16", BOTH),
        Run("torch", 3, 2, "float32", BOTH),
    ],
    ids=named,
)
def test_regularisers_stay_in_the_band(run: Run) -> None:
    assert_in_band(run, "sgd", "norm")


@pytest.mark.parametrize("part", ["consistency", "adversarial"])
def test_a_regulariser_that_is_left_out_leaves_the_band(part: str) -> None:
    exact = exactly("sgd", "norm", BOTH)
    other = exactly("sgd", "norm", BOTH.model_copy(update={part: None}))
    assert (away(other, exact) > band("sgd", "norm", "mixed_bfloat16", BOTH)).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overflow_leaves_the_balance_of_experts_alone(backend: Backend) -> None:
    model, optim = MODELS["tiny_experts"], optim_of("adamw", "ema")
    train = TrainSpec(backend=backend, steps=4, batch=BATCH, seed=7, precision="mixed_float16")
    engine = shared(model, optim, train)
    before = engine.state()
    now = controls(optim, step=0, total_steps=4)
    result = engine.step(batch_of(model, step=0), now, loss_scale=TOO_LARGE)
    assert not result.taken and same(engine.state(), before)
    result = engine.step(batch_of(model, step=0), now, loss_scale=SCALE)
    assert result.taken
    after = engine.state().weights
    name = "layers.1.feed_forward.router.balance"
    assert not np.array_equal(after[name], before.weights[name])
    engine.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_estimate_of_the_curvature_that_overflows_is_an_overflow(backend: Backend) -> None:
    """Second derivatives leave float16 first; what they left in the slots would stay there."""
    optim, batch = optim_of("sophia_h", "norm"), next(batches(1))
    now = controls(optim, step=0, total_steps=STEPS)
    engine = Run(backend, 1, 1, "mixed_float16").opened(optim)
    before = engine.state()
    result = engine.step(batch, now, loss_scale=BETWEEN)
    assert not result.taken and not np.isfinite(result.gradient_norm)
    assert same(engine.state(), before)
    assert engine.step(batch, now, loss_scale=SCALE).taken
    engine.close()


def test_a_gradient_bears_a_scale_that_the_curvature_does_not() -> None:
    optim = optim_of("sgd", "norm")
    engine = Run("torch", 1, 1, "mixed_float16").opened(optim)
    now = controls(optim, step=0, total_steps=STEPS)
    assert engine.step(next(batches(1)), now, loss_scale=BETWEEN).taken
    engine.close()


# A scale's whole way: from far above what gradients bear, down, and up against it again.
WAY = TRAIN.model_copy(
    update={
        "steps": 24,
        "precision": "mixed_float16",
        "loss_scale": LossScaleSpec(initial=2.0**24, growth_steps=3),
    }
)
SMALL = MODEL.model_copy(update={"inputs": TokenInputs(vocabulary=VOCABULARY, context=CONTEXT)})
Told = list[tuple[float, bool]]


class Loop:
    """The loop with one framework's engine, of which it notes scales and whether steps counted."""

    def __init__(self, backend: Backend) -> None:
        self._train = WAY.model_copy(update={"backend": backend, "zero_stage": 2})
        self._optim = optim_of("sgd", "norm")
        self.engine = shared(SMALL, self._optim, self._train)
        self._first, self._step = self.engine.state(), self.engine.step

    def run(
        self, folder: Path, patch: pytest.MonkeyPatch, *, until: int | None = None
    ) -> tuple[Told, Outcome]:
        """From the newest checkpoint in `folder` to the end, or for `until` steps."""
        told: Told = []

        def noted(batch: Batch, now: Controls, *, loss_scale: float) -> StepResult:
            result = self._step(batch, now, loss_scale=loss_scale)
            told.append((loss_scale, result.taken))
            return result

        def progress(done: int, total: int, note: str = "") -> None:
            if done == until:
                Stopping(folder).ask()

        patch.setattr(self.engine, "step", noted)
        self.engine.load(self._first)
        held = checkpoints(folder, train=self._train)
        outcome = run_loop(
            self.engine,
            train=self._train,
            optim=self._optim,
            training=tokens(31),
            validation=tokens(9, seed=1),
            positions=CONTEXT,
            checkpoints=held,
            start=held.newest(),
            stopping=Stopping(folder),
            progress=progress,
        )
        for mark in folder.glob("stop.*"):
            mark.unlink()
        return told, outcome


def test_the_scale_goes_the_same_way_in_both_frameworks_and_across_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = {backend: Loop(backend) for backend in BACKENDS}
    whole, outcome = loops["flax"].run(tmp_path / "flax", monkeypatch)
    assert outcome == Outcome(WAY.steps, finished=True)
    assert loops["torch"].run(tmp_path / "torch", monkeypatch) == (whole, outcome)
    scales, taken = zip(*whole, strict=True)
    # Down at once, later up and against the ceiling again.
    assert not any(taken[:2]) and scales[:2] == (2.0**24, 2.0**23)
    lowest = scales.index(min(scales))
    assert any(taken[lowest:]) and max(scales[lowest:]) > scales[lowest]
    assert not all(taken[lowest:])
    for first, second in (BACKENDS, BACKENDS[::-1]):
        folder = tmp_path / f"{first}-{second}"
        begun, stopped = loops[first].run(folder, monkeypatch, until=14)
        assert not stopped.finished
        rest, outcome = loops[second].run(folder, monkeypatch)
        assert outcome.finished
        assert begun + rest == whole
    for loop in loops.values():
        loop.engine.close()
