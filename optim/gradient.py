"""What is done to a gradient before the rule sees it: the `optim.gradient` section.

The order is fixed. First the whole: the gradient is the mean over the step's scored targets; a
step whose norm is no number, or a spike, is left out; the global norm is clipped. Then each weight
for itself: values are clipped, gradients centred, units and weights clipped, noise added. So the
norm that is reported, remembered, judged and clipped by is one and the same.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.spec import Spec


class SkipSpikes(Spec):
    """Leave out a step whose norm is far above those before it; weights and slots stay."""

    times: float = Field(10.0, gt=1, description="a norm above this many medians is a spike")
    window: int = Field(100, ge=1, description="norms that the median is of, the newest")
    after: int = Field(20, ge=1, description="norms that must be known before one is a spike")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.after > self.window:
            raise ValueError(
                "optim.gradient.skip.after must be at most its window, or no step is ever "
                f"judged; got after={self.after}, window={self.window}."
            )
        return self


class ClipNorm(Spec):
    """Scale the gradient to a norm of at most `limit` (Pascanu et al. 2013, arXiv:1211.5063)."""

    kind: Literal["norm"] = "norm"
    limit: float = Field(1.0, gt=0, description="largest global norm")


class ClipPercentile(Spec):
    """Scale the gradient to a percentile of its norms so far (AutoClip, arXiv:2007.14469).

    Seetharaman et al. 2020 take the percentile over all norms, the present one included; here it
    is over a window of those before, so that the limit is known when the step begins. A spike
    counts as `spike` medians at most and cannot lift the limit for long.
    """

    kind: Literal["percentile"] = "percentile"
    percentile: float = Field(10.0, ge=0, le=100, description="of the norms, 0..100")
    window: int = Field(1000, ge=1, description="norms that it is taken of, the newest")
    first: float = Field(1.0, gt=0, description="limit of the first step")
    spike: float = Field(10.0, gt=1, description="a norm counts as at most this many medians")


Clip = Annotated[ClipNorm | ClipPercentile, Field(discriminator="kind")]


class ClipUnits(Spec):
    """Adaptive clipping: a unit's gradient is at most a share of the unit's weights.

    Brock et al. 2021, arXiv:2102.06171, eq. 3: rows of matrices, whole vectors; the head, their
    last layer, is left alone.
    """

    ratio: float = Field(0.01, gt=0, description="largest norm, as a share of the weights' norm")
    epsilon: float = Field(1e-3, gt=0, description="smallest norm that weights count with")


class Noise(Spec):
    """Gaussian noise that fades (Neelakantan et al. 2015, arXiv:1511.06807, eq. 1).

    Its variance at step t is ``variance / (1 + t)^decay``.
    """

    variance: float = Field(0.01, gt=0, description="of the first step")
    decay: float = Field(0.55, ge=0, description="how fast the variance falls; 0 keeps it")
    seed: int = Field(0, ge=0, lt=2**32, description="of the noise alone")


class GradientSpec(Spec):
    """Stages in the order in which they act; what is null or false does nothing."""

    skip: SkipSpikes | None = Field(None, description="leave out steps with a spike")
    clip: Clip | None = Field(ClipNorm(), description="the global norm")
    clip_value: float | None = Field(None, gt=0, description="largest size of a value")
    centralize: bool = Field(
        False, description="rows of matrices have a mean of zero (Yong et al. 2020, 2004.01461)"
    )
    clip_units: ClipUnits | None = Field(None, description="adaptive, unit by unit")
    clip_weight_norm: float | None = Field(
        None, gt=0, description="largest norm of one weight's gradient"
    )
    noise: Noise | None = Field(None, description="added last")

    @model_validator(mode="after")
    def _one_bound_a_weight(self) -> Self:
        if self.clip_units is not None and self.clip_weight_norm is not None:
            raise ValueError(
                "optim.gradient.clip_units and optim.gradient.clip_weight_norm both bound the "
                "gradient of one weight, and the tighter would hide the other; set one to null."
            )
        return self

    @property
    def shapes(self) -> bool:
        """Whether a weight's gradient is changed by more than a common factor."""
        return self.clip_value is not None or self.needs_whole is not None

    @property
    def needs_whole(self) -> str | None:
        """The first stage that must see whole weights; None where slices of them do."""
        if self.centralize:
            return "centralize"
        for stage in ("clip_units", "clip_weight_norm", "noise"):
            if getattr(self, stage) is not None:
                return stage
        return None
