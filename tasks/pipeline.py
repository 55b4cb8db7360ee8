"""The pure stages: what each one is called with. `dvc.yaml` declares the same reads and writes.

Both drivers go through this table. A function here only passes arguments on; a test compares what
it names with the stage's entry in `dvc.yaml`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.params import Params
from tasks.places import Places
from tasks.progress import Progress
from tasks.stage import Verb

if TYPE_CHECKING:
    from tasks.evaluate.parts import FanOut


def _snapshot(params: Params, places: Places, progress: Progress) -> object:
    from tasks.snapshot import snapshot

    return snapshot(
        params.data.source,
        task=params.data.task,
        out=places.snapshot,
        root=places.root,
        progress=progress,
    )


def _prepare(params: Params, places: Places, progress: Progress) -> object:
    from tasks.prepare import prepare

    return prepare(params.data, snapshot=places.snapshot, out=places.data, progress=progress)


def _train(params: Params, places: Places, progress: Progress) -> object:
    from tasks.train import train

    return train(
        params.model,
        params.optim,
        params.train,
        params.augment,
        params.regularise,
        data=places.data,
        out=places.model,
        report=places.training,
        curves=places.curves,
        page=places.training_page,
        scratch=places.scratch,
        progress=progress,
    )


def _champion(params: Params, places: Places, progress: Progress) -> object:
    from tasks.champion import name_champion

    return name_champion(params.registry, root=places.root, model=places.model, out=places.champion)


def evaluate_stage(
    params: Params, places: Places, progress: Progress, *, fan_out: FanOut = map
) -> object:
    """The stage `evaluate`; a flow gives a `fan_out` that spreads its parts over workers."""
    from tasks.evaluate import evaluate

    return evaluate(
        params.evaluate,
        params.registry,
        root=places.root,
        backend=params.train.backend,
        model=places.model,
        data=places.data,
        champion=places.champion,
        curves=places.curves,
        out=places.evaluation,
        scores=places.scores,
        fan_out=fan_out,
        progress=progress,
    )


def _gate(params: Params, places: Places, progress: Progress) -> object:
    from tasks.gate import gate

    return gate(
        params.gate,
        evaluation=places.evaluation,
        champion=places.champion,
        out=places.verdict,
        seed=params.train.seed,
    )


STAGES: dict[str, Verb] = {
    "snapshot": _snapshot,
    "prepare": _prepare,
    "train": _train,
    "champion": _champion,
    "evaluate": evaluate_stage,
    "gate": _gate,
}
