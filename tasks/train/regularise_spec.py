"""What training minimises besides the cost of its targets: the `regularise` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.spec import ConstantCurve, Curve, Spec

# Where a disturbance may lie: its length, or its largest value, is at most the radius.
Ball = Literal["euclidean", "maximum"]


class Fgm(Spec):
    """The cost at ``x + radius g / |g|``, with g the gradient of a sample's cost, is added.

    Source: Miyato et al. 2017, arXiv:1605.07725, section 3; ``ball: maximum``, ``radius sign(g)``,
    is Goodfellow et al. 2015, arXiv:1412.6572, section 4. Embeddings are not normalised first, so
    the radius is in their own units.
    """

    kind: Literal["fgm"] = "fgm"
    radius: float = Field(gt=0, description="size of the disturbance of a sample")
    ball: Ball = Field("euclidean", description="what is measured: length, or largest value")
    weight: float = Field(1.0, gt=0, description="of the cost of the disturbed sample")
    strength: Curve = Field(ConstantCurve(), description="multiplies the weight, step by step")


class Pgd(Spec):
    """The cost at the worst of several steps inside a ball, instead of the clean one.

    Source: Madry et al. 2018, arXiv:1706.06083, eq. 2.1 and section 2.1, with
    ``ball: maximum, share: 1``. Each step goes up the gradient by `step` and back into the ball.
    Pixels may leave 0..1.
    """

    kind: Literal["pgd"] = "pgd"
    radius: float = Field(gt=0, description="of the ball around a sample")
    ball: Ball = Field("maximum", description="what is measured: length, or largest value")
    step: float = Field(gt=0, description="length of a step, measured likewise")
    steps: int = Field(3, ge=1, description="gradients that are computed")
    start: Literal["zero", "random"] = Field("random", description="first place in the ball")
    share: float = Field(1.0, gt=0, le=1, description="of the disturbed in the cost; rest: clean")
    strength: Curve = Field(ConstantCurve(), description="multiplies the share, step by step")


class Vat(Spec):
    """``KL(p(x) || p(x + r))`` is added, where r is the direction that changes p most.

    Source: Miyato et al. 2018, arXiv:1704.03976, eq. 5-8 and algorithm 1: p(x) is a constant, and
    power iteration finds r from gradients at ``x + probe d``. The first d is uniform instead of
    normal in each value, for both frameworks to draw the same. The disturbance has the dropout
    of the clean pass; the divergence is summed over scored targets.
    """

    kind: Literal["vat"] = "vat"
    radius: float = Field(gt=0, description="length of the disturbance of a sample")
    probe: float = Field(1e-2, gt=0, description="length at which the direction is searched, xi")
    steps: int = Field(1, ge=1, description="power iterations")
    weight: float = Field(1.0, gt=0, description="of the divergence")
    strength: Curve = Field(ConstantCurve(), description="multiplies the weight, step by step")


Adversarial = Annotated[Fgm | Pgd | Vat, Field(discriminator="kind")]


class RDrop(Spec):
    """Two passes with different dropout: the mean of their costs, and how far they are apart.

    ``(cost1 + cost2) / 2 + weight (KL(p1 || p2) + KL(p2 || p1)) / 2`` for each scored target: half
    of Liang et al. 2021, arXiv:2106.14448, eq. 4, so that its size is a plain step's. `weight` is
    half of the paper's alpha.
    """

    kind: Literal["r_drop"] = "r_drop"
    weight: float = Field(1.0, gt=0, description="of the divergence")
    strength: Curve = Field(ConstantCurve(), description="multiplies the weight, step by step")


class TwoView(Spec):
    """``KL(p(first view) || p(second view))`` is added; the first view is a constant in it.

    Views differ in augmentation and dropout (Xie et al. 2020, arXiv:1904.12848, eq. 1).
    """

    kind: Literal["two_view"] = "two_view"
    weight: float = Field(1.0, gt=0, description="of the divergence")
    strength: Curve = Field(ConstantCurve(), description="multiplies the weight, step by step")


class MeanTeacher(Spec):
    """How far the model is from the average of its own past weights is added.

    The teacher has dropout, and a view where there is a second one, of its own; it is a constant
    (Tarvainen & Valpola 2017, arXiv:1703.01780, section 2). `squared` is the mean over classes of
    the squared difference of chances, as there; `divergence` is ``KL(teacher || student)``.
    """

    kind: Literal["mean_teacher"] = "mean_teacher"
    distance: Literal["squared", "divergence"] = Field("squared", description="of two answers")
    weight: float = Field(1.0, gt=0, description="of the distance")
    strength: Curve = Field(ConstantCurve(), description="multiplies the weight, step by step")


Consistency = Annotated[RDrop | TwoView | MeanTeacher, Field(discriminator="kind")]


class RegulariseSpec(Spec):
    """What is minimised besides; both parts may be there at once."""

    adversarial: Adversarial | None = Field(None, description="samples that are disturbed")
    consistency: Consistency | None = Field(None, description="answers that are to be alike")
