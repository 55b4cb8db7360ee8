"""What a model is measured with: the `evaluate` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.spec import Spec


class NgramBaseline(Spec):
    """A byte model with interpolated Witten-Bell smoothing (Witten & Bell 1991)."""

    kind: Literal["ngram"] = "ngram"
    order: int = Field(5, ge=1, le=8, description="bytes of context plus one")


class LogisticBaseline(Spec):
    """Multinomial logistic regression on raw pixels or frames, or on counts of tokens."""

    kind: Literal["logistic"] = "logistic"
    penalty: float = Field(1.0, gt=0, description="strength of the squared penalty on weights")


Baseline = Annotated[NgramBaseline | LogisticBaseline, Field(discriminator="kind")]


class EvaluateSpec(Spec):
    """The test split, candidate by candidate, slice by slice."""

    baseline: Baseline
    batch: int = Field(16, ge=1, description="samples of one forward pass")
    max_documents: int | None = Field(
        None, ge=2, description="most test documents, chosen by hash; null for all"
    )
    max_slices: int = Field(12, ge=1, description="slices reported; the rest are pooled as other")
