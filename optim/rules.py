"""The rules that update a weight: what each is called, what it needs, what its numbers mean.

Equations stand in `optim.reference`, one file a rule. Defaults are the papers'; where libraries
differ the docstring says so. Every `decay` is a share of the rate, as in AdamW, unless a docstring
says otherwise, and every `beta` is the share of an average that stays.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.spec import Spec

Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0)]


class Sgd(Spec):
    """Stochastic gradient descent with momentum.

    Sutskever et al. 2013, eq. 1-4, in the form of `torch.optim.SGD` and `optax.sgd`: the velocity
    sums gradients and the rate multiplies it afterwards; in the paper the rate of its own step is
    inside the sum. With one rate the two are the same.
    """

    kind: Literal["sgd"] = "sgd"
    momentum: Beta = Field(0.9, description="share of the velocity that stays; 0 keeps no slot")
    nesterov: bool = Field(False, description="look ahead along the velocity")
    decay: Share = Field(0.0, description="weight decay of matrices")
    decoupled: bool = Field(
        False, description="decay the weight (SGDW), and not add decay * weight to the gradient"
    )

    @property
    def elementwise(self) -> bool:
        """Whether slices of weights may be updated by themselves."""
        return True


class AdamW(Spec):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101, alg. 2).

    `decay` multiplies the rate, as in `torch.optim.AdamW` and `optax.adamw`; their defaults for it
    differ (1e-2 and 1e-4), ours is stated here. The paper's `beta2` is 0.999; 0.95 is what
    language models are trained with (Brown et al. 2020, arXiv:2005.14165, appendix B).
    """

    kind: Literal["adamw"] = "adamw"
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    decay: float = Field(0.1, ge=0, description="weight decay of matrices, times the rate")
    bias_correction: bool = Field(True, description="divide moments by the share they have seen")
    decoupled: bool = Field(True, description="false: add decay * weight to the gradient (Adam)")
    cautious: bool = Field(
        False, description="drop what points against the gradient (arXiv:2411.16085, alg. 1)"
    )

    @property
    def elementwise(self) -> bool:
        """Caution counts the values that it keeps in a whole weight."""
        return not self.cautious


class Lion(Spec):
    """Sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, program 1).

    Every value moves by the rate, so rates are 3 to 10 times smaller than AdamW's and decays as
    much larger; the default is the paper's for ViT-S on ImageNet. `optax.lion` has 1e-3.
    """

    kind: Literal["lion"] = "lion"
    beta1: Beta = Field(0.9, description="share of the momentum in the step")
    beta2: Beta = Field(0.99, description="share of the momentum that stays")
    decay: Share = Field(1.0, description="weight decay of matrices, times the rate")
    cautious: bool = Field(False, description="as in adamw")

    @property
    def elementwise(self) -> bool:
        """Caution counts the values that it keeps in a whole weight."""
        return not self.cautious


class Adan(Spec):
    """Adaptive Nesterov momentum (Xie et al. 2022, arXiv:2208.06677, algorithm 1, no restarts).

    The paper's betas are one minus ours. `optax.adan` weights the difference of gradients by one
    minus our `beta2`, 0.08, where the paper and its authors' code have 0.92.
    """

    kind: Literal["adan"] = "adan"
    beta1: Beta = Field(0.98, description="decay of the gradient's average")
    beta2: Beta = Field(0.92, description="decay of the average difference of gradients")
    beta3: Beta = Field(0.99, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    decay: Share = Field(0.02, description="weight decay of matrices, times the rate")
    proximal: bool = Field(
        True, description="divide by 1 + rate * decay after the step, not multiply before it"
    )
    start: Literal["first_gradient", "bias_correction"] = Field(
        "first_gradient",
        description="averages begin at the first gradient (paper), or at zero and are corrected "
        "(its authors' code, timm, optax)",
    )

    @property
    def elementwise(self) -> bool:
        """Whether slices of weights may be updated by themselves."""
        return True


class SophiaG(Spec):
    """Sophia with the Gauss-Newton-Bartlett estimate (Liu et al. 2023, arXiv:2305.14342, alg. 3).

    The authors' code has this estimate with gamma 0.05 under another name (`rho`, times the
    tokens of a batch) and adds 1e-15 where the paper takes a maximum with 1e-12.
    """

    kind: Literal["sophia_g"] = "sophia_g"
    beta1: Beta = Field(0.96, description="decay of the gradient's average")
    beta2: Beta = Field(0.99, description="decay of the curvature's average")
    gamma: float = Field(0.05, gt=0, description="share of the curvature that divides")
    epsilon: float = Field(1e-12, gt=0, description="smallest divisor")
    clip: float = Field(1.0, gt=0, description="largest step of a value, in rates")
    decay: Share = Field(0.2, description="weight decay of matrices, times the rate")
    every_steps: int = Field(10, ge=1, description="steps from one estimate to the next")

    @property
    def elementwise(self) -> bool:
        """Whether slices of weights may be updated by themselves."""
        return True


class SophiaH(Spec):
    """Sophia with Hutchinson's estimate (Liu et al. 2023, arXiv:2305.14342, algorithms 1 and 3).

    `optax.contrib.sophia` and Levanter have this estimate under the plain name; optax corrects the
    bias of the gradient's average and uses an estimate from the next step on only.
    """

    kind: Literal["sophia_h"] = "sophia_h"
    beta1: Beta = Field(0.96, description="decay of the gradient's average")
    beta2: Beta = Field(0.99, description="decay of the curvature's average")
    gamma: float = Field(0.01, gt=0, description="share of the curvature that divides")
    epsilon: float = Field(1e-12, gt=0, description="smallest divisor")
    clip: float = Field(1.0, gt=0, description="largest step of a value, in rates")
    decay: Share = Field(0.2, description="weight decay of matrices, times the rate")
    every_steps: int = Field(10, ge=1, description="steps from one estimate to the next")
    probe: Literal["normal", "rademacher"] = Field(
        "normal", description="values of the random direction; signs alone have less variance"
    )

    @property
    def elementwise(self) -> bool:
        """Whether slices of weights may be updated by themselves."""
        return True


class ScheduleFree(Spec):
    """Schedule-Free AdamW (Defazio et al. 2024, arXiv:2405.15682, algorithm 1).

    Give it a schedule of warm-up and a constant. What is trained is the paper's y; models are
    judged and published by its average x, which `averaged` of the twins computes. The authors'
    code weights the average by the largest rate so far, the paper by the present one.
    """

    kind: Literal["schedule_free"] = "schedule_free"
    beta1: float = Field(0.9, gt=0, lt=1, description="share of the average in what is trained")
    beta2: Beta = Field(0.999, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    decay: Share = Field(0.0, description="weight decay of matrices at y, times the rate")
    rate_power: Share = Field(2.0, description="a step counts in the average as rate ** this")
    step_power: Share = Field(0.0, description="and as its number ** this")

    @property
    def elementwise(self) -> bool:
        """Whether slices of weights may be updated by themselves."""
        return True


class Adafactor(Spec):
    """Adam with a factored second moment (Shazeer & Stern 2018, arXiv:1804.04235, alg. 4 and 5).

    The schedule's rate is the paper's relative step size. `optax` factors from sides of 128 on
    and `torch.optim.Adafactor` has epsilon1 = None; the paper factors every matrix.
    """

    kind: Literal["adafactor"] = "adafactor"
    decay_power: float = Field(0.8, gt=0, lt=1, description="beta2 of step t is 1 - t ** -this")
    epsilon1: float = Field(1e-30, gt=0, description="added to squared gradients")
    epsilon2: float = Field(1e-3, gt=0, description="smallest root mean square of a weight")
    clip: float = Field(1.0, gt=0, description="largest root mean square of an update")
    relative: bool = Field(True, description="steps are in proportion to the weight")
    beta1: Beta = Field(0.0, description="decay of the updates' average; 0 keeps no slot")
    least_side: int = Field(2, ge=1, description="matrices with a shorter side are not factored")
    decay: Share = Field(0.0, description="weight decay of matrices, times the rate")

    @property
    def elementwise(self) -> bool:
        """It needs rows, columns and the mean square of whole weights."""
        return False


MatrixRole = Literal["matrix", "router", "head", "embedding"]


class Fallback(Spec):
    """What updates the weights that a matrix rule leaves."""

    rule: AdamW = Field(AdamW(), description="their rule, with a decay of its own")
    rate: float = Field(1.0, gt=0, description="their rate as a share of the schedule's")


class NewtonSchulz(Spec):
    """The iteration X <- a X + (b A + c A^2) X with A = X X^T, which drives singular values to 1.

    The default's coefficients are steep at 0 and leave singular values in about 0.7..1.2; the
    cubic ones (1.5, -0.5, 0) converge to 1 itself, in more steps.
    """

    steps: int = Field(5, ge=1, le=100, description="iterations")
    a: float = Field(3.4445, description="coefficient of X")
    b: float = Field(-4.7750, description="coefficient of A X")
    c: float = Field(2.0315, description="coefficient of A^2 X")
    epsilon: float = Field(1e-7, gt=0, description="added to the norm that X is divided by")


class Muon(Spec):
    """Orthogonalised momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    For hidden matrices; the rest goes to `fallback`. `scale` is the post's, sqrt(max(1, out / in)),
    or that of Liu et al. 2025 (arXiv:2502.16982, eq. 4), 0.2 sqrt(max(out, in)), with which rates
    and decays of AdamW carry over: set `fallback.rate` to 1 there. Iterates in the arithmetic's
    own precision, where the post's code and `torch.optim.Muon` round to bfloat16; `optax` corrects
    biases as NAdam does where it looks ahead.
    """

    kind: Literal["muon"] = "muon"
    momentum: Beta = Field(0.95, description="share of the velocity that stays")
    nesterov: bool = Field(True, description="look ahead along the velocity")
    newton_schulz: NewtonSchulz = NewtonSchulz()
    scale: Literal["spectral", "rms"] = Field("spectral", description="size of a step")
    decay: Share = Field(0.0, description="weight decay of matrices, times the rate")
    roles: tuple[MatrixRole, ...] = Field(("matrix",), min_length=1, description="what it takes")
    fallback: Fallback = Field(
        Fallback(rate=0.015), description="for the rest; the post has 3e-4 beside 0.02"
    )

    @property
    def elementwise(self) -> bool:
        """It needs whole matrices."""
        return False


class Soap(Spec):
    """Adam in the eigenbasis of Shampoo (Vyas et al. 2024, arXiv:2409.11321, algorithms 3 and 4).

    Bases start at the identity, so that the first step is Adam's, and are refined by one QR step
    from the first gradient on; the authors' code skips the first step and takes `eigh` there.
    `damping` is ours: without it the basis of directions that no gradient has touched would be
    rounding noise. It moves no eigenvector.
    """

    kind: Literal["soap"] = "soap"
    beta1: Beta = Field(0.95, description="decay of the first moment")
    beta2: Beta = Field(0.95, description="decay of the second moment, in the basis")
    shampoo_beta: Beta = Field(0.95, description="decay of the two covariances")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    bias_correction: bool = Field(True, description="divide moments by the share they have seen")
    every_steps: int = Field(10, ge=1, description="steps from one basis to the next")
    largest_side: int = Field(10_000, ge=1, description="longer sides are not rotated")
    damping: float = Field(1e-5, gt=0, description="share of the mean eigenvalue added to all")
    decay: Share = Field(0.01, description="weight decay of matrices, times the rate")
    roles: tuple[MatrixRole, ...] = Field(("matrix",), min_length=1, description="what it takes")
    fallback: Fallback = Field(
        Fallback(rule=AdamW(beta1=0.95, beta2=0.95, decay=0.01)), description="for the rest"
    )

    @property
    def elementwise(self) -> bool:
        """It needs whole matrices."""
        return False


# What updates one weight by itself.
AnyRule = Sgd | AdamW | Lion | Adan | SophiaG | SophiaH | ScheduleFree | Adafactor | Muon | Soap
Rule = Annotated[AnyRule, Field(discriminator="kind")]


def why_whole(rule: AnyRule) -> str | None:
    """Why a rule must see whole weights; None where it may be given flattened slices."""
    if rule.elementwise:
        return None
    match rule:
        case AdamW() | Lion():
            return "caution counts the values that it keeps in a whole weight"
        case Adafactor():
            return "it takes sums over rows and columns and the mean square of a whole weight"
        case _:
            return "it multiplies whole matrices"


def curvature_due(rule: AnyRule, *, step: int) -> bool:
    """Whether a rule wants an estimate of the curvature for this step, from 0."""
    return isinstance(rule, SophiaG | SophiaH) and step % rule.every_steps == 0
