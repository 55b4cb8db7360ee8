"""Reads `params.yaml`: every section is one Spec, checked before any work starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from models.curves import check_length
from models.registry.spec import RegistrySpec
from models.spec import Curve, ModelSpec, Spec
from models.weights import weight_table
from optim.groups import plan
from optim.spec import OptimSpec
from serving.spec import RolloutSpec, ServingSpec
from tasks.evaluate.spec import EvaluateSpec
from tasks.prepare.fit import check_task
from tasks.prepare.spec import DataSpec
from tasks.train.augment import check_augment
from tasks.train.augment_spec import AugmentSpec
from tasks.train.compiling import check_compiled
from tasks.train.regularise import check_regularise, needs_teacher
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.sharing import check_sharing
from tasks.train.spec import TrainSpec


class GateSpec(Spec):
    """How sure the gate has to be: the `gate` section."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples of the documents")
    margin: float = Field(0.0, ge=0, description="loss that a challenger may give away, in units")


# Sections that may be empty but not absent: stages of dvc.yaml depend on them, and DVC refuses a
# file without them. The others have keys that are required anyway.
VERSIONED = ("augment", "regularise", "gate", "registry")


class Params(Spec):
    """`params.yaml` as a whole."""

    data: DataSpec
    model: ModelSpec
    optim: OptimSpec
    train: TrainSpec
    augment: AugmentSpec = AugmentSpec()
    regularise: RegulariseSpec = RegulariseSpec()
    evaluate: EvaluateSpec
    gate: GateSpec = GateSpec()
    registry: RegistrySpec = RegistrySpec()
    serving: ServingSpec = ServingSpec()
    rollout: RolloutSpec = RolloutSpec()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_task(self.data, self.model)
        language = self.data.task.kind == "language"
        if language != (self.evaluate.baseline.kind == "ngram"):
            raise ValueError(
                "evaluate.baseline.kind must be ngram for data.task.kind=language and logistic for "
                f"classes; got {self.evaluate.baseline.kind} for {self.data.task.kind}."
            )
        curves = {
            "optim.schedule.curve": self.optim.schedule.curve,
            "optim.decay_schedule": self.optim.decay_schedule,
            "model.dropout.strength": self.model.dropout.strength,
            **_strengths("augment", self.augment),
            **_strengths("regularise", self.regularise),
        }
        for key, curve in curves.items():
            if curve is not None:
                check_length(curve, key=key, total_steps=self.train.steps)
        plan(self.optim, weight_table(self.model))
        check_sharing(self.optim, self.train, self.regularise)
        check_compiled(self.model, self.train)
        check_augment(self.augment, self.model)
        check_regularise(self.regularise, augment=self.augment, model=self.model)
        if needs_teacher(self.regularise) and self.optim.average is None:
            raise ValueError(
                "regularise.consistency.kind=mean_teacher needs an average of the weights; got "
                "optim.average=null. Try optim.average.kind=ema."
            )
        return self

    @classmethod
    def read(cls, path: Path = Path("params.yaml")) -> Self:
        """Read and check a params file.

        Raises:
            ValueError: one line for each mistake: key, rule, value.
        """
        sections = read_yaml(path)
        absent = [name for name in VERSIONED if name not in sections]
        if absent:
            rule = "is required, if empty; add"
            raise ValueError("\n".join(f"{path}: {name} {rule} `{name}: {{}}`." for name in absent))
        return cls.parse(sections, where=str(path))

    @classmethod
    def parse(cls, sections: dict[str, Any], *, where: str) -> Self:
        """Check sections that are already in memory; `where` names them in errors."""
        try:
            return cls.model_validate_json(json.dumps(sections))
        except ValidationError as error:
            raise ValueError(_explain(error, where)) from None


def _strengths(section: str, spec: Spec) -> dict[str, Curve]:
    """The curves of a section's parts that are on."""
    parts = ((name, getattr(spec, name)) for name in type(spec).model_fields)
    return {f"{section}.{name}.strength": part.strength for name, part in parts if part is not None}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping, as DVC writes it: `1e-3` is a number."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; run from the project's root.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections, got {type(content).__name__}.")
    return content


def overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay the sections of one params file over those of another.

    Mappings merge key by key. A mapping of another `kind` replaces the old one as a whole, since
    the two have different keys; so does everything that is not a mapping.

    >>> overlay({"rule": {"kind": "adamw", "decay": 0.1}, "clip": 1.0}, {"rule": {"decay": 0.0}})
    {'rule': {'kind': 'adamw', 'decay': 0.0}, 'clip': 1.0}
    >>> overlay({"norm": {"kind": "layer", "epsilon": 1.0}}, {"norm": {"kind": "rms"}})
    {'norm': {'kind': 'rms'}}
    """
    merged = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if value.get("kind", old.get("kind")) == old.get("kind"):
                value = overlay(old, value)
        merged[key] = value
    return merged


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for mistake in error.errors(include_url=False):
        key = ".".join(str(part) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "value_error":
            lines.append(message)
        elif mistake["type"] == "extra_forbidden":
            lines.append(f"{key} is not a parameter; `tandem params` lists them.")
        elif mistake["type"] == "missing":
            lines.append(f"{key} is required; `tandem params` tells what it means.")
        else:
            lines.append(f"{key}: {message}; got {mistake['input']!r}.")
    return "\n".join(f"{where}: {line}" for line in lines)
