"""How a run is kept, gone on with, ended and watched: sections of `train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.spec import Spec


class CheckpointSpec(Spec):
    """When the state is saved so that a killed run goes on."""

    every_steps: int = Field(50, ge=1, description="steps between two checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints that stay on disk")
    best: bool = Field(
        False,
        description="also save and keep the state with the lowest validation loss, "
        "and finish with its weights",
    )


class GoOn(Spec):
    """Go on from this run's newest checkpoint; a new run starts at step 0 and says so."""

    kind: Literal["auto"] = "auto"


class Require(Spec):
    """Refuse to start at step 0; the message names what differs from the runs that are there."""

    kind: Literal["require"] = "require"


class Fresh(Spec):
    """Start at step 0; what this run has saved is put aside."""

    kind: Literal["fresh"] = "fresh"


class Across(Spec):
    """Go on from a run that differs in these fields and in no other; both runs say so."""

    kind: Literal["across"] = "across"
    fields: tuple[str, ...] = Field(
        min_length=1,
        description="names that may differ, or what they begin with: `code`, `data`, `optim`",
    )


Resume = GoOn | Require | Fresh | Across


class EarlyStopping(Spec):
    """End a run whose validation loss no longer falls."""

    patience: int = Field(ge=1, description="validations in a row without a better one, then stop")
    least_change: float = Field(0.0, ge=0, description="nats by which a better one is lower")


class ProfileSpec(Spec):
    """Trace some steps with the framework's own profiler."""

    start: int = Field(ge=0, description="first step that is traced, counted from 0")
    steps: int = Field(5, ge=1, description="how many are traced")
