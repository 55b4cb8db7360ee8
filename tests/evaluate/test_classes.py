"""Documents with classes: texts and sequences are scored as images are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from models.spec import ClassHead, FrameInputs, TokenInputs
from models.presets import tiny_image, tiny_language
from models.store import load_model
from models.torch.predictor import Predictor
from tasks.evaluate.features import features
from tasks.evaluate.logistic import log_softmax
from tasks.evaluate.spec import NgramBaseline
from tasks.prepare.dataset import open_split
from tasks.prepare.documents import ArrayDocuments, TextDocuments, open_documents
from tests.evaluate.conftest import Bench, write_model
from tests.evaluate.test_evaluate import _flip, table_of
from tests.tolerances import BATCHED_FLOAT32, FORWARD_FLOAT64

BENCHES = ["labelled_bench", "sequence_bench"]


@pytest.fixture(params=BENCHES)
def bench(request: pytest.FixtureRequest) -> Bench:
    """A project that classifies."""
    found: Bench = request.getfixturevalue(request.param)
    return found


def test_a_document_costs_its_class_without_padding(bench: Bench) -> None:
    evaluation = bench.evaluate()
    assert evaluation.unit == "nats_per_sample"
    stored = load_model(bench.root / "model")
    predictor = Predictor(stored.spec, stored.weights, precision="float64")
    context = None if isinstance(stored.spec.inputs, FrameInputs) else 24
    batch = open_split(bench.data, "test", context=context).read(
        np.arange(len(open_documents(bench.data, "test")))
    )
    assert batch.lengths is not None and len(set(batch.lengths.tolist())) > 3
    expected, right = [], 0
    for inputs, target, length in zip(batch.inputs, batch.targets, batch.lengths, strict=True):
        # Alone and cut to what counts: what stands behind must not matter.
        logs = log_softmax(predictor.logits(inputs[None, :length]).astype(np.float64))[0]
        expected.append(-logs[target])
        right += int(logs.argmax() == target)
    table = table_of(bench)
    np.testing.assert_allclose(table.loss["challenger"], expected, rtol=BATCHED_FLOAT32)
    assert evaluation.accuracy is not None
    assert evaluation.accuracy["challenger"] == right / len(expected)
    assert (table.weight == 1).all()


def test_the_linear_baseline_beats_chance(bench: Bench) -> None:
    evaluation = bench.evaluate()
    classes = len(load_model(bench.root / "model").manifest.classes or ())
    assert evaluation.scores["baseline"] < 0.5 * np.log(classes)
    assert evaluation.accuracy is not None and evaluation.accuracy["baseline"] > 0.8


def test_both_frameworks_and_batches_give_the_same_scores(bench: Bench) -> None:
    losses = []
    for backend, batch in (("torch", 8), ("flax", 8), ("torch", 3)):
        bench.with_spec(batch=batch).evaluate(backend=backend)
        losses.append(table_of(bench).loss["challenger"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=BATCHED_FLOAT32)
    np.testing.assert_allclose(losses[2], losses[0], rtol=BATCHED_FLOAT32)


def test_slices_are_classes_and_the_page_counts_samples(bench: Bench) -> None:
    evaluation = bench.evaluate()
    classes = set(load_model(bench.root / "model").manifest.classes or ())
    assert set(evaluation.slices) == classes
    page = (bench.out / "report.html").read_text()
    assert "nats per sample" in page and "class of each sample" in page


def test_features_are_tokens_or_frames(labelled: Path, sequences: Path) -> None:
    texts, arrays = open_documents(labelled, "test"), open_documents(sequences, "test")
    assert isinstance(texts, TextDocuments) and isinstance(arrays, ArrayDocuments)
    counted = features(texts, [2, 0]).toarray()
    assert counted.shape == (2, 300)
    for row, index in enumerate((2, 0)):
        counts = np.bincount(texts.tokens(index), minlength=300)
        weights = np.log1p(counts)
        np.testing.assert_allclose(
            counted[row], weights / np.sqrt((weights**2).sum()), rtol=FORWARD_FLOAT64
        )
    flat = features(arrays, [1])
    assert np.array_equal(flat[0], arrays.samples.read(np.array([1])).inputs.ravel())


def test_a_model_of_other_inputs_is_refused(
    labelled_bench: Bench, sequence_bench: Bench, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="model of frames and the data is text with classes"):
        sequence_bench.evaluate(data=labelled_bench.data)
    narrow = tiny_image().model_copy(
        update={"inputs": FrameInputs(features=4, context=8), "head": ClassHead(classes=2)}
    )
    write_model(tmp_path / "narrow", sequence_bench.data, spec=narrow)
    with pytest.raises(ValueError, match="takes up to 8 frames of 4 values, the data has 9 of 4"):
        sequence_bench.evaluate(model=tmp_path / "narrow")
    language = tiny_language().model_copy(
        update={"inputs": TokenInputs(vocabulary=300, context=24)}
    )
    write_model(tmp_path / "language", labelled_bench.data, spec=language)
    with pytest.raises(ValueError, match="model of text and the data is text with classes"):
        labelled_bench.evaluate(model=tmp_path / "language")
    with pytest.raises(ValueError, match="must be logistic for classes; got ngram"):
        labelled_bench.with_spec(baseline=NgramBaseline()).evaluate()


def test_damaged_data_is_never_scored(bench: Bench, tmp_path: Path) -> None:
    for split in ("train", "test"):
        copy = Path(shutil.copytree(bench.data, tmp_path / split))
        _flip(copy / f"{split}.labels.npy")
        with pytest.raises(ValueError, match=f"{split}.labels.npy is damaged"):
            bench.evaluate(data=copy)
