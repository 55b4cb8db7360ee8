"""Second targets, disturbances and lengths cost the same in the reference and both twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import models.flax.loss
import models.flax.model
import models.flax.random
import models.flax.weights
import models.torch.loss
import models.torch.model
import models.torch.random
import models.torch.weights
from models.inputs import IGNORED
from models.reference import loss as reference_loss
from models.reference import model as reference
from models.spec import (
    Ahead,
    ClassHead,
    ConvolutionStem,
    DropoutSpec,
    FrameInputs,
    LanguageHead,
    LayerNorm,
    ModelSpec,
    TokenInputs,
)
from tests.models.mutation import Mutant, planted
from tests.models.triangle import STEP, Backend, case_of, difference
from tests.models.variants.attention import prompted
from tests.models.variants.build import decoder, encoder, frames
from tests.tolerances import FORWARD_FLOAT64, GRADIENT_FLOAT64

Array = NDArray[Any]
TWINS: tuple[Backend, ...] = ("flax", "torch")
PADDED = np.array([7, 4, 1])
SPECS: dict[str, ModelSpec] = {
    "language": decoder(
        inputs=TokenInputs(vocabulary=11, context=8, scale=1.7, norm=LayerNorm(), separator=3),
        head=LanguageHead(label_smoothing=0.2, z_loss=0.1, ahead=Ahead(tokens=2, weight=0.6)),
        dropout=DropoutSpec(embedding=0.3, residual=0.2),
    ),
    "prompts": prompted(),
    "images": encoder(dropout=DropoutSpec(embedding=0.3)),
    "frames": frames(
        inputs=FrameInputs(features=3, context=7, stem=ConvolutionStem(kernel=3, stride=2)),
        head=ClassHead(classes=5, label_smoothing=0.1),
    ),
}


@dataclass(frozen=True)
class Answer:
    """What one implementation makes of a batch, and how that changes with the disturbance."""

    logits: Array
    objective: Array
    nats: Array
    scored: Array
    uphill: Array


@dataclass(frozen=True)
class Disturbed:
    """A batch with all that a model may be called with."""

    spec: ModelSpec
    weights: dict[str, Array]
    given: tuple[Array, Array]
    draw: Any
    lengths: Array | None
    mix: tuple[Array, Array]
    shift: Array


def disturbed(name: str) -> Disturbed:
    """A variant of the triangle with second targets, a disturbance, and lengths if it can."""
    case = case_of(SPECS[name])
    generator = np.random.default_rng(4)
    spec, inputs = case.spec, case.inputs
    inputs = np.array(inputs, copy=True)
    others = np.roll(case.targets, 1, axis=0)
    others[0] = (others[0] + 1) % 4
    tokens = spec.inputs.kind == "tokens"
    shape = (*inputs.shape, spec.width) if tokens else inputs.shape
    lengths = None if spec.inputs.kind == "patches" or name == "prompts" else PADDED
    return Disturbed(
        spec,
        dict(case.weights),
        (inputs, case.targets),
        case.draw,
        lengths,
        (others, np.array([0.3, 1.0, 0.8])),
        0.3 * generator.standard_normal(shape),
    )


def answer_of(case: Disturbed, backend: Backend) -> Answer:
    """One implementation's answer."""
    return by_torch(case) if backend == "torch" else by_flax(case)


def by_flax(case: Disturbed) -> Answer:
    """Jitted: few variants are asked."""
    twin = models.flax
    with jax.enable_x64(True):
        model = twin.model.Model(case.spec, precision="float64")
        twin.weights.load_weights(model, case.weights)
        inputs, targets = map(jax.numpy.asarray, case.given)
        named: dict[str, Any] = {"draw": twin.random.Draw.of(**vars(case.draw))}
        named["lengths"] = None if case.lengths is None else jax.numpy.asarray(case.lengths)
        mix = twin.loss.Mix(*map(jax.numpy.asarray, case.mix))

        def compute(shift: jax.Array) -> tuple[jax.Array, Any]:
            judged = model.judged(inputs, targets, mix=mix, shift=shift, **named)
            return judged.tally.objective, judged

        shift = jax.numpy.asarray(case.shift)
        uphill, judged = jax.jit(jax.grad(compute, has_aux=True))(shift)
        tally = jax.jit(lambda shift: model(inputs, targets, mix=mix, shift=shift, **named))(shift)
        logits = jax.jit(lambda shift: model.logits(inputs, shift=shift, **named))(shift)
        assert difference(np.asarray(judged.logits), np.asarray(logits)) < FORWARD_FLOAT64
        parts = (logits, tally.objective, tally.nats, judged.scored, uphill)
        return Answer(*map(np.asarray, parts))


def by_torch(case: Disturbed) -> Answer:
    """In eager mode."""
    twin = models.torch
    model = twin.model.Model(case.spec, precision="float64")
    twin.weights.load_weights(model, case.weights)
    inputs, targets = map(torch.tensor, case.given)
    named: dict[str, Any] = {"draw": twin.random.Draw.of(**vars(case.draw))}
    named["lengths"] = None if case.lengths is None else torch.tensor(case.lengths)
    mix = twin.loss.Mix(*map(torch.tensor, case.mix))
    shift = torch.tensor(case.shift, requires_grad=True)
    judged = model.judged(inputs, targets, mix=mix, shift=shift, **named)
    (uphill,) = torch.autograd.grad(judged.tally.objective, shift)
    with torch.no_grad():
        tally = model(inputs, targets, mix=mix, shift=shift, **named)
        logits = model.logits(inputs, shift=shift, **named)
    assert (logits == judged.logits).all()
    parts = (logits, tally.objective, tally.nats, judged.scored, uphill)
    return Answer(*(part.detach().numpy() for part in parts))


def check(case: Disturbed, found: Answer) -> None:
    """Hold an answer to the reference, and its gradient to complex steps of it."""
    named: dict[str, Any] = {"lengths": case.lengths, "mix": reference_loss.Mix(*case.mix)}

    def judged(shift: Array) -> reference.Judged:
        return reference.judged(
            case.spec, case.weights, *case.given, case.draw, shift=shift, **named
        )

    expected = judged(case.shift)
    counted = slice(None) if case.lengths is None else expected.scored
    assert (found.scored == expected.scored).all()
    assert difference(found.logits[counted], expected.logits[counted]) < FORWARD_FLOAT64
    assert difference(found.objective, np.asarray(expected.tally.objective)) < FORWARD_FLOAT64
    assert difference(found.nats, np.asarray(expected.tally.nats)) < FORWARD_FLOAT64
    generator = np.random.default_rng(1)
    for row in range(len(case.shift)):
        direction = np.zeros(case.shift.shape)
        direction[row] = generator.standard_normal(case.shift[row].shape)
        tally = judged(case.shift + 1j * STEP * direction).tally
        exact = np.imag(tally.objective) / STEP
        assert abs((found.uphill * direction).sum() - exact) < GRADIENT_FLOAT64


@pytest.mark.parametrize("backend", TWINS)
@pytest.mark.parametrize("name", SPECS)
def test_a_twin_computes_what_the_reference_computes(name: str, backend: Backend) -> None:
    case = disturbed(name)
    check(case, answer_of(case, backend))


@pytest.mark.parametrize("name", SPECS)
def test_the_cost_of_mixed_samples_lies_between_their_targets(name: str) -> None:
    case = disturbed(name)
    targets, others = case.given[1], case.mix[0]
    others = np.where(targets == IGNORED, IGNORED, others)

    def tally(targets: Array, **named: Any) -> reference_loss.Tally:
        return reference.objective(
            case.spec, case.weights, case.given[0], targets, case.draw, **named
        )

    for share in (1.0, 0.0, 0.25):
        found = tally(targets, mix=reference_loss.Mix(others, np.full(3, share)))
        one, other = tally(targets), tally(others)
        assert found.nats == pytest.approx(share * one.nats + (1 - share) * other.nats)
        expected = share * one.objective + (1 - share) * other.objective
        assert found.objective == pytest.approx(expected)
        assert found.count == one.count


def test_a_disturbance_of_zero_changes_nothing() -> None:
    case = disturbed("language")
    named: dict[str, Any] = {"draw": case.draw, "lengths": case.lengths}
    plain = reference.logits(case.spec, case.weights, case.given[0], **named)
    zero = np.zeros(case.shift.shape)
    moved = reference.logits(case.spec, case.weights, case.given[0], shift=zero, **named)
    assert (plain == moved).all()


MUTANTS = (
    Mutant(
        "shares exchanged",
        "torch.loss",
        "share * nats + (1.0 - share) * (other.normaliser - other.target)",
        "(1.0 - share) * nats + share * (other.normaliser - other.target)",
        "images",
    ),
    Mutant(
        "the second targets not smoothed",
        "flax.loss",
        "other = statistics(logits, mix.others, mean=smoothed)",
        "other = statistics(logits, mix.others, mean=False)",
        "frames",
    ),
    Mutant(
        "the same second targets for tokens ahead",
        "torch.loss",
        "others = mix._replace(others=_shifted(mix.others, layout, places=places))",
        "others = mix",
        "language",
    ),
    Mutant(
        "second targets of what is not scored",
        "flax.loss",
        "mix = mix._replace(others=jnp.where(targets != IGNORED, mix.others, IGNORED))",
        "mix = mix._replace(others=mix.others + 0)",
        "prompts",
    ),
    Mutant(
        "second targets for the loss that is told alone",
        "torch.loss",
        "share * costs + (1.0 - share) * _costs(spec, other)",
        "costs",
        "images",
    ),
    Mutant(
        "a disturbance behind the scale",
        "torch.embedding",
        "x = x + shift.to(self.reduce)",
        "x = x + shift.to(self.reduce) * self.spec.inputs.scale",
        "language",
    ),
    Mutant(
        "tokens not disturbed",
        "flax.embedding",
        "x = x + shift.astype(self.reduce)",
        "x = x + 0.0 * shift.astype(self.reduce)",
        "language",
    ),
    Mutant(
        "pixels disturbed downwards",
        "flax.embedding",
        "inputs if shift is None or tokens else inputs + shift",
        "inputs if shift is None or tokens else inputs - shift",
        "images",
    ),
    Mutant(
        "padding counts",
        "torch.model",
        "draw=draw, lengths=lengths, mix=mix, shift=shift)",
        "draw=draw, mix=mix, shift=shift)",
        "frames",
    ),
    Mutant(
        "prompts scored",
        "torch.model",
        "scored(targets, layout) != IGNORED",
        "targets != IGNORED",
        "prompts",
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.module}: {mutant.title}")
def test_a_planted_mistake_is_caught(mutant: Mutant) -> None:
    case = disturbed(mutant.variant)
    with planted(mutant), pytest.raises(AssertionError):
        check(case, answer_of(case, "flax" if mutant.module.startswith("flax") else "torch"))
