"""The list of parameters, rendered from the Specs themselves."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from models.spec import Spec
from optim.schedules import Schedule
from tasks.params import Params


@dataclass(frozen=True)
class Parameter:
    """One key of `params.yaml`.

    Attributes:
        key: dotted path; a variant's keys carry its kind, `model.positions[rope].base`, and those
            of a list's entries a star, `model.overrides[*].layer`.
        type: the values it takes.
        default: as JSON, or `required`.
        meaning: one line, with the unit where there is one.
        choices: the values of a key that has only these.
    """

    key: str
    type: str
    default: str
    meaning: str
    choices: tuple[str, ...] = ()


# A curve may stand in many places; its keys are told in one.
CURVES_STAND_AT = "optim.schedule.curve"


def parameters() -> tuple[Parameter, ...]:
    """Every parameter of `params.yaml`, in its order."""
    return tuple(_of(Params, ""))


def _of(spec: type[Spec], path: str) -> Iterator[Parameter]:
    for name, field in spec.model_fields.items():
        key = f"{path}.{name}" if path else name
        variants = specs_of(field)
        if not variants:
            if name != "kind":
                meaning, choices = field.description or "", _choices(field)
                yield Parameter(key, _type(field), _default(field), meaning, choices)
                yield from _entries(field, key)
            continue
        if len(variants) == 1 and "kind" not in variants[0].model_fields:
            if type(None) in _parts(field.annotation):
                meaning = field.description or ""
                yield Parameter(key, "section | null", _default(field), meaning)
            yield from _of(variants[0], key)
            continue
        options = {kind: part for part in variants for kind in kinds(part)}
        choices = (*options, *("null" for part in _parts(field.annotation) if part is type(None)))
        meaning = field.description or "; ".join(
            f"{kind}: {(part.__doc__ or '').strip().splitlines()[0]}"
            for kind, part in options.items()
        )
        if variants == CURVES and key != CURVES_STAND_AT:
            meaning = f"{field.description}; keys as in {CURVES_STAND_AT}"
            yield Parameter(f"{key}.kind", " | ".join(choices), _kind(field), meaning, choices)
            continue
        yield Parameter(f"{key}.kind", " | ".join(choices), _kind(field), meaning, choices)
        for part in dict.fromkeys(options.values()):
            yield from _of(part, f"{key}[{'|'.join(kinds(part))}]")


def _entries(field: FieldInfo, path: str) -> Iterator[Parameter]:
    """The keys of a list's entries; sections inside them are explained where they stand alone."""
    for part in _parts(field.annotation):
        for entry in get_args(part) if get_origin(part) is tuple else ():
            for name, own in entry.model_fields.items() if _is_spec(entry) else ():
                meaning, choices = own.description or "", _choices(own)
                yield Parameter(f"{path}[*].{name}", _type(own), _default(own), meaning, choices)


def _parts(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for argument in get_args(annotation) for part in _parts(argument)]
    return [annotation]


def _is_spec(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, Spec)


def specs_of(field: FieldInfo) -> list[type[Spec]]:
    """The sections that a field may hold."""
    return [part for part in _parts(field.annotation) if _is_spec(part)]


def kinds(spec: type[Spec]) -> tuple[str, ...]:
    """The values of `kind` that choose a section."""
    return tuple(str(kind) for kind in get_args(spec.model_fields["kind"].annotation))


CURVES = specs_of(Schedule.model_fields["curve"])


def _choices(field: FieldInfo) -> tuple[str, ...]:
    parts = _parts(field.annotation)
    values = [str(value) for part in parts for value in get_args(part)]
    return tuple(values) if all(get_origin(part) is Literal for part in parts) else ()


def _kind(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    return "null" if default is None else str(default.kind)


def _type(field: FieldInfo) -> str:
    names = []
    for part in _parts(field.annotation):
        if get_origin(part) is Literal:
            names += [str(value) for value in get_args(part)]
        elif part is type(None):
            names.append("null")
        elif _is_spec(part):
            names += ["section"] if "section" not in names else []
        elif get_origin(part) is tuple:
            names.append("list of " + get_args(part)[0].__name__)
        else:
            names.append(part.__name__)
    bounds = [
        f"{sign} {getattr(rule, attribute)}"
        for rule in field.metadata
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(rule, attribute, None) is not None
    ]
    return " | ".join(names) + (f" ({', '.join(bounds)})" if bounds else "")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, Spec):
        return str(getattr(field.default, "kind", "section"))
    return "null" if field.default is None else str(field.default).lower()
