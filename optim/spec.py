"""How weights are updated: gradient, rule, rate, average."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from models.spec import Curve, Spec
from optim.average import Average
from optim.gradient import GradientSpec
from optim.group_rule import GroupRule
from optim.rules import Rule
from optim.schedules import Schedule


class OptimSpec(Spec):
    """One optimizer step, and which weights it treats in another way."""

    rule: Rule
    schedule: Schedule
    gradient: GradientSpec = GradientSpec()
    decay_schedule: Curve | None = Field(None, description="multiplies every weight's decay")
    groups: tuple[GroupRule, ...] = Field(
        (), description="weights with a decay or rate of their own; the first that names one has it"
    )
    layer_decay: float | None = Field(
        None, gt=0, lt=1, description="each layer's rate as a share of the rate of the layer above"
    )
    average: Average | None = Field(
        None, description="of the weights over steps; the model is judged and published by it"
    )

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.average is not None and self.rule.kind == "schedule_free":
            raise ValueError(
                "optim.average must be null with optim.rule.kind=schedule_free, which judges a "
                f"model by an average of its own; got {self.average.kind}."
            )
        return self
