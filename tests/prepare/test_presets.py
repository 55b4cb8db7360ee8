"""The overlays in `params/`, and the rule by which they are laid over `params.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from flows.command import command
from flows.forms import PresetName
from models.weights import parameter_count
from tasks.params import Params, overlay, read_yaml

ROOT = Path(__file__).parents[2]
DEFAULT = read_yaml(ROOT / "params.yaml")
FRAMES = read_yaml(ROOT / "params" / "frames.yaml")
TEXT_CLASSES = read_yaml(ROOT / "params" / "text_classes.yaml")
IMAGE = read_yaml(ROOT / "params" / "image.yaml")
LANGUAGE = read_yaml(ROOT / "params" / "language.yaml")


def test_every_preset_can_be_asked_for_by_the_form_and_by_the_command() -> None:
    files = {path.stem for path in (ROOT / "params").glob("*.yaml")}
    assert files == set(get_args(PresetName))
    for name in files:
        asked = CliRunner().invoke(command, ["run", "--preset", name, "--set", "no change"])
        # Refused for what is no change, and not for the name.
        assert "KEY=VALUE" in str(asked.exception)


def test_the_image_preset_is_a_working_config() -> None:
    params = Params.parse(overlay(DEFAULT, IMAGE), where="image.yaml")
    assert params.data.source.kind == "digits"
    assert params.model.head.kind == "classes"
    assert params.evaluate.baseline.kind == "logistic"
    assert parameter_count(params.model) < 300_000


def test_the_frames_preset_is_a_working_config() -> None:
    params = Params.parse(overlay(DEFAULT, FRAMES), where="frames.yaml")
    assert (params.data.source.kind, params.data.task.kind) == ("digits", "frames")
    assert params.model.inputs.kind == "frames"
    assert parameter_count(params.model) < 300_000


def test_the_preset_of_text_classes_is_a_working_config() -> None:
    params = Params.parse(overlay(DEFAULT, TEXT_CLASSES), where="text_classes.yaml")
    assert params.data.task.kind == "text_classes"
    assert (params.model.inputs.kind, params.model.head.kind) == ("tokens", "classes")


def test_the_language_preset_is_the_default() -> None:
    assert overlay(DEFAULT, LANGUAGE) == DEFAULT
    for other in (IMAGE, FRAMES, TEXT_CLASSES):
        assert overlay(overlay(DEFAULT, other), LANGUAGE) == DEFAULT


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        (
            {"a": {"kind": "x", "b": 1}},
            {"a": {"kind": "x", "c": 2}},
            {"a": {"kind": "x", "b": 1, "c": 2}},
        ),
        ({"a": {"kind": "x", "b": 1}}, {"a": {"kind": "y"}}, {"a": {"kind": "y"}}),
        ({"a": {"kind": "x", "b": 1}}, {"a": {"b": 2}}, {"a": {"kind": "x", "b": 2}}),
        ({"a": {"b": 1}}, {"a": {"kind": "y"}}, {"a": {"kind": "y"}}),
    ],
)
def test_mappings_merge_unless_their_kind_changes(
    below: dict[str, Any], above: dict[str, Any], merged: dict[str, Any]
) -> None:
    assert overlay(below, above) == merged


def test_an_overlay_changes_neither_side() -> None:
    below, above = {"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}
    overlay(below, above)
    assert below == {"a": {"b": {"c": 1}}}
    assert above == {"a": {"b": {"d": 2}}}
