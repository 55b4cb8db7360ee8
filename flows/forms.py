"""What a run can be asked for: the forms of the Prefect UI and the options of the command."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# The overlays in `params/`.
PresetName = Literal["language", "image", "frames", "text_classes"]


class TrainRequest(BaseModel):
    """A run of the pure stages up to the model. Changes are written into `params.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: PresetName | None = Field(
        None, description="overlay of params/ to put on params.yaml first"
    )
    backend: Literal["flax", "torch"] | None = Field(
        None, description="framework that trains; empty keeps what params.yaml says"
    )
    changes: dict[str, Any] = Field(
        default_factory=dict, description='other keys, for example {"train.steps": 1000}'
    )


class ReleaseRequest(TrainRequest):
    """A run of the whole pipeline."""

    reason: str = Field(
        "release", min_length=1, max_length=200, description="why, for the audit log"
    )


class RollbackRequest(BaseModel):
    """The champion's alias and all traffic go back to the champion before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(
        "rollback", min_length=1, max_length=200, description="why, for the audit log"
    )
