"""What an optimizer may do where an engine hands out flattened slices of weights."""

from __future__ import annotations

from optim.rules import ScheduleFree, SophiaG, SophiaH, why_whole
from optim.spec import OptimSpec

REMEDY = "Try train.zero_stage=0, train.backend=flax, or train.workers=1"


def check_slices(optim: OptimSpec) -> None:
    """Refuse what needs more than slices (DeepSpeed's ZeRO 1 to 3 with several workers).

    Raises:
        ValueError: naming the key, what needs whole weights, and what works.
    """
    rule, reason = optim.rule, why_whole(optim.rule)
    if isinstance(rule, SophiaG | SophiaH):
        reason = "its curvature is estimated for whole weights"
    elif isinstance(rule, ScheduleFree):
        reason = "it keeps a number for each weight, and a slice is of several"
    if reason is not None:
        name = f"{rule.kind} with cautious: true" if rule.kind in ("adamw", "lion") else rule.kind
        raise ValueError(
            f"optim.rule.kind must be a rule that works value by value where train.zero_stage >= 1 "
            f"hands out flattened slices; got {name}, and {reason}. {REMEDY}, or "
            "optim.rule.kind=adamw."
        )
    stage = optim.gradient.needs_whole
    if stage is not None:
        raise ValueError(
            f"optim.gradient.{stage} needs whole weights, and train.zero_stage >= 1 hands out "
            f"flattened slices. {REMEDY}, or leave it out."
        )
