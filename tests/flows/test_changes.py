"""Changes to `params.yaml`: what a request asks for is what stands there, comments kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest

from flows.changes import apply_changes, parse_change
from flows.reference import parameters
from flows.forms import TrainRequest
from tasks.params import Params
from tests.flows.project import REPOSITORY
from tests.golden import Golden


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    return tmp_path


@pytest.mark.parametrize("preset", ["language", "image"])
def test_the_resolved_parameters_are_those_of_the_golden_text(
    root: Path, golden: Golden, preset: Literal["language", "image"]
) -> None:
    apply_changes(root, TrainRequest(preset=preset))
    resolved = Params.read(root / "params.yaml").model_dump(mode="json")
    golden.check(f"params.{preset}.json", json.dumps(resolved, indent=2) + "\n")


def test_one_line_changes_the_framework_and_nothing_else(root: Path) -> None:
    before = (root / "params.yaml").read_text().splitlines()
    told = apply_changes(root, TrainRequest(backend="flax"))
    after = (root / "params.yaml").read_text().splitlines()
    assert told == ('train.backend: "torch" -> "flax"',)
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1 and "# flax | torch" in changed[0][1]


def test_a_preset_and_back_gives_the_same_parameters(root: Path) -> None:
    before = Params.read(root / "params.yaml")
    apply_changes(root, TrainRequest(preset="image"))
    assert Params.read(root / "params.yaml").data.source.kind == "digits"
    apply_changes(root, TrainRequest(preset="language"))
    assert Params.read(root / "params.yaml") == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train.stepz": 3}, "train.stepz is not a parameter"),
        ({"trian.steps": 3}, "trian.steps is not a parameter"),
        ({"train.steps": "many"}, "train.steps"),
        ({"model.width": 100}, "model.width must be a multiple of model.attention.heads"),
        ({"optim.schedule.curve.warmup.steps": 9999}, "must be below train.steps"),
        ({"serving.host": "0.0.0.0"}, "serving.host must be a loopback address"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_and_nothing_is_written(
    root: Path, changes: dict[str, object], told: str
) -> None:
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(ValueError, match=told):
        apply_changes(root, TrainRequest(changes=changes))
    assert (root / "params.yaml").read_bytes() == before


def test_values_are_read_as_yaml_1_2() -> None:
    assert parse_change("optim.schedule.peak=1e-3") == ("optim.schedule.peak", 0.001)
    assert parse_change("optim.average=null") == ("optim.average", None)
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse_change("train.steps")


def test_every_parameter_tells_its_type_default_and_meaning() -> None:
    rows = parameters()
    assert len({row.key for row in rows}) > 60
    for row in rows:
        assert row.type and row.default and row.meaning, row.key
