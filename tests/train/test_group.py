"""Runs on real Ray: killed, stopped, resumed, on one worker and two, in either framework."""

from __future__ import annotations

import csv
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from models.spec import ConstantCurve
from models.store import StoredModel
from optim.gradient import GradientSpec
from optim.schedules import Schedule
from optim.rules import AdamW
from optim.spec import OptimSpec
from tasks.artifacts import DataManifest, TrainingReport
from tests.tolerances import WEIGHTS_FLOAT32
from tests.train.planted import local_ray, plant
from tests.train.runs import BATCH, STEPS, Kill, Separate, events, result, run, small_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the runs of this process; the verb uses the Ray that it finds."""
    with local_ray():
        yield


@pytest.fixture(scope="module")
def whole(cluster: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in torch on one worker that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    report = run(data, folder, changes={})
    assert report.resumed_from_step is None
    return folder


def same_bits(first: StoredModel, second: StoredModel) -> bool:
    return first.weights.keys() == second.weights.keys() and all(
        first.weights[name].tobytes() == second.weights[name].tobytes() for name in first.weights
    )


def distance(first: StoredModel, second: StoredModel) -> float:
    """Largest difference of a weight, as a share of the largest weight of its array."""
    return max(
        float(np.abs(first.weights[name] - second.weights[name]).max())
        / float(np.abs(second.weights[name]).max())
        for name in second.weights
    )


def test_a_run_leaves_a_model_a_report_and_a_curve_and_no_checkpoint(
    whole: Path, data: Path
) -> None:
    model = result(whole)
    manifest = DataManifest.read(data / "manifest.json")
    assert model.manifest.data == manifest.digest
    assert (model.manifest.backend, model.manifest.steps) == ("torch", STEPS)
    assert (whole / "model" / "tokenizer.json").read_bytes() == (
        data / "tokenizer.json"
    ).read_bytes()
    report = TrainingReport.read(whole / "training.json")
    assert (report.steps, report.samples, report.tokens) == (
        STEPS,
        BATCH * STEPS,
        BATCH * STEPS * 32,
    )
    with (whole / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(5, 101, 5))
    assert float(rows[-1]["loss"]) == report.train_loss < 5.0
    assert float(rows[-1]["validation_loss"]) == report.validation_loss
    assert rows[0]["validation_loss"] == ""
    assert {path.name for path in whole.glob("scratch/*/*")} == {
        "events.jsonl",
        "lock",
        "metrics.prom",
    }
    (figures,) = whole.glob("scratch/*/metrics.prom")
    assert f'tandem_train_checkpoint_step{{run="{figures.parent.name}"}} {STEPS}.0' in (
        figures.read_text()
    )
    assert f"{STEPS} steps of a model" in (whole / "training.html").read_text()
    assert all(0 < float(row["mfu"]) < 1 for row in rows)
    assert [event["event"] for event in events(whole)] == ["started", "finished"]


def test_a_run_whose_driver_and_then_whose_worker_is_killed_ends_with_the_same_bits(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Steps slow enough that workers notice their driver's end before their own.
    plant(tmp_path / "notes", monkeypatch)
    separate = Separate(data, tmp_path, {})
    # The save of step 20 has waited for that of step 10.
    processes = separate.wait_for(22)
    names = {process.pid: process.name() for process in processes}
    separate.signal(signal.SIGKILL)
    # Two idle agents of Ray wait for its dead server for about a minute before they leave.
    busy = [process for process in processes if not names[process.pid].endswith("Agent")]
    _, alive = psutil.wait_procs(busy, timeout=20)
    assert alive == []
    assert not (tmp_path / "model").exists()

    kill = Kill(tmp_path)
    report = run(data, tmp_path, changes={}, progress=kill)
    assert kill.killed
    told = events(tmp_path)
    assert [event["event"] for event in told] == [
        "started",
        "resumed",
        "worker_lost",
        "resumed",
        "finished",
    ]
    first, second = told[1]["step"], told[3]["step"]
    assert 10 <= first <= second < STEPS
    assert report.resumed_from_step == second
    assert same_bits(result(tmp_path), result(whole))


def test_a_run_stopped_in_torch_on_two_workers_is_finished_in_flax_on_two(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    separate = Separate(data, tmp_path, {"workers": 2})
    processes = separate.wait_for(12)
    status, seconds = separate.signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    assert status == 128 + signal.SIGTERM, (tmp_path / "stderr.txt").read_text()
    assert seconds < 10
    stopped = events(tmp_path)[-1]
    assert stopped["event"] == "stopped"
    # Saved at the very step, not at the last multiple of `every_steps`.
    (newest,) = list((tmp_path / "scratch").glob(f"*/step-{stopped['step']:08d}"))

    report = run(data, tmp_path, changes={"backend": "flax", "workers": 2})
    assert report.resumed_from_step == stopped["step"]
    assert "which torch saved, with flax" in events(tmp_path)[-2]["message"]
    assert distance(result(tmp_path), result(whole)) < WEIGHTS_FLOAT32
    assert result(tmp_path).manifest.backend == "flax"


def test_numbers_that_blow_up_end_the_run_with_one_message_and_no_second_try(
    cluster: None, data: Path, tmp_path: Path
) -> None:
    schedule = Schedule(peak=1e30, curve=ConstantCurve())
    optim = OptimSpec(rule=AdamW(), schedule=schedule, gradient=GradientSpec(clip=None))
    with pytest.raises(ValueError, match="training stopped at step .*optim.schedule.peak"):
        run(data, tmp_path, changes={"backend": "flax"}, optim=optim)
    assert [event["event"] for event in events(tmp_path)] == ["started", "diverged", "refused"]
    assert not (tmp_path / "model").exists()


def test_more_workers_than_cpus_are_refused_at_once(
    cluster: None, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="workers=16, CPUs=2. Try workers=2"):
        run(data, tmp_path, changes={"workers": 16})
