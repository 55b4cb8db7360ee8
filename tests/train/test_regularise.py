"""Regularisers are what the papers say, in both frameworks, and stay so over a run."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from models.inputs import IGNORED
from models.presets import tiny_language
from models.spec import (
    Ahead,
    AttentionSpec,
    Bidirectional,
    ClassHead,
    DropoutSpec,
    Experts,
    FrameInputs,
    Gated,
    LanguageHead,
    LayerNorm,
    LearnedPositions,
    LinearCurve,
    ModelSpec,
    PatchInputs,
    Plain,
    RmsNorm,
    Rope,
    Sinusoidal,
    TokenChoice,
    TokenInputs,
)
from tasks.prepare.batch import Batch
from tasks.train.augment import augment
from tasks.train.augment_spec import AugmentSpec, CutMix, Flip, MixUp
from tasks.train.regularise import check_regularise, looks_twice, strengths_at
from tasks.train.regularise_spec import (
    Fgm,
    MeanTeacher,
    Pgd,
    RDrop,
    RegulariseSpec,
    TwoView,
    Vat,
)
from tests.tolerances import CURVE_FLOAT64, FORWARD_FLOAT64, GRADIENT_FLOAT64
from tests.train.regularised import (
    STEP,
    TOTAL,
    TWINS,
    Case,
    Found,
    Moment,
    Twin,
    constants_of,
    found_by,
    objective,
    start,
    trained,
)

SEES_ALL = AttentionSpec(heads=2, key_value_heads=2, mask=Bidirectional())
DROPOUT = DropoutSpec(embedding=0.2, residual=0.2)
LANGUAGE = ModelSpec(
    inputs=TokenInputs(vocabulary=7, context=4),
    width=8,
    layers=1,
    positions=Rope(),
    attention=AttentionSpec(heads=2, key_value_heads=1),
    feed_forward=Gated(hidden=8),
    norm=RmsNorm(),
    dropout=DROPOUT,
    head=LanguageHead(label_smoothing=0.1),
)
IMAGES = ModelSpec(
    inputs=PatchInputs(height=4, width=4, channels=1, patch=2),
    width=8,
    layers=1,
    positions=LearnedPositions(),
    attention=SEES_ALL,
    feed_forward=Plain(hidden=8),
    norm=LayerNorm(),
    dropout=DROPOUT,
    head=ClassHead(classes=3),
)
FRAMES = IMAGES.model_copy(
    update={"inputs": FrameInputs(features=3, context=5), "positions": Sinusoidal()}
)
FADING = LinearCurve(final_share=0.2)


def samples(spec: ModelSpec) -> Callable[[np.ndarray[Any, Any]], Batch]:
    """A data set of a model that a batch's rows are read from."""
    generator = np.random.default_rng(5)
    if spec.inputs.kind == "tokens":
        inputs = generator.integers(0, spec.inputs.vocabulary, (8, spec.inputs.context))
        targets = np.roll(inputs, -1, axis=1).astype(np.int32)
        targets[::3, 2] = targets[7, 0] = IGNORED
        return lambda rows: Batch(inputs[rows].astype(np.int32), targets[rows], rows)
    classes = generator.integers(0, 3, 8).astype(np.int32)
    if spec.inputs.kind == "patches":
        pixels = generator.random((8, spec.inputs.height, spec.inputs.width, 1))
        pixels = (0.5 * pixels + classes[:, None, None, None] / 6).astype(np.float32)
        return lambda rows: Batch(pixels[rows], classes[rows], rows)
    frames = generator.standard_normal((8, spec.inputs.context, 3)).astype(np.float32)
    lengths = np.array([5, 3, 1, 4, 5, 2, 3, 5])
    return lambda rows: Batch(frames[rows], classes[rows], rows, lengths=lengths[rows])


def case(
    spec: ModelSpec = LANGUAGE,
    *,
    augmented: AugmentSpec | None = None,
    adversarial: Fgm | Pgd | Vat | None = None,
    consistency: RDrop | TwoView | MeanTeacher | None = None,
) -> Case:
    """A case whose batches walk through eight samples, two at a time."""
    regularise = RegulariseSpec(adversarial=adversarial, consistency=consistency)
    read = samples(spec)

    @functools.cache
    def batch(step: int) -> Batch:
        rows = np.array([(2 * step) % 8, (2 * step + 1) % 8])
        return augment(
            augmented or AugmentSpec(),
            read(rows),
            seed=1,
            step=step,
            total_steps=TOTAL,
            together=rows,
            read=read,
            twice=looks_twice(regularise),
        )

    return Case(spec, regularise, batch)


BLENDED = AugmentSpec(mixup=MixUp(alpha=1.0, share=0.5), cutmix=CutMix(), flip=Flip())
MIXTURE = Experts(
    experts=3,
    expert=Gated(hidden=8),
    router=TokenChoice(active=2),
    jitter=0.1,
    balance=0.1,
    z=0.05,
)
PREDICTS = LanguageHead(label_smoothing=0.1, ahead=Ahead(tokens=1, weight=0.5))
# Each one, then the pairs that share a pass, a view, a draw or a cost.
CASES: dict[str, Case] = {
    "fgm of text": case(adversarial=Fgm(radius=0.5, weight=0.7, strength=FADING)),
    "fgm of pixels, by sign": case(IMAGES, adversarial=Fgm(radius=0.1, ball="maximum")),
    "pgd of text": case(adversarial=Pgd(radius=0.4, ball="euclidean", step=0.3, steps=2)),
    "pgd of pixels": case(
        IMAGES, adversarial=Pgd(radius=0.1, step=0.07, steps=2, share=0.6, start="zero")
    ),
    "pgd of padded frames": case(FRAMES, adversarial=Pgd(radius=0.2, step=0.1, strength=FADING)),
    "vat of text": case(adversarial=Vat(radius=0.5, weight=0.8, steps=2)),
    "vat of padded frames": case(FRAMES, adversarial=Vat(radius=0.5, strength=FADING)),
    "r-drop of text": case(consistency=RDrop(weight=0.6, strength=FADING)),
    "two views of images": case(
        IMAGES, augmented=AugmentSpec(flip=Flip()), consistency=TwoView(weight=0.9)
    ),
    "a teacher of images": case(
        IMAGES, augmented=AugmentSpec(flip=Flip()), consistency=MeanTeacher(weight=2.0)
    ),
    "a teacher of text": case(consistency=MeanTeacher(distance="divergence", strength=FADING)),
    "mixed images and fgm": case(IMAGES, augmented=BLENDED, adversarial=Fgm(radius=0.3)),
    "mixed images, two views and pgd": case(
        IMAGES,
        augmented=BLENDED,
        consistency=TwoView(),
        adversarial=Pgd(radius=0.1, step=0.05, steps=2, share=0.5),
    ),
    "mixed images, r-drop and vat": case(
        IMAGES, augmented=BLENDED, consistency=RDrop(), adversarial=Vat(radius=0.5)
    ),
    "a teacher of frames and vat": case(
        FRAMES, consistency=MeanTeacher(), adversarial=Vat(radius=0.5)
    ),
    "r-drop and pgd of tokens ahead": case(
        LANGUAGE.model_copy(update={"head": PREDICTS}),
        consistency=RDrop(weight=0.6),
        adversarial=Pgd(radius=0.4, ball="euclidean", step=0.3, steps=1, share=0.7),
    ),
    "r-drop and fgm of experts": case(
        LANGUAGE.model_copy(update={"feed_forward": MIXTURE}),
        consistency=RDrop(),
        adversarial=Fgm(radius=0.5),
    ),
}


@functools.cache
def exact(name: str) -> tuple[float, np.ndarray[Any, Any], tuple[dict[str, Any], ...]]:
    """Objective, and its derivative along some directions, by the reference."""
    moment = start(CASES[name])
    constants = constants_of(moment)
    generator = np.random.default_rng(1)
    directions = tuple(
        {name: generator.standard_normal(w.shape) for name, w in moment.weights.items()}
        for _ in range(3)
    )
    slopes = []
    for direction in directions:
        moved = {name: w + 1j * STEP * direction[name] for name, w in moment.weights.items()}
        slopes.append(np.imag(objective(moment, constants, moved)) / STEP)
    return float(objective(moment, constants, moment.weights)), np.array(slopes), directions


@functools.cache
def result(name: str, twin: Twin) -> Found:
    """Each twin's first step is computed once."""
    return found_by(start(CASES[name]), twin)


def check(name: str, found: Found) -> None:
    """Hold a step to the reference."""
    expected, slopes, directions = exact(name)
    assert math.isclose(found.objective, expected, rel_tol=FORWARD_FLOAT64)
    along = [
        sum((found.gradients[name] * direction[name]).sum() for name in direction)
        for direction in directions
    ]
    assert np.abs(along - slopes).max() < GRADIENT_FLOAT64 * np.abs(slopes).max()


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("name", CASES)
def test_a_twin_minimises_what_the_papers_say(name: str, twin: Twin) -> None:
    check(name, result(name, twin))


@pytest.mark.parametrize("name", CASES)
def test_every_gradient_is_the_same_in_both_twins(name: str) -> None:
    one, other = (result(name, twin) for twin in TWINS)
    largest = max(np.abs(gradient).max() for gradient in one.gradients.values())
    for weight, gradient in one.gradients.items():
        away = np.abs(gradient - other.gradients[weight]).max()
        assert away < GRADIENT_FLOAT64 * largest, weight


@pytest.mark.parametrize("name", CASES)
def test_50_steps_give_the_same_curve_in_both_frameworks(name: str) -> None:
    flax, torch = (trained(CASES[name], twin, steps=TOTAL) for twin in TWINS)
    assert np.abs(torch / flax - 1).max() < CURVE_FLOAT64
    assert flax[-8:].mean() < flax[:8].mean()


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("pgd of padded frames", "torch"),
        ("vat of text", "torch"),
        ("mixed images, r-drop and vat", "torch"),
        ("a teacher of text", "torch"),
        ("vat of text", "flax"),
    ],
)
def test_sums_of_a_batch_are_those_of_its_rows(name: str, twin: Twin) -> None:
    whole, moment = result(name, twin), start(CASES[name])
    parts = [found_by(rows_of(moment, slice(row, row + 1)), twin) for row in range(2)]
    assert whole.objective == pytest.approx(sum(part.objective for part in parts), rel=1e-12)
    assert whole.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-12)
    assert whole.count == sum(part.count for part in parts)


def rows_of(moment: Moment, rows: slice) -> Moment:
    """Some rows of a moment's batch."""
    part = moment.batch.rows(rows)
    return replace(moment, case=replace(moment.case, batches=lambda step: part))


@pytest.mark.parametrize("twin", TWINS)
def test_what_is_told_of_a_step_is_of_the_undisturbed_pass(twin: Twin) -> None:
    plain = plain_step(twin)
    for name in ("fgm of text", "vat of text", "r-drop of text"):
        found = result(name, twin)
        assert (found.nats, found.count) == pytest.approx((plain.nats, plain.count), rel=1e-14)
        assert found.objective != pytest.approx(plain.objective, rel=1e-3)


def test_a_disturbance_makes_the_cost_larger_by_its_radius() -> None:
    """To first order by radius times the norm of the gradient, of each sample."""
    clean, *hit = (
        found_by(start(case(adversarial=attack)), "torch").objective
        for attack in (
            None,
            Pgd(radius=1e-4, ball="euclidean", step=1.0, steps=1, start="zero"),
            Pgd(radius=2e-4, ball="euclidean", step=1.0, steps=1, start="zero"),
            Pgd(radius=1e-4, ball="euclidean", step=1.0, steps=1, start="random"),
        )
    )
    first, second, begun = (value - clean for value in hit)
    assert 0 < first and second == pytest.approx(2 * first, rel=1e-2)
    assert begun == pytest.approx(first, rel=1e-2)


def test_a_curve_at_zero_leaves_the_plain_objective() -> None:
    gone, plain = LinearCurve(steps=1), plain_step("torch")
    parts: list[dict[str, Any]] = [
        {"adversarial": Fgm(radius=0.5, strength=gone), "consistency": TwoView(strength=gone)},
        {"adversarial": Pgd(radius=0.5, step=0.5, strength=gone)},
        {"adversarial": Vat(radius=0.5, strength=gone), "consistency": MeanTeacher(strength=gone)},
    ]
    for each in parts:
        found = found_by(start(case(**each)), "torch")
        assert found.objective == pytest.approx(plain.objective, rel=1e-14)


@functools.cache
def plain_step(twin: Twin) -> Found:
    """A step without regularisers."""
    return found_by(start(case()), twin)


def test_strengths_are_those_of_their_curves() -> None:
    spec = RegulariseSpec(adversarial=Fgm(radius=1.0), consistency=RDrop(strength=FADING))
    first, last = (strengths_at(spec, step=step, total_steps=10) for step in (0, 9))
    assert (first.adversarial, last.adversarial) == (1.0, 1.0)
    assert (first.consistency, last.consistency) == pytest.approx((0.92, 0.2))


def test_a_teacher_must_be_there() -> None:
    moment = start(CASES["a teacher of text"])
    for name in ("flax", "torch"):
        module = importlib.import_module(f"tasks.train.{name}_objective")
        with pytest.raises(ValueError, match="kind=mean_teacher needs a teacher"):
            module._compared(moment.case.regularise.consistency, None, *absent(module, name))


def absent(module: ModuleType, name: str) -> tuple[Any, ...]:
    """Rows, a draw and a pass, for a call without a teacher."""
    found = importlib.import_module(f"models.{name}.random")
    draw = found.Draw.of(seed=0, step=0, samples=np.arange(2))
    judged = type("Judged", (), {"tally": type("Tally", (), {"objective": 0.0})})
    return module.Rows(None, None), draw, judged, None


STILL = tiny_language()
MOVING = STILL.model_copy(update={"dropout": DropoutSpec(residual=0.1)})
NONE, SPANS = AugmentSpec(), AugmentSpec(flip=Flip())


@pytest.mark.parametrize(
    ("consistency", "augmented", "model", "refused"),
    [
        (RDrop(), NONE, STILL, True),
        (RDrop(), SPANS, STILL, True),
        (RDrop(), NONE, MOVING, False),
        (TwoView(), NONE, STILL, True),
        (TwoView(), SPANS, STILL, False),
        (TwoView(), NONE, MOVING, False),
        (MeanTeacher(), NONE, STILL, False),
        (None, NONE, STILL, False),
    ],
)
def test_passes_that_cannot_differ_are_refused(
    consistency: Any, augmented: AugmentSpec, model: ModelSpec, refused: bool
) -> None:
    spec = RegulariseSpec(consistency=consistency)
    if not refused:
        check_regularise(spec, augment=augmented, model=model)
        return
    with pytest.raises(ValueError, match="compares two passes that are the same"):
        check_regularise(spec, augment=augmented, model=model)


@dataclass(frozen=True)
class Mutant:
    """A planted mistake: the text `right` of a twin's objective, `wrong` instead of it."""

    title: str
    twin: Twin
    right: str
    wrong: str
    name: str

    def planted(self) -> ModuleType:
        """The module with the mistake."""
        found = importlib.import_module(f"tasks.train.{self.twin}_objective")
        assert found.__file__ is not None
        with open(found.__file__, encoding="utf-8") as file:
            source = file.read()
        assert source.count(self.right) == 1, self.right
        module = ModuleType(found.__name__)
        exec(compile(source.replace(self.right, self.wrong), found.__file__, "exec"), vars(module))
        return module


MUTANTS = (
    Mutant(
        "one gradient's length for the whole batch",
        "torch",
        "axes = tuple(range(1, values.ndim))",
        "axes = tuple(range(values.ndim))",
        "fgm of text",
    ),
    Mutant(
        "downhill",
        "torch",
        "shift = _within(shift + step, spec.radius, spec.ball)",
        "shift = _within(shift - step, spec.radius, spec.ball)",
        "pgd of text",
    ),
    Mutant(
        "outside the ball",
        "flax",
        "return _within(shift + step, spec.radius, spec.ball)",
        "return shift + step",
        "pgd of pixels",
    ),
    Mutant(
        "a start in padding",
        "torch",
        "return torch.where(counted[..., None], 2.0 * drawn - 1.0, 0.0)",
        "return 2.0 * drawn - 1.0",
        "vat of padded frames",
    ),
    Mutant(
        "clean cost whole beside the disturbed share",
        "flax",
        "return (1.0 - share) * cost + share * costs(model, shift)",
        "return cost + share * costs(model, shift)",
        "pgd of pixels",
    ),
    Mutant(
        "the other way round",
        "torch",
        "return divergence(plain.logits.detach(), answer, plain.scored)",
        "return divergence(answer, plain.logits.detach(), plain.scored)",
        "vat of text",
    ),
    Mutant(
        "a gradient through the clean answer",
        "flax",
        "return cost, divergence(lax.stop_gradient(plain.logits), answer, plain.scored)",
        "return cost, divergence(plain.logits, answer, plain.scored)",
        "two views of images",
    ),
    Mutant(
        "the same dropout twice",
        "torch",
        "return replace(draw, step=draw.step ^ SECOND_VIEW)",
        "return replace(draw)",
        "r-drop of text",
    ),
    Mutant(
        "one direction of the divergence twice",
        "flax",
        "back = divergence(second.logits, plain.logits, plain.scored)",
        "back = there",
        "r-drop of text",
    ),
    Mutant(
        "two costs for one",
        "torch",
        "return (cost + second.tally.objective) / 2, (there + back) / 2",
        "return cost + second.tally.objective, (there + back) / 2",
        "r-drop of text",
    ),
    Mutant(
        "the teacher is shown the first view",
        "torch",
        "answer = teacher.logits(again, draw=other, lengths=rows.lengths)",
        "answer = teacher.logits(rows.inputs, draw=other, lengths=rows.lengths)",
        "a teacher of images",
    ),
    Mutant(
        "a sum over classes for the mean",
        "flax",
        "each = jnp.square(jax.nn.softmax(one) - jax.nn.softmax(other)).mean(axis=-1)",
        "each = jnp.square(jax.nn.softmax(one) - jax.nn.softmax(other)).sum(axis=-1)",
        "a teacher of images",
    ),
    Mutant(
        "targets that are not scored compared",
        "torch",
        "each = (first.exp() * (first - second)).sum(dim=-1)\n"
        "    return torch.where(scored, each, 0.0).sum()",
        "each = (first.exp() * (first - second)).sum(dim=-1)\n    return each.sum()",
        "r-drop of text",
    ),
    Mutant(
        "a strength forgotten",
        "flax",
        "return cost + spec.weight * strength * moved(model, shift)",
        "return cost + spec.weight * moved(model, shift)",
        "vat of padded frames",
    ),
    Mutant(
        "power iteration from where it began",
        "torch",
        "direction = _unit(_gradient(moved, spec.probe * direction))",
        "direction = _unit(direction)",
        "vat of text",
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.twin}: {mutant.title}")
def test_a_planted_mistake_is_caught(mutant: Mutant) -> None:
    found = found_by(start(CASES[mutant.name]), mutant.twin, mutant.planted())
    with pytest.raises(AssertionError):
        check(mutant.name, found)
