"""How each rule is run and tuned: one number, its peak, over one grid around a stated centre.

Everything else of a rule is its default in `optim.rules`, which is its paper's. All of them clip
the gradient at a global norm of 1 and warm up over a twentieth of the steps.
"""

from __future__ import annotations

from typing import NamedTuple

from models.spec import ConstantCurve, CosineCurve, Curve, LinearWarmup
from optim.gradient import ClipNorm, GradientSpec
from optim.rules import (
    Adafactor,
    AdamW,
    Adan,
    AnyRule,
    Fallback,
    Lion,
    Muon,
    ScheduleFree,
    Sgd,
    Soap,
    SophiaG,
    SophiaH,
)
from optim.schedules import Schedule
from optim.spec import OptimSpec

YARDSTICK = "adamw"
# The tuning budget: as many peaks for every rule, a factor of 3 apart, the centre in the middle.
GRID = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
WARMUP_SHARE = 1 / 20


class Recipe(NamedTuple):
    """A rule and where its peak is looked for.

    Attributes:
        centre: of the grid.
        why: where the centre comes from.
        falls: whether the rate falls along a cosine to a tenth; it stays at the peak otherwise.
    """

    rule: AnyRule
    centre: float
    why: str
    falls: bool = True


RECIPES: dict[str, Recipe] = {
    "adamw": Recipe(
        AdamW(), 3e-3, "between the presets of this project, 4e-3 for language, 2e-3 for images"
    ),
    "sgd": Recipe(Sgd(), 0.1, "what SGD with a momentum of 0.9 is used with (arXiv:1706.02677)"),
    "lion": Recipe(Lion(), 6e-4, "a fifth of AdamW's; the paper says 3 to 10 times smaller"),
    "adan": Recipe(Adan(), 9e-3, "three times AdamW's; the paper takes up to ten times"),
    "sophia_g": Recipe(SophiaG(), 2.4e-3, "0.8 of AdamW's; the authors advise slightly below it"),
    "sophia_h": Recipe(SophiaH(), 2.4e-3, "as sophia_g"),
    "schedule_free": Recipe(
        ScheduleFree(), 9e-3, "three times AdamW's; the authors say 1 to 10 times", falls=False
    ),
    "adafactor": Recipe(
        Adafactor(), 3e-2, "three times the paper's relative step size, which left text at the edge"
    ),
    "muon": Recipe(
        Muon(scale="rms", decay=0.1, fallback=Fallback()),
        9e-3,
        "three times AdamW's, which left both problems at the edge; decay and fallback are "
        "AdamW's, as they may be with scale=rms (arXiv:2502.16982)",
    ),
    "soap": Recipe(Soap(), 3e-3, "the paper's, and AdamW's"),
}


def peaks_of(rule: str) -> tuple[float, ...]:
    """The grid of a rule, rising.

    >>> peaks_of("adamw")
    (0.000333, 0.001, 0.003, 0.009, 0.027)
    """
    return tuple(float(f"{RECIPES[rule].centre * factor:.3g}") for factor in GRID)


def optim_of(rule: str, *, peak: float, steps: int) -> OptimSpec:
    """The whole optimizer of a run of so many steps."""
    recipe = RECIPES[rule]
    warmup = LinearWarmup(steps=max(1, round(steps * WARMUP_SHARE)))
    curve: Curve = CosineCurve(final_share=0.1, warmup=warmup)
    if not recipe.falls:
        curve = ConstantCurve(warmup=warmup)
    return OptimSpec(
        rule=recipe.rule,
        schedule=Schedule(peak=peak, curve=curve),
        gradient=GradientSpec(clip=ClipNorm(limit=1.0)),
    )
