"""Every preset from its data to a verdict, in both frameworks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.registry.spec import RegistrySpec
from optim.state import judged
from tasks.artifacts import Champion, DataManifest, Evaluation, Verdict
from tasks.evaluate import evaluate
from tasks.gate import gate
from tasks.params import Params, overlay, read_yaml
from tasks.prepare import prepare
from tasks.prepare.fit import check_task
from tasks.snapshot import snapshot
from tasks.train.curves import write_curves
from tasks.train.identity import run_identity
from tasks.train.loop import Outcome, Seat, alone
from tasks.train.stopping import Stopping
from tasks.train.verb import check_fit
from tasks.train.worker import Job, work
from tests.evaluate.conftest import write_model
from tests.flows.project import REPOSITORY, real_project, run, write_params

DEFAULT = read_yaml(REPOSITORY / "params.yaml")
PRESETS = sorted(path.stem for path in (REPOSITORY / "params").glob("*.yaml"))
WARM = {"optim": {"schedule": {"curve": {"warmup": {"steps": 1}}}}}
SHORT: dict[str, Any] = {
    **WARM,
    "model": {"layers": 1},
    "train": {
        "steps": 3,
        "batch": 4,
        "log_every_steps": 1,
        "validate_every_steps": 3,
        "validation_batches": 1,
        "checkpoint": {"every_steps": 3},
    },
    "evaluate": {"batch": 8, "max_documents": 8},
    "gate": {"resamples": 100},
}
# Other files than a user's, or fewer.
DATA: dict[str, dict[str, Any]] = {
    "language": {
        "data": {
            "source": {"kind": "text", "path": "texts"},
            "split": {"validation": 0.2, "test": 0.2},
        }
    },
}


def preset(name: str, *others: dict[str, Any]) -> dict[str, Any]:
    """A preset over `params.yaml`, with other overlays over it."""
    whole = overlay(DEFAULT, read_yaml(REPOSITORY / "params" / f"{name}.yaml"))
    for other in others:
        whole = overlay(whole, other)
    return whole


def write_reviews(path: Path) -> None:
    """Two classes of short texts of many lengths."""
    words = (("good", "lovely", "warm"), ("bad", "dull", "cold"))
    rows = [
        {
            "text": f"text {n}: "
            + " ".join(words[n % 2][(n // k) % 3] for k in range(1, n % 40 + 2)),
            "label": ("yes", "no")[n % 2],
        }
        for n in range(200)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the files that the presets name."""
    root = tmp_path_factory.mktemp("project")
    write_reviews(root / "reviews.jsonl")
    (root / "texts").mkdir()
    for path in REPOSITORY.glob("models/*.py"):
        (root / "texts" / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture(scope="module", params=PRESETS)
def prepared(request: pytest.FixtureRequest, root: Path) -> tuple[dict[str, Any], Path]:
    """The sections of a preset, and a folder with its prepared data."""
    sections = preset(request.param, SHORT, DATA.get(request.param, {}))
    params = Params.parse(sections, where=request.param)
    folder = root / request.param
    check_task(params.data, params.model)
    taken = folder / "snapshot"
    snapshot(params.data.source, task=params.data.task, out=taken, root=root)
    prepare(params.data, snapshot=taken, out=folder / "data")
    return sections, folder


@pytest.mark.parametrize("backend", ["flax", "torch"])
def test_a_preset_trains_is_measured_and_judged(
    prepared: tuple[dict[str, Any], Path], backend: str, tmp_path: Path
) -> None:
    sections, folder = prepared
    params = Params.parse(overlay(sections, {"train": {"backend": backend}}), where=backend)
    data, out = folder / "data", tmp_path / "evaluation"
    manifest = DataManifest.read(data / "manifest.json")
    check_fit(params.model, manifest)
    job = Job(
        model=params.model,
        optim=params.optim,
        train=params.train,
        augment=params.augment,
        regularise=params.regularise,
        data=str(data),
        folder=str(tmp_path),
        identity=run_identity(params.model, params.optim, params.train, data=manifest.digest),
    )
    # In this process, without Ray; the proof below has it.
    done = work(job, seat=Seat(), stopping=Stopping(tmp_path), agree=alone)
    assert done == Outcome(3, finished=True)
    last = job.checkpoints.newest()
    assert last is not None
    state, curve = last.state, last.manifest.ledger.curve
    trained = judged(params.optim, state.weights, state.slots)
    write_model(
        tmp_path / "model",
        data,
        spec=params.model,
        change=lambda weights: weights.update(trained),
    )
    write_curves(tmp_path / "curves.csv", curve)
    Champion(version=None).write(tmp_path / "champion.json")
    measured = evaluate(
        params.evaluate,
        RegistrySpec(),
        root=tmp_path,
        backend=params.train.backend,
        model=tmp_path / "model",
        data=data,
        champion=tmp_path / "champion.json",
        curves=tmp_path / "curves.csv",
        out=out,
        scores=tmp_path / "scores.json",
    )
    assert set(measured.scores) == {"challenger", "baseline"}
    verdict = gate(
        params.gate,
        evaluation=out,
        champion=tmp_path / "champion.json",
        out=tmp_path / "verdict.json",
    )
    # Three steps of training lose against a baseline that saw all of the data.
    assert verdict.outcome != "PROMOTE" and verdict.model == measured.model


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["flax", "torch"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_through_every_stage(name: str, backend: str, tmp_path: Path) -> None:
    short = {**WARM, "train": {"steps": 20, "backend": backend}, "evaluate": {"max_documents": 20}}
    project = real_project(tmp_path / "project")
    write_params(project, preset(name, short))
    write_reviews(project / "reviews.jsonl")
    done = run(REPOSITORY, "tests.flows.drive", str(project))
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout.splitlines()[-1])
    assert set(stages.values()) == {"run"}
    artifacts = project / "artifacts"
    measured = Evaluation.read(artifacts / "evaluation" / "evaluation.json")
    verdict = Verdict.read(artifacts / "verdict.json")
    assert verdict.evaluation == measured.digest
