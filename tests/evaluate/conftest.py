"""Prepared data and untrained models, small enough to measure in a second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.presets import tiny_image, tiny_language
from models.record import digest_of
from models.registry.spec import RegistrySpec
from models.spec import ClassHead, FrameInputs, ModelSpec, TokenInputs
from models.store import TOKENIZER, ModelManifest, save_model
from models.weights import initial_weights
from tasks.artifacts import Champion, DataManifest, Evaluation
from tasks.evaluate import evaluate
from tasks.evaluate.spec import Baseline, EvaluateSpec, LogisticBaseline, NgramBaseline
from tasks.prepare.spec import (
    ByteBpe,
    DataSpec,
    Digits,
    FrameClasses,
    ImageClasses,
    NumpyFiles,
    RowFiles,
    SplitShares,
    TextClasses,
)
from tests.prepare.conftest import make, text_spec, texts

REGISTRY = RegistrySpec(
    url="sqlite:///state/registry.db", blobs="state/blobs", key_folder="state/keys"
)
WORDS = ("spam", "egg", "ham")
CURVES = "step,tokens,loss,validation_loss\n1,512,6.5,\n2,1024,5.9,\n3,1536,5.4,5.6\n"


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 texts of a few to 5000 bytes in four slices, hard ones among them; read only."""
    folder = tmp_path_factory.mktemp("text")
    corpus = folder / "corpus"
    lines = [f"line {number} of a short text\n" * (number % 9 + 1) for number in range(60)]
    for number, content in enumerate([*texts()[:100], *lines]):
        file = corpus / f"package{number % 4}" / f"{number:03}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode())
    shares = SplitShares(validation=0.05, test=0.5)
    make(text_spec(corpus).model_copy(update={"split": shares}), folder)
    return folder / "data"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared digits; read only."""
    folder = tmp_path_factory.mktemp("digits")
    make(DataSpec(source=Digits(), task=ImageClasses()), folder)
    return folder / "data"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared texts of three classes, a few to 60 words long; read only."""
    folder = tmp_path_factory.mktemp("labelled")
    lines = [
        json.dumps({"text": f"{WORDS[n % 3]} number {n} " * (n % 20 + 1), "label": WORDS[n % 3]})
        for n in range(120)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    source = RowFiles(kind="jsonl", path=str(folder / "rows.jsonl"), label="label")
    task = TextClasses(tokenizer=ByteBpe(vocabulary=300))
    make(DataSpec(source=source, task=task, split=SplitShares(validation=0.1, test=0.3)), folder)
    return folder / "data"


@pytest.fixture(scope="session")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sequences of 1 to 9 frames and two classes; read only."""
    folder = tmp_path_factory.mktemp("sequences")
    generator = np.random.default_rng(3)
    rows = np.arange(100)
    x = generator.normal(size=(100, 9, 4)) + (rows % 2)[:, None, None]
    arrays = {"x": x, "y": rows % 2, "lengths": 1 + rows % 9}
    (folder / "arrays").mkdir()
    for name, array in arrays.items():
        np.save(folder / "arrays" / f"{name}.npy", array)
    source = NumpyFiles(path=str(folder / "arrays"))
    shares = SplitShares(validation=0.1, test=0.3)
    make(DataSpec(source=source, task=FrameClasses(), split=shares), folder)
    return folder / "data"


def write_model(
    folder: Path,
    data: Path,
    *,
    spec: ModelSpec,
    seed: int = 0,
    change: Callable[[dict[str, np.ndarray[Any, Any]]], None] = lambda weights: None,
) -> ModelManifest:
    """An untrained model in its folder, as `train` would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    known = DataManifest.read(data / "manifest.json")
    extra = () if known.vocabulary is None else (TOKENIZER,)
    for file in extra:
        shutil.copy(data / file, folder / file)
    weights = {name: w.astype("float32") for name, w in initial_weights(spec, seed=seed).items()}
    change(weights)
    return save_model(
        folder,
        spec=spec,
        weights=weights,
        extra_files=extra,
        classes=known.classes,
        data=known.digest,
        training=digest_of(["training", seed]),
        backend="torch",
        steps=0,
    )


@dataclass(frozen=True)
class Bench:
    """A project in a folder: everything that `evaluate` reads, and its outputs."""

    root: Path
    data: Path
    spec: EvaluateSpec

    def evaluate(self, **changes: Any) -> Evaluation:
        """Run the stage."""
        arguments: dict[str, Any] = {
            "root": self.root,
            "backend": "torch",
            "model": self.root / "model",
            "data": self.data,
            "champion": self.root / "champion.json",
            "curves": self.root / "curves.csv",
            "out": self.out,
            "scores": self.root / "scores.json",
        }
        return evaluate(self.spec, REGISTRY, **(arguments | changes))

    def name_champion(self, version: str | None) -> None:
        """Write `champion.json`."""
        Champion(version=version).write(self.root / "champion.json")

    def with_spec(self, **changes: Any) -> Bench:
        """The same project with another `evaluate` section."""
        return replace(self, spec=self.spec.model_copy(update=changes))

    @property
    def out(self) -> Path:
        """The evaluation's folder."""
        return self.root / "evaluation"


def _bench(root: Path, data: Path, spec: ModelSpec, baseline: Baseline) -> Bench:
    bench = Bench(root, data, EvaluateSpec(baseline=baseline, batch=8, max_slices=3))
    write_model(root / "model", data, spec=spec)
    (root / "curves.csv").write_text(CURVES)
    bench.name_champion(None)
    return bench


@pytest.fixture
def text_bench(tmp_path: Path, text: Path) -> Bench:
    """A language model's project without a champion."""
    return _bench(tmp_path / "text", text, tiny_language(), NgramBaseline(order=3))


@pytest.fixture
def image_bench(tmp_path: Path, digits: Path) -> Bench:
    """A classifier's project without a champion."""
    return _bench(tmp_path / "image", digits, tiny_image(), LogisticBaseline())


@pytest.fixture
def labelled_bench(tmp_path: Path, labelled: Path) -> Bench:
    """A project that classifies texts, some of which are longer than its context."""
    inputs = TokenInputs(vocabulary=300, context=24)
    spec = tiny_image().model_copy(update={"inputs": inputs, "head": ClassHead(classes=3)})
    return _bench(tmp_path / "labelled", labelled, spec, LogisticBaseline())


@pytest.fixture
def sequence_bench(tmp_path: Path, sequences: Path) -> Bench:
    """A project that classifies sequences."""
    inputs = FrameInputs(features=4, context=9)
    spec = tiny_image().model_copy(update={"inputs": inputs, "head": ClassHead(classes=2)})
    return _bench(tmp_path / "sequences", sequences, spec, LogisticBaseline())
