"""Every key of the `optim` section changes what it says it changes, in both frameworks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from models.spec import ConstantCurve, ModelSpec
from models.weights import weight_table
from optim.average import Ema, Swa, average_share
from optim.controls import controls
from optim.gradient import (
    ClipNorm,
    ClipPercentile,
    ClipUnits,
    GradientSpec,
    Noise,
    SkipSpikes,
)
from optim.group_rule import GroupRule
from optim.groups import plan
from optim.norms import limits, remembered
from optim.rules import (
    Adafactor,
    AdamW,
    Adan,
    Fallback,
    Lion,
    Muon,
    ScheduleFree,
    Sgd,
    Soap,
    SophiaG,
    SophiaH,
)
from optim.schedule import decay_share, rate
from optim.schedules import Schedule
from optim.spec import OptimSpec
from optim.state import judged
from tasks.prepare.batch import Batch
from tasks.train.spec import TrainSpec
from tasks.train.worker import build_engine
from tests.knobs.curves import CURVES, RUN, turns_of_curves
from tests.knobs.model import model
from tests.knobs.twins import TWINS, Twin, batch_of
from tests.knobs.updates import updated
from tests.knobs.witness import Witness, turn, unproven
from tests.optim.test_rules_fields import BESIDE, DEFAULTS, OTHER

Pair = Witness[OptimSpec]
MODEL: ModelSpec = model()
STEPS = 2


def optim(**changes: object) -> OptimSpec:
    """AdamW at a constant rate, with a norm that clips."""
    schedule = Schedule(peak=0.1, curve=ConstantCurve())
    gradient = GradientSpec(clip=ClipNorm(limit=0.05))
    sections = {"rule": AdamW(), "schedule": schedule, "gradient": gradient, **changes}
    return OptimSpec.model_validate(sections)


def grouped(**changes: object) -> OptimSpec:
    """The same with one group."""
    fields = {"name": "queries", "weights": "*query*", **changes}
    return optim(groups=(GroupRule.model_validate(fields),))


def of_curves() -> Iterator[Pair]:
    """The learning rate, by every field of every curve."""
    for curve, turns in turns_of_curves():
        schedule = Schedule(peak=0.1, curve=curve)
        fields = {f"schedule.curve{path}": value for path, value in turns.items()}
        yield from turn("optim", optim(schedule=schedule), fields)


def of_rules() -> Iterator[Pair]:
    """Every rule, and every field of it."""
    others = (
        Sgd(decay=0.1), Lion(decay=0.1), Adan(decay=0.1), SophiaG(decay=0.1), SophiaH(decay=0.1),
        ScheduleFree(decay=0.1), Adafactor(decay=0.1),
        Muon(decay=0.1, fallback=Fallback(rule=AdamW(decay=0.1))),
        Soap(decay=0.1, fallback=Fallback(rule=AdamW(decay=0.1))),
    )  # fmt: skip
    yield from turn("optim", optim(), {"rule": list(others)})
    for kind, fields in OTHER.items():
        rule = DEFAULTS[kind]
        for field, value in fields.items():
            if field in ("newton_schulz", "fallback", "probe", "roles"):
                continue
            base = rule.model_copy(update=BESIDE.get((kind, field), {}))
            yield from turn("optim", optim(rule=base), {f"rule.{field}": value})
    yield from turn("optim", optim(rule=SophiaH()), {"rule.probe": "rademacher"})
    iteration = {"steps": 2, "a": 3.0, "b": -4.5, "c": 1.8, "epsilon": 0.5}
    fallback = {"beta1": 0.5, "beta2": 0.5, "epsilon": 0.1, "decay": 0.5, "cautious": True}
    fallback |= {"bias_correction": False, "decoupled": False}
    for whole in (Muon(), Soap()):
        fields = {f"rule.fallback.rule.{field}": value for field, value in fallback.items()}
        yield from turn("optim", optim(rule=whole), {"rule.fallback.rate": 0.5, **fields})
        even = Fallback(rule=AdamW(decay=0.1))
        same = whole.model_copy(update={"decay": 0.1, "fallback": even})
        yield from turn("optim", optim(rule=same), {"rule.roles": [("matrix", "head"), ("head",)]})
    fields = {f"rule.newton_schulz.{field}": value for field, value in iteration.items()}
    yield from turn("optim", optim(rule=Muon()), fields)


def of_gradients() -> Iterator[Pair]:
    """Every stage before the rule, and the averages behind it."""
    stages = {
        "gradient.clip_value": 0.001,
        "gradient.centralize": True,
        "gradient.clip_units": ClipUnits(),
        "gradient.clip_weight_norm": 0.001,
        "gradient.noise": Noise(),
        "gradient.skip": SkipSpikes(after=2),
        "gradient.clip": [None, ClipPercentile()],
        "gradient.clip.limit": 0.01,
        "average": [Ema(), Swa(start=0.0)],
    }
    yield from turn("optim", optim(), stages)
    percentile = ClipPercentile(percentile=90.0, window=10, first=2.0, spike=3.0)
    within: list[tuple[GradientSpec, dict[str, object]]] = [
        (
            GradientSpec(clip=percentile),
            {"percentile": 20.0, "window": 3, "first": 3.0, "spike": 2.0},
        ),
        (GradientSpec(skip=SkipSpikes(after=2)), {"times": 2.0, "window": 3, "after": 3}),
        (GradientSpec(clip_units=ClipUnits()), {"ratio": 0.001, "epsilon": 5.0}),
        (GradientSpec(noise=Noise()), {"variance": 0.1, "decay": 0.1, "seed": 1}),
    ]
    for gradient, fields in within:
        (stage,) = gradient.model_fields_set
        named = {f"gradient.{stage}.{field}": value for field, value in fields.items()}
        yield from turn("optim", optim(gradient=gradient), named)
    yield from turn("optim", optim(average=Ema()), {"average.decay": 0.5, "average.warmup": False})
    yield from turn("optim", optim(average=Swa()), {"average.start": 0.1, "average.every_steps": 2})


WITNESSES: tuple[Pair, ...] = (
    *turn(
        "optim",
        optim(),
        {
            "schedule.peak": 0.2,
            "schedule.curve": list(CURVES[1:]),
            "decay_schedule": list(CURVES[1:]),
            "groups": [grouped(rate=0.5).groups],
            "layer_decay": 0.5,
        },
    ),
    *turn(
        "optim",
        optim(decay_schedule=CURVES[1]),
        {"decay_schedule": [CURVES[0]]},
    ),
    *of_curves(),
    *of_rules(),
    *of_gradients(),
    *turn(
        "optim",
        grouped(),
        {"groups[*].name": "others", "groups[*].decay": 0.5, "groups[*].frozen": True},
    ),
    *turn("optim", grouped(rate=0.5), {"groups[*].weights": "*key*", "groups[*].rate": 2.0}),
    *turn(
        "optim", grouped(rate=0.5, roles=("gain",), weights="*"), {"groups[*].roles": ("matrix",)}
    ),
)


def rates(spec: OptimSpec) -> object:
    """The learning rate of each step."""
    return [rate(spec.schedule, step=step, total_steps=RUN) for step in range(RUN)]


def decays(spec: OptimSpec) -> object:
    """What multiplies the decay of each step."""
    return [decay_share(spec.decay_schedule, step=step, total_steps=RUN) for step in range(RUN)]


def treatment(spec: OptimSpec) -> object:
    """Group, decay and rate of each weight."""
    return {
        name: (each.group, each.decay, each.rate, each.frozen)
        for name, each in plan(spec, weight_table(MODEL)).items()
    }


def bounds(spec: OptimSpec) -> object:
    """The limits of each step of a run with a spike."""
    norms: tuple[float, ...] = ()
    found = []
    for norm in (1.0, 1.3, 0.8, 1.1, 40.0, 0.9, 0.7, 2.0, 1.5, 0.6, 1.0, 1.2):
        found.append(limits(spec.gradient, norms))
        norms = remembered(spec.gradient, norms, norm)
    return found


def shares(spec: OptimSpec) -> object:
    """How far the average moves at each step."""
    return [average_share(spec.average, step=step, total_steps=RUN) for step in range(RUN)]


HOST: dict[str, Callable[[OptimSpec], object]] = {
    "rate": rates,
    "decay": decays,
    "treatment": treatment,
    "limits": bounds,
    "average": shares,
}


@functools.cache
def trained(spec: OptimSpec, twin: Twin) -> bytes:
    """The weights that a model is judged by after two real steps, behind a history of norms."""
    train = TrainSpec(backend=twin, steps=RUN, batch=3, precision="float64")
    engine = build_engine(MODEL, spec, train)
    inputs, targets = batch_of(MODEL, MODEL)
    batch = Batch(inputs.astype(np.int32), targets.astype(np.int32), np.arange(3))
    norms: tuple[float, ...] = (1e-3,) * 20
    for step in range(STEPS):
        result = engine.step(batch, controls(spec, step=step, total_steps=RUN, norms=norms))
        norms = remembered(spec.gradient, norms, result.gradient_norm)
    state = engine.state()
    engine.close()
    found = judged(spec, state.weights, state.slots)
    return b"".join(weights.tobytes() for weights in found.values())


def test_every_key_and_every_choice_has_a_witness() -> None:
    assert unproven("optim", WITNESSES) == set()


@pytest.mark.parametrize("pair", WITNESSES, ids=str)
def test_a_key_changes_what_it_says_and_nothing_else(pair: Pair) -> None:
    changed = {name for name, see in HOST.items() if see(pair.before) != see(pair.after)}
    assert changed == pair.seen - {"update"}


def in_update() -> list[Pair]:
    """Pairs that show in no number of the host, but in what the optimizers compute."""
    return [pair for pair in WITNESSES if "update" in pair.seen]


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("pair", in_update(), ids=str)
def test_both_optimizers_update_by_it(pair: Pair, twin: Twin) -> None:
    assert updated(pair.before, twin) != updated(pair.after, twin)


# One pair for each thing that an engine reads; the rest is the host's or the optimizers'.
READ = (
    "rule.kind", "gradient.clip.kind", "gradient.clip[norm|percentile].limit",
    "gradient.skip", "gradient.clip_value", "gradient.noise", "average.kind",
    "decay_schedule.kind", "groups", "layer_decay",
)  # fmt: skip


def read_by_engines() -> list[Pair]:
    """The last witness of each key that an engine reads."""
    last = {pair.key: pair for pair in WITNESSES if pair.key != "optim.groups[*].name"}
    chosen = [pair for key, pair in last.items() if key.removeprefix("optim.").startswith(READ)]
    return [pair for pair in chosen if pair.key.count(".") < 3]


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("pair", read_by_engines(), ids=str)
def test_both_engines_update_by_it(pair: Pair, twin: Twin) -> None:
    assert trained(pair.before, twin) != trained(pair.after, twin)
