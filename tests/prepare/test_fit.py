"""Data and model that do not fit are refused before the first step, by key, rule and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.spec import ClassHead, FrameInputs, ModelSpec, PatchInputs, TokenInputs
from models.presets import tiny_image, tiny_language
from tasks.artifacts import DataManifest, PackedRows, Split
from tasks.params import Params, overlay, read_yaml
from tasks.train.verb import check_fit

ROOT = Path(__file__).parents[2]
DEFAULT = read_yaml(ROOT / "params.yaml")
PRESETS = {name: read_yaml(ROOT / "params" / f"{name}.yaml") for name in ("image", "frames")} | {
    "language": {},
    "text_classes": read_yaml(ROOT / "params" / "text_classes.yaml"),
}
PACKED = {"data": {"task": {"packing": {"kind": "packed", "length": 256}}}}
GIVEN = {"data": {"task": {"tokenizer": {"kind": "given", "path": "t.json", "end": "</s>"}}}}
BIDIRECTIONAL = {"model": {"attention": {"mask": {"kind": "bidirectional"}}}}
FOLDER = {"kind": "image_folder", "path": "p", "height": 8, "width": 16, "channels": 1}


def separator(token: int | None) -> dict[str, Any]:
    return {"model": {"inputs": {"separator": token}}}


def parse(preset: str, *changes: dict[str, Any]) -> Params:
    sections = overlay(DEFAULT, PRESETS[preset])
    for change in changes:
        sections = overlay(sections, change)
    return Params.parse(sections, where="params.yaml")


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("language", (PACKED, separator(0))),
        ("language", (PACKED, GIVEN, separator(9))),
        ("language", (GIVEN,)),
        ("image", ()),
        ("frames", ()),
        ("text_classes", ()),
    ],
)
def test_what_fits_is_let_in(preset: str, changes: tuple[dict[str, Any], ...]) -> None:
    parse(preset, *changes)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        (
            "language",
            (PACKED,),
            r"model\.inputs\.separator must be the end mark .* got None\. Try .*separator=0",
        ),
        ("language", (PACKED, separator(5)), r"separator must be the end mark .* got 5"),
        ("language", (PACKED, GIVEN), r"separator must be the end mark .* got None"),
        (
            "language",
            ({"data": {"task": {"packing": {"kind": "padded", "length": 257}}}},),
            r"packing\.length must be at most model\.inputs\.context; got 257 > 256\. Try .*=256",
        ),
        (
            "language",
            ({"data": {"task": {"tokenizer": {"vocabulary": 5000}}}},),
            r"got 4096 < 5000\. Try model\.inputs\.vocabulary=5000",
        ),
        ("language", (BIDIRECTIONAL,), r"mask\.kind must be causal for .*=language"),
        ("language", ({"data": {"task": {"kind": "images"}}},), "images needs data.source.kind"),
        (
            "image",
            ({"data": {"task": {"kind": "frames"}}},),
            r"model\.inputs\.kind must be frames for data\.task\.kind=frames; got patches",
        ),
        (
            "frames",
            ({"data": {"task": {"kind": "images"}}},),
            r"model\.inputs\.kind must be patches for data\.task\.kind=images; got frames",
        ),
        (
            "text_classes",
            ({"model": {"head": {"kind": "language"}, "attention": {"mask": {"kind": "causal"}}}},),
            r"model\.head\.kind must be classes for data\.task\.kind=text_classes; got language",
        ),
        (
            "text_classes",
            ({"evaluate": {"baseline": {"kind": "ngram"}}},),
            r"baseline\.kind must be ngram for .* logistic for classes; got ngram for text_classes",
        ),
        (
            "image",
            ({"data": {"source": FOLDER}},),
            r"those of data\.source; got \(8, 8, 1\), the images become \(8, 16, 1\)",
        ),
        (
            "language",
            ({"data": {"tokenizer": {"kind": "byte_bpe", "vocabulary": 300}}},),
            r"data\.tokenizer is not a parameter",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    preset: str, changes: tuple[dict[str, Any], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse(preset, *changes)
    assert len(str(error.value).splitlines()) == 1


def manifest(**fields: Any) -> DataManifest:
    """A token data set of 320 tokens, with some fields changed."""
    split = Split(documents=1, samples=1, size_bytes=1)
    whole: dict[str, Any] = {
        "kind": "tokens",
        "source": "somewhere",
        "snapshot": "0" * 64,
        "files": (),
        "splits": {"train": split, "validation": split, "test": split},
        "vocabulary": 320,
        "shape": None,
        "classes": None,
        "end": 7,
    }
    return DataManifest.model_validate(whole | fields)


def rows(*, length: int = 32, several: bool = True) -> PackedRows:
    return PackedRows(length=length, several=several, waste={})


def of(inputs: TokenInputs | PatchInputs | FrameInputs, *, classes: int | None) -> ModelSpec:
    plain = tiny_language() if classes is None else tiny_image()
    head = plain.head if classes is None else ClassHead(classes=classes)
    return plain.model_copy(update={"inputs": inputs, "head": head})


TOKENS = TokenInputs(vocabulary=320, context=32)
SEPARATED = TokenInputs(vocabulary=320, context=32, separator=7)
FRAMES = FrameInputs(features=5, context=9)
SEQUENCES = {"kind": "frames", "vocabulary": None, "shape": (9, 5), "classes": ("a", "b")}
TEXTS = {"kind": "text_classes", "classes": ("a", "b")}


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (of(TOKENS, classes=None), {}),
        (of(SEPARATED, classes=None), {}),
        (of(SEPARATED, classes=None), {"rows": rows()}),
        (of(TOKENS, classes=None), {"rows": rows(several=False)}),
        (of(TOKENS, classes=2), TEXTS),
        (of(FRAMES, classes=2), SEQUENCES),
    ],
)
def test_a_model_that_fits_its_data_is_trained(model: ModelSpec, data: dict[str, Any]) -> None:
    check_fit(model, manifest(**data))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            of(TOKENS, classes=None),
            {"rows": rows()},
            "end mark of the data; got None. Try separato",
        ),
        (
            of(SEPARATED.model_copy(update={"separator": 3}), classes=None),
            {},
            r"end mark of the data or null; got 3\. Try separator=7",
        ),
        (of(SEPARATED, classes=None), {"rows": rows(length=33)}, r"got 32 < 33\. Try context=33"),
        (of(TOKENS, classes=None), {"vocabulary": 321}, r"got 320 < 321\. Try vocabulary=321"),
        (
            of(TOKENS, classes=None),
            TEXTS,
            "model.head.kind must be classes for a data set of text_",
        ),
        (of(TOKENS, classes=2), {}, "model.head.kind must be language for a data set of tokens"),
        (of(TOKENS, classes=3), TEXTS, r"model\.head\.classes .* got 3\. Try classes=2"),
        (of(FRAMES, classes=3), SEQUENCES, r"model\.head\.classes .* got 3\. Try classes=2"),
        (of(TOKENS, classes=2), SEQUENCES, "inputs.kind must be frames for a data set of frames"),
        (
            of(FrameInputs(features=4, context=9), classes=2),
            SEQUENCES,
            r"model\.inputs\.features .* got 4\. Try features=5",
        ),
        (
            of(FrameInputs(features=5, context=8), classes=2),
            SEQUENCES,
            r"model\.inputs\.context .* longest sequence .* got 8\. Try context=9",
        ),
    ],
)
def test_a_model_of_other_data_is_refused(
    model: ModelSpec, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_fit(model, manifest(**data))
