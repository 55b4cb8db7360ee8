"""Every key of the `regularise` section changes what it says it changes.

`tests/train/test_regularise.py` holds the objective of both twins to one reference; here it is
enough to look at one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from models.spec import Spec
from tasks.train.regularise_spec import Fgm, MeanTeacher, Pgd, RDrop, RegulariseSpec, TwoView, Vat
from tests.knobs.test_augment import of_curves, strengths
from tests.knobs.witness import Witness, turn, unproven
from tests.tolerances import RESPONSE
from tests.train.regularised import found_by, start
from tests.train.test_regularise import case

PARTS: dict[str, list[tuple[Spec, dict[str, Any]]]] = {
    "adversarial": [
        (Fgm(radius=0.5), {"radius": 0.3, "ball": "maximum", "weight": 0.5}),
        (
            Pgd(radius=0.5, step=0.3),
            {
                "radius": 0.4,
                "ball": "euclidean",
                "step": 0.1,
                "steps": 1,
                "start": "zero",
                "share": 0.5,
            },
        ),
        (Vat(radius=0.5), {"radius": 0.3, "probe": 0.5, "steps": 2, "weight": 0.5}),
    ],
    "consistency": [
        (RDrop(), {"weight": 0.5}),
        (TwoView(), {"weight": 0.5}),
        (MeanTeacher(), {"distance": "divergence", "weight": 0.5}),
    ],
}


def witnesses(section: str) -> Iterator[Witness[RegulariseSpec]]:
    """A pair for each key, and for each value of those that have few."""
    for name, parts in PARTS.items():
        yield from turn(section, RegulariseSpec(), {name: [part for part, _ in parts]})
        for part, others in parts:
            whole = RegulariseSpec.model_validate({name: part})
            yield from turn(section, whole, {f"{name}.{key}": to for key, to in others.items()})
            yield from of_curves(section, name, whole)


WITNESSES = tuple(witnesses("regularise"))


def minimised(spec: RegulariseSpec) -> float:
    """The objective of one step of a small language model."""
    return found_by(start(replace(case(), regularise=spec)), "torch").objective


def test_every_key_and_every_choice_has_a_witness() -> None:
    assert unproven("regularise", WITNESSES) == set()


@pytest.mark.parametrize("pair", [p for p in WITNESSES if ".strength" not in p.key], ids=str)
def test_a_key_changes_what_is_minimised(pair: Witness[RegulariseSpec]) -> None:
    one, other = (minimised(spec) for spec in (pair.before, pair.after))
    assert abs(one - other) > RESPONSE * abs(one)


@pytest.mark.parametrize("name", PARTS)
def test_a_curve_changes_the_strength_of_its_part(name: str) -> None:
    for pair in WITNESSES:
        if ".strength" in pair.key and pair.key.startswith(f"regularise.{name}"):
            one, other = (getattr(spec, name) for spec in (pair.before, pair.after))
            assert strengths(one) != strengths(other), pair.key
