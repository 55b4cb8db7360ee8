"""What the host decides of regularisers, once for both frameworks."""

from __future__ import annotations

from typing import NamedTuple

from models.curves import share
from models.spec import ConstantCurve, DropoutSpec, ModelSpec
from tasks.train.augment_spec import AugmentSpec
from tasks.train.regularise_spec import RegulariseSpec


class Strengths(NamedTuple):
    """What multiplies the weights of a step's regularisers, 0..1; 1 where there is none."""

    adversarial: float = 1.0
    consistency: float = 1.0


def strengths_at(spec: RegulariseSpec, *, step: int, total_steps: int) -> Strengths:
    """The strengths of a training step.

    >>> strengths_at(RegulariseSpec(), step=3, total_steps=10)
    Strengths(adversarial=1.0, consistency=1.0)
    """
    return Strengths._make(
        1.0 if part is None else share(part.strength, step=step, total_steps=total_steps)
        for part in (spec.adversarial, spec.consistency)
    )


def looks_twice(spec: RegulariseSpec) -> bool:
    """Whether samples are to be shown in a second view: `tasks.train.augment.augment`'s `twice`."""
    return spec.consistency is not None and spec.consistency.kind != "r_drop"


def needs_teacher(spec: RegulariseSpec) -> bool:
    """Whether a pass with the averaged weights is compared: `optim.average` must be there."""
    return spec.consistency is not None and spec.consistency.kind == "mean_teacher"


def check_regularise(spec: RegulariseSpec, *, augment: AugmentSpec, model: ModelSpec) -> None:
    """Hold the section against what could make two passes differ.

    Raises:
        ValueError: two answers are compared that are always the same.
    """
    if spec.consistency is None or spec.consistency.kind == "mean_teacher":
        return
    anything = {"depth": "constant", "strength": ConstantCurve()}
    dropped = model.dropout.model_copy(update=anything) != DropoutSpec()
    if not dropped and (spec.consistency.kind == "r_drop" or augment == AugmentSpec()):
        views = "" if spec.consistency.kind == "r_drop" else " and augment no section"
        raise ValueError(
            f"regularise.consistency.kind={spec.consistency.kind} compares two passes that are "
            f"the same: model.dropout has no share{views}. Try model.dropout.residual=0.1."
        )
