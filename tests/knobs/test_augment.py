"""Every key of the `augment` section changes what it says it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from models.curves import share
from models.spec import Spec
from tasks.prepare.batch import Batch
from tasks.train.augment import augment
from tasks.train.augment_spec import (
    AugmentSpec,
    Colour,
    Crop,
    CutMix,
    Erasing,
    Flip,
    Jitter,
    MixUp,
    SpanMask,
    TimeMask,
)
from tests.knobs.curves import CURVES, RUN
from tests.knobs.witness import Witness, turn, unproven

PARTS: dict[str, tuple[Spec, dict[str, Any]]] = {
    "crop": (Crop(padding=1), {"padding": 2}),
    "flip": (Flip(), {"share": 0.9}),
    "colour": (Colour(brightness=0.1, contrast=0.1), {"brightness": 0.2, "contrast": 0.2}),
    "erasing": (Erasing(), {"share": 0.9, "least": 0.3, "most": 0.9, "ratio": 0.9}),
    "jitter": (Jitter(deviation=0.1), {"deviation": 0.2}),
    "time_mask": (TimeMask(longest=3), {"count": 2, "longest": 5}),
    "span_mask": (
        SpanMask(share=0.4, token=0),
        {"share": 0.6, "span": 3, "token": 2, "keep": (5,)},
    ),
    "mixup": (MixUp(share=0.5), {"alpha": 1.0, "share": 0.9}),
    "cutmix": (CutMix(), {"alpha": 0.2, "share": 0.9}),
}


def witnesses(section: str) -> Iterator[Witness[AugmentSpec]]:
    """A pair for each key, and for each value of those that have few."""
    for name, (part, others) in PARTS.items():
        whole = AugmentSpec.model_validate({name: part})
        yield from turn(section, AugmentSpec(), {name: [part]})
        yield from turn(section, whole, {f"{name}.{field}": [to] for field, to in others.items()})
        yield from of_curves(section, name, whole)


def of_curves(section: str, name: str, whole: Any) -> Iterator[Witness[Any]]:
    """The strength of one part of a section, by every curve."""
    yield from turn(section, whole, {f"{name}.strength": list(CURVES[1:])})


WITNESSES = tuple(witnesses("augment"))


def treated(spec: AugmentSpec, name: str, *, step: int = 3) -> bytes:
    """Sixteen samples of the kind that a part is for, as training sees them."""
    generator = np.random.default_rng(0)
    shape = {"jitter": (12, 3), "time_mask": (12, 3), "span_mask": (12,)}.get(name, (6, 8, 3))
    targets, samples = np.arange(16, dtype=np.int32), np.arange(16)
    if name == "span_mask":
        values = generator.integers(3, 9, (16, *shape)).astype(np.int32)
        targets = np.roll(values, -1, axis=1)
    else:
        values = generator.random((16, *shape)).astype(np.float32)

    def read(rows: np.ndarray[Any, Any]) -> Batch:
        return Batch(values[rows], targets[rows], rows)

    batch = augment(
        spec, read(samples), seed=0, step=step, total_steps=RUN, together=samples, read=read
    )
    parts = (batch.inputs, batch.targets, batch.others, batch.shares)
    return b"".join(b"" if part is None else part.tobytes() for part in parts)


def strengths(part: Any) -> list[float]:
    """The strength of a part at each step."""
    return [share(part.strength, step=step, total_steps=RUN) for step in range(RUN)]


def test_every_key_and_every_choice_has_a_witness() -> None:
    assert unproven("augment", WITNESSES) == set()


@pytest.mark.parametrize("pair", [p for p in WITNESSES if ".strength" not in p.key], ids=str)
def test_a_key_changes_what_training_sees(pair: Witness[AugmentSpec]) -> None:
    name = pair.key.split(".")[1]
    one, other = (treated(spec, name) for spec in (pair.before, pair.after))
    assert one != other


@pytest.mark.parametrize("name", PARTS)
def test_a_curve_changes_the_strength_of_its_part(name: str) -> None:
    for pair in WITNESSES:
        if pair.key.startswith(f"augment.{name}.strength"):
            one, other = (getattr(spec, name) for spec in (pair.before, pair.after))
            assert strengths(one) != strengths(other), pair.key
