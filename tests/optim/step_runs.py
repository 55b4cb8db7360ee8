"""Whole optimizer steps on a real small model: by definition, and by the engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.dropout import strength_at
from models.spec import (
    AttentionSpec,
    Causal,
    ConstantCurve,
    DropoutSpec,
    Gated,
    InitSpec,
    LanguageHead,
    LinearWarmup,
    ModelSpec,
    Normal,
    RmsNorm,
    Rope,
    TokenInputs,
)
from models.torch.model import Model
from models.torch.random import Draw
from models.torch.weights import load_weights
from models.weights import initial_weights, weight_table
from optim.average import Ema, Swa
from optim.controls import controls
from optim.gradient import (
    ClipNorm,
    ClipPercentile,
    ClipUnits,
    GradientSpec,
    Noise,
    SkipSpikes,
)
from optim.norms import remembered
from optim.reference import optimizer as reference
from optim.rules import (
    Adafactor,
    AdamW,
    Adan,
    AnyRule,
    Lion,
    Muon,
    ScheduleFree,
    Sgd,
    Soap,
    SophiaG,
    SophiaH,
    curvature_due,
)
from optim.schedules import Schedule
from optim.spec import OptimSpec
from optim.state import first_values, judged
from optim.torch import curvature
from tasks.prepare.batch import Batch
from tasks.train.spec import TrainSpec
from tests.train.engines import shared

STEPS = 200
BATCH = 4
MODEL = ModelSpec(
    inputs=TokenInputs(vocabulary=13, context=6),
    width=8,
    layers=1,
    positions=Rope(),
    attention=AttentionSpec(heads=2, key_value_heads=1, mask=Causal()),
    feed_forward=Gated(hidden=12),
    norm=RmsNorm(),
    head=LanguageHead(tied=True),
    dropout=DropoutSpec(residual=0.1),
    init=InitSpec(matrix=Normal(std=0.3)),
)

# Every rule with a rate that moves this model.
RULES: dict[str, tuple[AnyRule, float]] = {
    "sgd": (Sgd(nesterov=True, decay=0.01), 0.03),
    "adamw": (AdamW(), 3e-3),
    "lion": (Lion(), 3e-4),
    "adan": (Adan(), 3e-3),
    "sophia_g": (SophiaG(), 1e-3),
    "sophia_h": (SophiaH(), 1e-3),
    "schedule_free": (ScheduleFree(decay=0.01), 3e-3),
    "adafactor": (Adafactor(decay=0.01), 1e-2),
    "muon": (Muon(decay=0.1), 1e-2),
    "soap": (Soap(), 3e-3),
}
# Every stage; limits are such that they act.
STAGES: dict[str, dict[str, Any]] = {
    "plain": {"gradient": GradientSpec(clip=None)},
    "norm": {"gradient": GradientSpec(clip=ClipNorm(limit=0.5))},
    "percentile": {"gradient": GradientSpec(clip=ClipPercentile(percentile=20.0, window=30))},
    "skip": {"gradient": GradientSpec(skip=SkipSpikes(times=1.1, window=20, after=3))},
    "value": {"gradient": GradientSpec(clip_value=0.02)},
    "centralize": {"gradient": GradientSpec(centralize=True)},
    "units": {"gradient": GradientSpec(clip_units=ClipUnits(ratio=0.02))},
    "weight_norm": {"gradient": GradientSpec(clip_weight_norm=0.1)},
    "noise": {"gradient": GradientSpec(noise=Noise(variance=1e-4, seed=5))},
    "ema": {"average": Ema(decay=0.9)},
    "swa": {"average": Swa(start=0.5, every_steps=3)},
    "all": {
        "gradient": GradientSpec(
            skip=SkipSpikes(times=2.0, window=50, after=5),
            clip=ClipPercentile(percentile=60.0),
            clip_value=0.05,
            centralize=True,
            clip_weight_norm=0.2,
            noise=Noise(variance=1e-5, decay=0.3),
        ),
        "average": Ema(decay=0.95, warmup=False),
        "layer_decay": 0.8,
        "decay_schedule": ConstantCurve(warmup=LinearWarmup(steps=20)),
    },
}


class Ran(NamedTuple):
    """A run: objective, norm and whether it was taken for each step; what it is judged by."""

    objectives: NDArray[np.float64]
    norms: NDArray[np.float64]
    taken: list[bool]
    weights: dict[str, NDArray[Any]]


def recipe(rule: str, stage: str) -> OptimSpec | None:
    """A rule with a stage; None where the two exclude each other."""
    kind, peak = RULES[rule]
    if kind.kind == "schedule_free" and STAGES[stage].get("average") is not None:
        if stage != "all":
            return None
        return recipe_of(kind, peak, **{**STAGES[stage], "average": None})
    return recipe_of(kind, peak, **STAGES[stage])


def recipe_of(rule: AnyRule, peak: float, **changes: Any) -> OptimSpec:
    """A warm-up and a constant rate."""
    schedule = Schedule(peak=peak, curve=ConstantCurve(warmup=LinearWarmup(steps=10)))
    return OptimSpec(rule=rule, schedule=schedule, **changes)


def batches(steps: int, *, ragged: bool = True) -> Iterator[Batch]:
    """Rows in which a token tells a lot about the next; some targets are not scored."""
    generator = np.random.default_rng(3)
    length, vocabulary = 6, 13
    for step in range(steps):
        begin = generator.integers(0, vocabulary, (BATCH, 1))
        stride = generator.integers(1, 3, (BATCH, 1))
        tokens = ((begin + stride * np.arange(length + 1)) % vocabulary).astype(np.int32)
        targets = tokens[:, 1:].copy()
        if ragged:
            targets[step % BATCH, 1 + step % 5 :] = -1
        samples = step * BATCH + np.arange(BATCH)
        yield Batch(np.ascontiguousarray(tokens[:, :-1]), targets, samples)


def by_definition(
    optim: OptimSpec,
    *,
    steps: int = STEPS,
    step_once: Callable[..., reference.Stepped] = reference.step,
    arithmetic: type[np.floating[Any]] = np.float64,
) -> Ran:
    """The reference optimizer on the gradients of the float64 model, batch by batch.

    Args:
        step_once: the step that is judged.
        arithmetic: what the optimizer keeps and computes in; the gradients are float64's, rounded.
    """
    table = weight_table(MODEL)
    model = Model(MODEL, precision="float64")
    weights = {name: np.array(w, np.float64) for name, w in initial_weights(MODEL, seed=7).items()}
    slots: Any = first_values(optim, table, weights)
    weights, slots = rounded(weights, arithmetic), {
        slot: rounded(held, arithmetic) for slot, held in slots.items()
    }
    norms: tuple[float, ...] = ()
    seen = []
    for step, batch in enumerate(batches(steps)):
        now = controls(optim, step=step, total_steps=steps, norms=norms)
        load_weights(model, weights)
        draw = Draw.of(
            seed=7,
            step=step,
            samples=batch.samples,
            strength=strength_at(MODEL, step=step, total_steps=steps),
        )
        inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        named = dict(model.named_parameters())

        def mean() -> torch.Tensor:
            tally = model(inputs, targets, draw=draw)
            objective: torch.Tensor = tally.objective / tally.count
            return objective

        objective = mean()
        found_gradients = torch.autograd.grad(objective, list(named.values()))
        gradients = {name: each.numpy() for name, each in zip(named, found_gradients, strict=True)}
        estimate = None
        if isinstance(optim.rule, SophiaG | SophiaH) and curvature_due(optim.rule, step=step):
            found = curvature.estimate(
                optim.rule,
                named,
                loss=mean,
                logits=lambda: model.logits(inputs, draw=draw),
                scored=targets != -1,
                draw=draw,
            )
            estimate = {name: value.numpy() for name, value in found.items()}
        stepped = step_once(
            optim,
            table,
            weights=weights,
            gradients=rounded(gradients, arithmetic),
            slots=slots,
            controls=now,
            curvature=estimate and rounded(estimate, arithmetic),
        )
        weights = rounded(stepped.weights, arithmetic)
        slots = {slot: rounded(held, arithmetic) for slot, held in stepped.slots.items()}
        norms = remembered(optim.gradient, norms, stepped.norm)
        seen.append((objective.item(), stepped.norm, stepped.taken))
    objectives, found_norms, taken = zip(*seen, strict=True)
    ended = judged(optim, weights, slots)
    return Ran(np.array(objectives), np.array(found_norms), list(taken), ended)


def rounded(
    arrays: dict[str, NDArray[Any]], arithmetic: type[np.floating[Any]]
) -> dict[str, NDArray[Any]]:
    """The same values as numbers of another kind."""
    return {name: values.astype(arithmetic, copy=False) for name, values in arrays.items()}


def by_engine(
    backend: Literal["flax", "torch"],
    optim: OptimSpec,
    *,
    steps: int = STEPS,
    accumulation: int = 1,
    precision: Literal["float32", "float64"] = "float64",
    zero_stage: Literal[0, 1, 2, 3] = 1,
) -> Ran:
    """The same by an engine of a framework."""
    train = TrainSpec(
        backend=backend,
        steps=steps,
        batch=BATCH,
        seed=7,
        precision=precision,
        accumulation=accumulation,
        zero_stage=zero_stage,
    )
    own = shared(MODEL, optim, train)
    norms: tuple[float, ...] = ()
    seen = []
    for step, batch in enumerate(batches(steps)):
        now = controls(optim, step=step, total_steps=steps, norms=norms)
        result = own.step(batch, now)
        norms = remembered(optim.gradient, norms, result.gradient_norm)
        seen.append((result.objective, result.gradient_norm, result.taken))
    state = own.state()
    own.close()
    objectives, found_norms, taken = zip(*seen, strict=True)
    ended = judged(optim, state.weights, state.slots)
    return Ran(np.array(objectives), np.array(found_norms), list(taken), ended)


def apart(found: Ran, expected: Ran) -> float:
    """Largest relative difference of curves and weights."""
    curves = (
        np.abs(one / other - 1).max()
        for one, other in (
            (found.objectives, expected.objectives),
            (found.norms, expected.norms),
        )
    )
    weights = (
        np.linalg.norm(found.weights[name] - weight) / np.linalg.norm(weight)
        for name, weight in expected.weights.items()
    )
    return float(max(*curves, *weights))
