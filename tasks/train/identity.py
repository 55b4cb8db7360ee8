"""What makes two training runs the same run: only then may one go on from the other's checkpoint.

Backend, workers and ZeRO stage are left out on purpose, so that a run may be resumed in the other
framework or on another number of workers; so is how often a run logs, validates and saves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import optim
import tasks
from models.record import digest_of
from models.spec import ModelSpec
from optim.spec import OptimSpec
from tasks.train.augment_spec import AugmentSpec
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.spec import TrainSpec

Identity = dict[str, Any]

# Fields of `train` that decide what the weights become.
TRAIN_FIELDS = (
    "steps",
    "batch",
    "seed",
    "precision",
    "loss_scale",
    "bad_numbers",
)

# Fields of `train` that decide where a run ends, or which state is its result, if one is chosen.
CHOOSING_FIELDS = ("early_stopping", "validate_every_steps", "validation_batches")

# Code that decides what the weights become, relative to its package.
CODE = {
    models: (
        "spec/*.py",
        "weights.py",
        "random.py",
        "capacity.py",
        "curves.py",
        "dropout.py",
        "positions.py",
        "scores.py",
        "stretches.py",
        "flax/**/*.py",
        "torch/**/*.py",
    ),
    optim: ("*.py", "native/*.py", "native/*.c", "native/*.h", "flax/**/*.py", "torch/**/*.py"),
    tasks: (
        "prepare/arrays.py",
        "prepare/batch.py",
        "prepare/by_length.py",
        "prepare/dataset.py",
        "prepare/draw.py",
        "prepare/order.py",
        "prepare/packing.py",
        "train/*.py",
    ),
}


def run_identity(
    model: ModelSpec,
    optim: OptimSpec,
    train: TrainSpec,
    augment: AugmentSpec = AugmentSpec(),
    regularise: RegulariseSpec = RegulariseSpec(),
    *,
    data: str,
) -> Identity:
    """Every value that the result depends on, by its dotted name in `params.yaml`.

    Args:
        data: digest of the DataManifest.

    >>> from models.presets import tiny_language
    >>> from models.spec import ConstantCurve
    >>> from optim.schedules import Schedule
    >>> from optim.rules import AdamW
    >>> schedule = Schedule(peak=1e-3, curve=ConstantCurve())
    >>> optim = OptimSpec(rule=AdamW(), schedule=schedule)
    >>> train = TrainSpec(backend="flax", steps=10, batch=4)
    >>> run_identity(tiny_language(), optim, train, data="abc")["optim.schedule.peak"]
    0.001
    """
    fields = train.model_dump(mode="json")
    choosing: Identity = {}
    if train.checkpoint.best or train.early_stopping is not None:
        choosing |= dict(_flatten("train", {name: fields[name] for name in CHOOSING_FIELDS}))
        choosing["train.checkpoint.best"] = train.checkpoint.best
    return {
        **dict(_flatten("model", model.model_dump(mode="json"))),
        **dict(_flatten("optim", optim.model_dump(mode="json"))),
        **dict(_flatten("augment", augment.model_dump(mode="json"))),
        **dict(_flatten("regularise", regularise.model_dump(mode="json"))),
        **dict(_flatten("train", {name: fields[name] for name in TRAIN_FIELDS})),
        **choosing,
        "data": data,
        "code": code_digest(),
    }


def identity_digest(identity: Identity) -> str:
    """SHA-256 of an identity, 64 hex digits; names the run's scratch folder."""
    return digest_of(identity)


def differences(held: Identity, asked: Identity) -> list[str]:
    """What differs, one `name: held -> asked` each; empty for the same run.

    >>> differences({"train.seed": 0, "data": "a"}, {"train.seed": 1, "data": "a"})
    ['train.seed: 0 -> 1']
    """
    return [
        f"{name}: {held.get(name, 'absent')} -> {asked.get(name, 'absent')}"
        for name in changed_names(held, asked)
    ]


def changed_names(held: Identity, asked: Identity) -> list[str]:
    """Names whose values differ, sorted.

    >>> changed_names({"train.seed": 0, "data": "a"}, {"train.seed": 1, "code": "b"})
    ['code', 'data', 'train.seed']
    """
    return sorted(
        name
        for name in held.keys() | asked.keys()
        if name not in held or name not in asked or held[name] != asked[name]
    )


def code_digest() -> str:
    """SHA-256 over the source of everything that decides what the weights become."""
    digest = hashlib.sha256()
    for package, patterns in CODE.items():
        root = Path(package.__path__[0])
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            digest.update(f"{package.__name__}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}", inner)
    else:
        yield name, value
