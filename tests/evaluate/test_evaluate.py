"""The stage `evaluate` on real prepared data, real models and a real registry."""

from __future__ import annotations

import csv
import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers

from models.presets import tiny_image, tiny_language
from models.record import FileDigest
from models.registry.manifest import Provenance
from models.registry.registry import Registry
from models.spec import TokenInputs
from models.store import MANIFEST, TOKENIZER, WEIGHTS, ModelManifest, load_model
from models.torch.predictor import Predictor
from tasks.artifacts import Evaluation
from tasks.evaluate.logistic import log_softmax
from tasks.evaluate.parts import Part, PartScores
from tasks.evaluate.spec import LogisticBaseline, NgramBaseline
from tasks.evaluate.table import DOCUMENTS, OTHER, ScoreTable, pool_slices
from tasks.evaluate.verb import choose
from tasks.prepare.documents import Document, ArrayDocuments, TextDocuments, open_documents
from tasks.prepare.tokenizer import read_tokenizer
from tests.evaluate.conftest import REGISTRY, Bench, write_model
from tests.registry.factory import verdict_on
from tests.tolerances import BATCHED_FLOAT32

Weights = dict[str, NDArray[Any]]


def silence(weights: Weights) -> None:
    """Makes every token equally likely: a tied head of zeros gives logits of zero."""
    weights["embedding.table.weight"][:] = 0


def overflow(weights: Weights) -> None:
    """Finite weights whose logits are not."""
    weights["norm.weight"][:] = 3e38
    weights["embedding.table.weight"] *= 100


def crown(bench: Bench, folder: Path) -> str:
    """Register a model and make it the champion of the bench."""
    manifest = ModelManifest.read(folder / MANIFEST)
    paths = (MANIFEST, *(file.path for file in manifest.files))
    version = Registry.open(REGISTRY, bench.root).register(
        files={path: folder / path for path in paths},
        model=manifest.digest,
        data=manifest.data,
        verdict=verdict_on(manifest.digest),
        metrics={},
        params={},
        provenance=Provenance(git_commit=None, git_dirty=False, dvc_lock=None),
        environment={},
        parent=None,
        key=manifest.digest,
    )
    bench.name_champion(version.digest)
    return version.digest


def table_of(bench: Bench) -> ScoreTable:
    """What the stage wrote."""
    return ScoreTable.read(bench.out / DOCUMENTS)


def test_a_document_costs_every_token_and_its_end(text_bench: Bench) -> None:
    write_model(text_bench.root / "model", text_bench.data, spec=tiny_language(), change=silence)
    text_bench.evaluate()
    documents = open_documents(text_bench.data, "test").documents
    table = table_of(text_bench)
    expected = {one.id: (one.tokens + 1) * math.log(320) for one in documents}
    found = dict(zip(table.documents, table.loss["challenger"], strict=True))
    assert found == pytest.approx(expected, rel=BATCHED_FLOAT32)
    assert dict(zip(table.documents, table.weight)) == {one.id: one.size_bytes for one in documents}


def test_a_loss_is_that_of_windows_computed_one_by_one(text_bench: Bench) -> None:
    text_bench.evaluate()
    stored = load_model(text_bench.root / "model")
    predictor = Predictor(stored.spec, stored.weights, precision="float64")
    documents = open_documents(text_bench.data, "test")
    assert isinstance(documents, TextDocuments)
    table = table_of(text_bench)
    lengths = {one.tokens + 1 for one in documents.documents}
    assert any(length < 32 for length in lengths) and any(length > 64 for length in lengths)
    for row, loss in enumerate(table.loss["challenger"]):
        stream = np.concatenate([[documents.end], documents.tokens(row), [documents.end]])
        expected = 0.0
        for start in range(0, len(stream) - 1, 32):
            window = stream[start : start + 33].astype(np.int32)
            logs = log_softmax(predictor.logits(window[None, :-1]).astype(np.float64))[0]
            expected -= logs[np.arange(len(window) - 1), window[1:]].sum()
        assert loss == pytest.approx(expected, rel=BATCHED_FLOAT32)


def test_scores_are_sums_divided_once(text_bench: Bench) -> None:
    evaluation = text_bench.evaluate()
    table = table_of(text_bench)
    for name, score in evaluation.scores.items():
        nats = math.fsum(table.loss[name])
        assert score == pytest.approx(nats / math.log(2) / table.weight.sum(), rel=1e-12)
        over_slices = math.fsum(one.loss[name] for one in evaluation.slices.values())
        assert over_slices == pytest.approx(nats, rel=1e-12)
    weights = [one.weight for one in evaluation.slices.values()]
    assert sum(weights) == table.weight.sum() != 0
    assert len(set(weights)) > 1


@pytest.mark.parametrize("kind", ["text_bench", "image_bench"])
def test_both_frameworks_give_the_same_scores(kind: str, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(kind)
    scores = {}
    for backend in ("flax", "torch"):
        bench.evaluate(backend=backend)
        scores[backend] = table_of(bench).loss["challenger"]
    np.testing.assert_allclose(scores["flax"], scores["torch"], rtol=BATCHED_FLOAT32)


@pytest.mark.parametrize("kind", ["text_bench", "image_bench"])
def test_a_second_run_writes_the_same_bytes(kind: str, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(kind)
    runs = []
    for _ in range(2):
        bench.evaluate()
        files = [*sorted(bench.out.iterdir()), bench.root / "scores.json"]
        runs.append({file.name: file.read_bytes() for file in files})
    assert runs[0] == runs[1]
    assert set(runs[0]) == {
        "documents.parquet", "evaluation.json", "report.html", "scores.json", "slices.csv"
    }  # fmt: skip


def test_the_batch_size_does_not_change_a_loss(text_bench: Bench) -> None:
    losses = []
    for batch in (1, 7):
        text_bench.with_spec(batch=batch).evaluate()
        losses.append(table_of(text_bench).loss["challenger"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=BATCHED_FLOAT32)


def test_parts_travel_to_workers_and_come_back(text_bench: Bench) -> None:
    here = text_bench.evaluate()
    sizes: list[int] = []

    def elsewhere(
        function: Callable[[Part], PartScores], parts: Sequence[Part]
    ) -> Iterable[PartScores]:
        sent = [pickle.dumps((function, part)) for part in parts]
        sizes.extend(map(len, sent))
        results: list[PartScores] = []
        for message in reversed(sent):
            function, part = pickle.loads(message)
            results.append(pickle.loads(pickle.dumps(function(part))))
        return results[::-1]

    assert text_bench.evaluate(fan_out=elsewhere) == here
    assert len(sizes) == 2 * 4 and max(sizes) < 4096


def test_a_champion_from_the_registry_is_measured_beside_the_challenger(text_bench: Bench) -> None:
    digest = crown(text_bench, text_bench.root / "model")
    evaluation = text_bench.evaluate()
    assert evaluation.champion == digest
    assert evaluation.scores["champion"] == evaluation.scores["challenger"]
    assert set(evaluation.scores) == {"challenger", "champion", "baseline"}
    assert list((text_bench.root / ".tandem" / "evaluation").iterdir()) == []


def test_a_champion_with_another_tokenizer_is_scored_on_the_same_bytes(
    text_bench: Bench, text: Path
) -> None:
    folder = text_bench.root / "old"
    spec = tiny_language().model_copy(update={"inputs": TokenInputs(vocabulary=400, context=20)})
    write_model(folder, text, spec=spec, change=silence)
    plain = read_tokenizer(folder / TOKENIZER)
    other = json.loads(plain.to_str())
    # The same alphabet without merges: one token a byte.
    other["model"]["merges"] = []
    kept = [token for token in other["model"]["vocab"] if len(token) == 1 or "|" in token]
    other["model"]["vocab"] = {token: rank for rank, token in enumerate(["<|end|>", *kept[1:]])}
    (folder / TOKENIZER).write_text(json.dumps(other))
    _rehash(folder)
    crown(text_bench, folder)
    text_bench.evaluate()
    table = table_of(text_bench)
    np.testing.assert_allclose(
        table.loss["champion"], (table.weight + 1) * math.log(400), rtol=BATCHED_FLOAT32
    )


def test_an_older_classifier_may_number_the_classes_otherwise(image_bench: Bench) -> None:
    folder = image_bench.root / "old"
    order = np.arange(10)[::-1]

    def turn(weights: Weights) -> None:
        weights["head.output.weight"] = np.ascontiguousarray(weights["head.output.weight"][order])
        weights["head.output.bias"] = weights["head.output.bias"][order]

    write_model(folder, image_bench.data, spec=tiny_image(), change=turn)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["classes"] = manifest["classes"][::-1]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    crown(image_bench, folder)
    evaluation = image_bench.evaluate()
    table = table_of(image_bench)
    np.testing.assert_allclose(
        table.loss["champion"], table.loss["challenger"], rtol=BATCHED_FLOAT32
    )
    assert evaluation.accuracy is not None
    assert evaluation.accuracy["champion"] == evaluation.accuracy["challenger"]


def test_an_image_costs_the_right_class_and_accuracy_counts_the_first(image_bench: Bench) -> None:
    evaluation = image_bench.evaluate()
    stored = load_model(image_bench.root / "model")
    documents = open_documents(image_bench.data, "test")
    assert isinstance(documents, ArrayDocuments)
    pixels = documents.samples.read(np.arange(len(documents))).inputs
    logits = Predictor(stored.spec, stored.weights, precision="float64").logits(pixels)
    logs = log_softmax(logits.astype(np.float64))
    expected = -logs[np.arange(len(logs)), documents.labels]
    table = table_of(image_bench)
    np.testing.assert_allclose(table.loss["challenger"], expected, rtol=BATCHED_FLOAT32)
    assert evaluation.accuracy is not None
    assert evaluation.accuracy["challenger"] == (logs.argmax(axis=1) == documents.labels).mean()
    assert evaluation.accuracy["baseline"] > 0.9


def test_scores_and_slices_are_written_for_dvc(image_bench: Bench) -> None:
    evaluation = image_bench.evaluate()
    scores = json.loads((image_bench.root / "scores.json").read_text())
    assert scores == {
        "documents": len(table_of(image_bench).documents),
        "nats_per_image": evaluation.scores,
        "accuracy": evaluation.accuracy,
    }
    with (image_bench.out / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slice", "documents", "weight", "challenger", "baseline"]
    assert [row["slice"] for row in rows][-1] == OTHER and len(rows) == 4
    first = evaluation.slices[rows[0]["slice"]]
    assert float(rows[0]["challenger"]) == first.loss["challenger"] / first.weight


def test_fewer_documents_are_chosen_by_hash_and_the_same_ones_for_everyone(
    text_bench: Bench,
) -> None:
    text_bench.with_spec(max_documents=10).evaluate()
    few = table_of(text_bench)
    text_bench.evaluate()
    whole = table_of(text_bench)
    assert len(few.documents) == 10 and set(few.documents) < set(whole.documents)
    place = {one: row for row, one in enumerate(whole.documents)}
    rows = [place[one] for one in few.documents]
    for name in few.loss:
        np.testing.assert_allclose(few.loss[name], whole.loss[name][rows], rtol=BATCHED_FLOAT32)


def test_new_documents_replace_few_of_the_chosen_ones() -> None:
    documents = [Document(f"{n:064x}", "name", "slice", 1, 1) for n in range(1000)]
    before = {documents[row].id for row in choose(documents[:900], most=300)}
    after = {documents[row].id for row in choose(documents, most=300)}
    assert len(before) == len(after) == 300
    assert 250 < len(before & after) < 300


def test_light_slices_are_pooled() -> None:
    weight = np.array([1.0, 3.0, 2.0, 4.0, 2.0])
    pooled = pool_slices(("a", "b", "c", "a", "d"), weight, most=2)
    assert pooled == ("a", "b", OTHER, "a", OTHER)
    assert pool_slices(("a", "b"), weight[:2], most=2) == ("a", "b")


def test_progress_ends_with_all_parts_done(text_bench: Bench) -> None:
    seen: list[tuple[int, int]] = []
    text_bench.evaluate(progress=lambda done, total, note="": seen.append((done, total)))
    assert seen[-1] == (8, 8)


@dataclass(frozen=True)
class Mistake:
    """Something that is wrong in a project, and what the error has to say."""

    plant: Callable[[Bench], object]
    message: str


def _rehash(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    names = [file["path"] for file in manifest["files"]]
    manifest["files"] = [FileDigest.of(folder, name).model_dump() for name in names]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _overflow(bench: Bench) -> None:
    write_model(bench.root / "model", bench.data, spec=tiny_language(), change=overflow)


def _lossy_tokenizer(bench: Bench) -> None:
    file = bench.root / "model" / TOKENIZER
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.normalizer = normalizers.Replace("e", "")
    tokenizer.save(str(file))
    _rehash(bench.root / "model")


def _other_tokenizer(bench: Bench) -> None:
    inputs = TokenInputs(vocabulary=300, context=32)
    spec = tiny_language().model_copy(update={"inputs": inputs})
    write_model(bench.root / "model", bench.data, spec=spec)


def _damage_blob(bench: Bench) -> None:
    crown(bench, bench.root / "model")
    largest = max((bench.root / "state" / "blobs").rglob("*"), key=lambda path: path.stat().st_size)
    largest.chmod(0o600)
    _flip(largest)


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake(lambda bench: _flip(bench.root / "model" / WEIGHTS), "is damaged"),
        Mistake(lambda bench: (bench.root / "model" / MANIFEST).unlink(), "manifest.json is missi"),
        Mistake(lambda bench: (bench.root / "champion.json").unlink(), "champion.json is missing"),
        Mistake(lambda bench: (bench.root / "curves.csv").unlink(), "curves.csv is missing"),
        Mistake(lambda bench: (bench.root / "curves.csv").write_text("step\n1\n"), "no column"),
        Mistake(
            lambda bench: (bench.root / "curves.csv").write_text("step,loss\n1,nan\n"),
            "loss is nan",
        ),
        Mistake(lambda bench: bench.name_champion("0" * 64), "0000"),
        Mistake(_damage_blob, "blob .* is damaged"),
        Mistake(_overflow, "the challenger has no finite loss on document .*txt"),
        Mistake(_lossy_tokenizer, "does not give back .*txt"),
        Mistake(_other_tokenizer, "vocabulary=300"),
    ],
    ids=lambda mistake: mistake.message,
)
def test_a_mistake_is_one_clear_error_and_leaves_no_evaluation(
    text_bench: Bench, mistake: Mistake
) -> None:
    mistake.plant(text_bench)
    with pytest.raises(ValueError, match=mistake.message):
        text_bench.evaluate()
    assert not text_bench.out.exists()
    assert not (text_bench.root / "scores.json").exists()


def test_damaged_data_is_never_scored(text_bench: Bench, tmp_path: Path) -> None:
    for split in ("train", "test"):
        copy = shutil.copytree(text_bench.data, tmp_path / split)
        _flip(copy / f"{split}.text.npy")
        with pytest.raises(ValueError, match=f"{split}.text.npy is damaged"):
            text_bench.evaluate(data=copy)


def test_a_candidate_of_another_kind_of_data_is_refused(
    text_bench: Bench, image_bench: Bench, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="challenger is a model of text and the data is images"):
        text_bench.evaluate(data=image_bench.data)
    write_model(tmp_path / "image", image_bench.data, spec=tiny_image())
    with pytest.raises(ValueError, match="challenger is a model of images and the data is text"):
        text_bench.evaluate(model=tmp_path / "image")
    with pytest.raises(
        ValueError, match="baseline.kind must be ngram for text without classes; got logistic"
    ):
        text_bench.with_spec(baseline=LogisticBaseline()).evaluate(
            model=_language(tmp_path / "language", text_bench)
        )
    with pytest.raises(ValueError, match="baseline.kind must be logistic for classes; got ngram"):
        image_bench.with_spec(baseline=NgramBaseline()).evaluate(model=tmp_path / "image")


def _language(folder: Path, bench: Bench) -> Path:
    write_model(folder, bench.data, spec=tiny_language())
    return folder


def test_a_failed_evaluation_leaves_the_last_one_whole(text_bench: Bench) -> None:
    before = text_bench.evaluate()
    _overflow(text_bench)
    with pytest.raises(ValueError, match="no finite loss"):
        text_bench.evaluate()
    assert Evaluation.read(text_bench.out / "evaluation.json") == before
