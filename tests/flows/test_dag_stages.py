"""The real stages under both drivers, on a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.record import digest_of_file
from tasks.artifacts import Champion, Evaluation, TrainingReport, Verdict
from tasks.params import Params
from tasks.places import Places
from tasks.promote import promote
from tasks.register import register
from tasks.versioning import is_fresh, stages
from tests.flows.project import (
    REPOSITORY,
    TINY,
    command,
    commit_all,
    environment,
    real_project,
    run,
    write_documents,
    write_params,
)

pytestmark = pytest.mark.slow

ALL = ("snapshot", "prepare", "train", "champion", "evaluate", "gate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that a flow has brought up to date and whose `dvc.lock` is in git."""
    root = real_project(tmp_path_factory.mktemp("dag") / "project")
    assert drive(root) == dict.fromkeys(ALL, "run")
    commit_all(root)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def drive(root: Path) -> dict[str, str]:
    """All stages in one process that is not in the project's folder."""
    done = run(REPOSITORY, "tests.flows.drive", str(root))
    assert done.returncode == 0, done.stderr
    outcome: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def dvc(root: Path, *words: str) -> str:
    done = run(root, "dvc", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(said: str) -> list[str]:
    """Stages that `dvc repro` started."""
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage '")]


def digests(root: Path) -> dict[str, str]:
    files = [path for path in (root / "artifacts").rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): digest_of_file(path) for path in files}


def with_params(root: Path, change: dict[str, Any]) -> None:
    params = deepcopy(TINY)
    for key, value in change.items():
        section, _, name = key.partition(".")
        params.setdefault(section, {})[name] = value
    write_params(root, params)


def wait_for(condition: Callable[[], bool], *, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "nothing happened"
        time.sleep(0.05)


def test_each_driver_does_nothing_after_the_other(root: Path) -> None:
    lock, before = (root / "dvc.lock").read_bytes(), digests(root)
    # These two look outside the repository every time, and find nothing new.
    assert ran(dvc(root, "repro")) == ["snapshot", "champion"]
    assert drive(root) == dict.fromkeys(ALL, "skipped")
    assert (root / "dvc.lock").read_bytes() == lock
    assert digests(root) == before


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"train.steps": 7}, ["train"]),
        ({"train.backend": "flax"}, ["train", "evaluate"]),
        ({"train.seed": 1}, ["train", "gate"]),
        ({"optim.gradient": {"clip": {"kind": "norm", "limit": 0.5}}}, ["train"]),
        ({"data.split": {"validation": 0.1, "test": 0.2}}, ["prepare"]),
        ({"evaluate.batch": 4}, ["evaluate"]),
        ({"gate.confidence": 0.9}, ["gate"]),
        ({"registry.model": "other"}, ["champion", "evaluate"]),
        ({"serving.port": 9000}, []),
    ],
)
def test_a_changed_parameter_makes_stale_the_stages_that_read_it(
    root: Path, change: dict[str, Any], stale: list[str]
) -> None:
    with_params(root, change)
    Params.read(root / "params.yaml")
    assert [name for name in stages(root) if not is_fresh(root, name)] == stale


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("tasks/train/loop.py", ["train"]),
        ("optim/torch/adamw.py", ["train"]),
        ("tasks/prepare/tokenizer.py", ["prepare", "evaluate"]),
        ("models/torch/attention.py", ["train", "evaluate"]),
        ("serving/spec.py", []),
        ("requirements.lock", list(ALL)),
    ],
)
def test_changed_code_makes_stale_the_stages_that_use_it(
    root: Path, file: str, stale: list[str]
) -> None:
    with (root / file).open("a") as code:
        code.write("# changed\n")
    assert [name for name in stages(root) if not is_fresh(root, name)] == stale


def test_documents_changed_outside_are_prepared_anew(root: Path) -> None:
    before = digests(root)
    write_documents(root / "documents.jsonl", 61)
    assert ran(dvc(root, "repro", "prepare")) == ["snapshot", "prepare"]
    assert not is_fresh(root, "train")
    write_documents(root / "documents.jsonl", 60)
    # Everything after the snapshot was seen before.
    assert set(drive(root).values()) <= {"run", "restored", "skipped"}
    assert digests(root) == before


@pytest.mark.timeout(1500)  # three times Ray; only a very busy machine needs so long
def test_a_killed_training_leaves_no_process_goes_on_and_meets_a_new_champion(
    root: Path, finished: Path
) -> None:
    checkpoints = {"every_steps": 40, "keep": 2}
    with_params(
        root,
        {"train.steps": 200, "train.checkpoint": checkpoints, "train.validate_every_steps": 100},
    )
    places = Places(root)
    with subprocess.Popen(
        command("dvc", "repro", "-q"), cwd=root, env=environment(), start_new_session=True
    ) as driver:
        wait_for(lambda: any(places.scratch.rglob("step-*")), timeout_s=400)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    _, alive = psutil.wait_procs(family, timeout=40)
    assert not alive
    assert not places.model.exists() and not places.training.exists()
    assert is_fresh(root, "prepare")

    assert ran(dvc(root, "repro"))[:2] == ["snapshot", "train"]
    report = TrainingReport.read(places.training)
    assert report.steps == 200
    assert report.resumed_from_step is not None and report.resumed_from_step > 0
    assert Evaluation.read(places.evaluation / "evaluation.json").champion is None

    version = make_champion(root, Places(finished))
    assert drive(root) == {
        **dict.fromkeys(("snapshot", "prepare", "train"), "skipped"),
        **dict.fromkeys(("champion", "evaluate", "gate"), "run"),
    }
    assert Champion.read(places.champion).version == version
    assert "champion" in Evaluation.read(places.evaluation / "evaluation.json").scores
    assert Verdict.read(places.verdict).champion == version


def make_champion(root: Path, made: Places) -> str:
    """Promote another project's model in this project's registry, whatever its gate said."""
    params = Params.read(root / "params.yaml")
    verdict = root / ".tandem" / "verdict.json"
    Verdict.read(made.verdict).model_copy(update={"outcome": "PROMOTE"}).write(verdict)
    version = register(
        params.registry,
        root=root,
        model=made.model,
        data=made.data,
        evaluation=made.evaluation,
        verdict=verdict,
        training=made.training,
        params=params.model_dump(mode="json"),
    )
    return promote(params.registry, root=root, version=version.digest).digest


def test_an_experiment_changes_the_framework_and_dvc_compares_them(root: Path) -> None:
    said = dvc(root, "exp", "run", "-S", "train.backend=flax")
    assert ran(said) == ["snapshot", "train", "champion", "evaluate", "gate"]
    assert TrainingReport.read(Places(root).training).backend == "flax"
    changes = json.loads(dvc(root, "metrics", "diff", "--json"))
    backend = changes["artifacts/training.json"]["backend"]
    assert (backend["old"], backend["new"]) == ("torch", "flax")
    dvc(root, "plots", "show", "--out", "plots")
    html = (root / "plots" / "index.html").read_text()
    assert "validation_loss" in html and "slice by slice" in html
