"""Workers that die, hang, run out of memory or are told to leave: the run ends as if none had."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.train.events import Events
from tests.tolerances import CURVE_FLOAT64
from tests.train.planted import LEAK, history, local_ray, notes, plant
from tests.train.runs import ROOT, STEPS, Separate, events, result, run, small_data
from tests.train.test_group import same_bits

# `make proof` with TANDEM_PROOF_ROUNDS=10 loses ten times as many workers.
ROUNDS = int(os.environ.get("TANDEM_PROOF_ROUNDS", "1"))
HANG_S = 30.0
WORKERS = 2


def test_a_thread_that_stands_still_ends_its_process_and_tells_where_it_stood(
    tmp_path: Path,
) -> None:
    path, timeout_s, steps = tmp_path / "events.jsonl", 1.5, 2
    child = [sys.executable, "-m", "tests.train.hanging", str(path), str(timeout_s), str(steps)]
    assert subprocess.run(child, cwd=ROOT, timeout=60).returncode == 1
    (told,) = Events(path).read()
    assert (told["event"], told["rank"], told["step"]) == ("hung", 1, steps)
    assert timeout_s <= told["seconds"] < 2 * timeout_s
    assert "in waits_for_ever" in told["stack"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def undisturbed(
    cluster: None, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a run that nobody disturbed, by its framework."""
    done: dict[str, Path] = {}

    def find(backend: str) -> Path:
        if backend not in done:
            done[backend] = tmp_path_factory.mktemp(backend)
            run(data, done[backend], changes={"backend": backend, "workers": WORKERS})
        return done[backend]

    return find


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder into which the workers of this test note their steps."""
    plant(tmp_path / "notes", monkeypatch)
    return tmp_path / "notes"


Way = Callable[[psutil.Process, Path, int], None]


def kill(worker: psutil.Process, planted: Path, rank: int) -> None:
    worker.kill()


def stop(worker: psutil.Process, planted: Path, rank: int) -> None:
    worker.suspend()


def sleep(worker: psutil.Process, planted: Path, rank: int) -> None:
    (planted / f"sleep-{rank}").touch()


def starve(worker: psutil.Process, planted: Path, rank: int) -> None:
    """It leaks memory and may not have much more than it has."""
    most = worker.memory_info().vms + 4 * LEAK
    worker.rlimit(psutil.RLIMIT_AS, (most, most))
    (planted / f"leak-{rank}").touch()


WAYS = (kill, stop, sleep, starve)


class Loses:
    """Progress that loses a worker in each of these ways, spread over the run."""

    def __init__(self, planted: Path, ways: list[Way], draw: random.Random, workers: int) -> None:
        self.planted, self.ways, self.draw, self.workers = planted, ways, draw, workers
        self.lost: list[tuple[Way, psutil.Process, datetime]] = []

    def __call__(self, done: int, total: int, note: str = "") -> None:
        so_far = len(self.lost)
        if so_far < len(self.ways) and done >= total * (2 * so_far + 1) / (2 * len(self.ways)):
            rank, way = self.draw.randrange(self.workers), self.ways[so_far]
            worker = psutil.Process(notes(self.planted, rank)[-1].pid)
            self.lost.append((way, worker, datetime.now(UTC)))
            way(worker, self.planted, rank)

    def check(self, told: list[dict[str, Any]]) -> None:
        """All happened, all were noticed in time, and no process is left."""
        assert [way for way, _, _ in self.lost] == self.ways
        noticed = [datetime.fromisoformat(e["time"]) for e in told if e["event"] == "worker_lost"]
        for way, _, at in self.lost:
            seconds = (min(time for time in noticed if time > at) - at).total_seconds()
            print(f"{way.__name__} noticed after {seconds:.1f} s")
            assert seconds < 2 * HANG_S, way
        _, alive = psutil.wait_procs([worker for _, worker, _ in self.lost], timeout=20)
        assert alive == []


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_a_run_that_loses_workers_in_every_way_ends_with_the_same_bits(
    backend: str,
    seed: int,
    undisturbed: Callable[[str], Path],
    planted: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    draw = random.Random(f"{backend} {seed}")
    loses = Loses(planted, draw.sample(WAYS, len(WAYS)), draw, WORKERS)
    changes = {
        "backend": backend,
        "workers": WORKERS,
        # A busy machine may not get to the first step in time, and that is a hang too.
        "restarts": 2 * len(WAYS),
        "hang_timeout_s": HANG_S,
    }
    run(data, tmp_path, changes=changes, progress=loses)
    told = events(tmp_path)
    loses.check(told)
    replaced = [event for event in told if event["event"] == "resumed"]
    assert len(replaced) == len([event for event in told if event["event"] == "worker_lost"])
    assert any("in sleeps_for_ever" in each["stack"] for each in told if each["event"] == "hung")
    assert sorted(history(planted)) == list(range(STEPS))
    assert same_bits(result(tmp_path), result(undisturbed(backend)))


@pytest.mark.proof
def test_a_worker_that_is_stopped_as_a_whole_is_noticed_though_no_other_waits_for_it(
    cluster: None, planted: Path, data: Path, tmp_path: Path
) -> None:
    loses = Loses(planted, [stop], random.Random(0), workers=1)
    run(data, tmp_path, changes={"hang_timeout_s": HANG_S}, progress=loses)
    told = events(tmp_path)
    loses.check(told)
    assert [event["event"] for event in told] == ["started", "worker_lost", "resumed", "finished"]
    assert sorted(history(planted)) == list(range(STEPS))


@pytest.mark.proof
def test_workers_that_die_or_hang_before_they_meet_are_replaced(
    undisturbed: Callable[[str], Path], planted: Path, data: Path, tmp_path: Path
) -> None:
    for how in ("dead", "late"):
        (planted / f"{how}-1").touch()
    run(data, tmp_path, changes={"workers": WORKERS, "hang_timeout_s": HANG_S})
    told = events(tmp_path)
    assert [event["event"] for event in told[:3]] == ["worker_lost", "worker_lost", "started"]
    assert all("did not meet" in event["message"] for event in told[:2])
    assert same_bits(result(tmp_path), result(undisturbed("torch")))


class Leaves:
    """Progress that tells a worker to leave each time that the run has come so far."""

    def __init__(self, planted: Path, steps: list[int]) -> None:
        self.planted, self.steps = planted, steps

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if self.steps and done >= self.steps[0]:
            rank = len(self.steps) % WORKERS
            self.steps.pop(0)
            psutil.Process(notes(self.planted, rank)[-1].pid).terminate()


@pytest.mark.proof
def test_workers_that_are_told_to_leave_are_replaced_though_no_loss_is_allowed(
    undisturbed: Callable[[str], Path], planted: Path, data: Path, tmp_path: Path
) -> None:
    changes = {"workers": WORKERS, "restarts": 0}
    run(data, tmp_path, changes=changes, progress=Leaves(planted, [20, 55]))
    told = events(tmp_path)
    assert [event["event"] for event in told] == [
        "started",
        *("stopped", "replaced", "resumed") * 2,
        "finished",
    ]
    # The state of the very step at which they left: nothing is done twice.
    for stopped, resumed in zip(told[1::3], told[3::3]):
        assert stopped["step"] == resumed["step"]
    assert set(Counter(note.step for note in notes(planted, 0)).values()) == {1}
    assert same_bits(result(tmp_path), result(undisturbed("torch")))


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_a_driver_that_is_terminated_has_saved_within_10_seconds_all_but_one_step(
    backend: str, planted: Path, data: Path, tmp_path: Path
) -> None:
    separate = Separate(data, tmp_path, {"backend": backend, "workers": WORKERS})
    processes = separate.wait_for(22)
    status, seconds = separate.signal(signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, (tmp_path / "stderr.txt").read_text()
    print(f"{backend}: gone after {seconds:.1f} s")
    assert seconds < 10
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    stopped = events(tmp_path)[-1]
    assert stopped["event"] == "stopped"
    (newest,) = (tmp_path / "scratch").glob(f"*/step-{stopped['step']:08d}")
    for rank in range(WORKERS):
        assert notes(planted, rank)[-1].step + 1 - stopped["step"] <= 1


class Interrupts:
    """Progress that interrupts the run once it has come so far."""

    def __init__(self, step: int) -> None:
        self.step, self.over = step, False

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if done >= self.step and not self.over:
            self.over = True
            raise KeyboardInterrupt


@pytest.mark.proof
def test_a_run_on_2_then_1_then_2_workers_of_both_frameworks_is_one_run_on_1(
    cluster: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(name: str) -> Path:
        plant(tmp_path / name, monkeypatch)
        return tmp_path / name

    wide = {"precision": "float64", "batch": 16}
    one = noted("one")
    (tmp_path / "whole").mkdir()
    run(data, tmp_path / "whole", changes={**wide, "backend": "torch"})

    many = noted("many")
    (tmp_path / "parts").mkdir()
    legs = [("torch", 2, 20), ("flax", 1, 40), ("flax", 2, 60)]
    for backend, workers, until in legs:
        with pytest.raises(KeyboardInterrupt):
            changes = {**wide, "backend": backend, "workers": workers}
            run(data, tmp_path / "parts", changes=changes, progress=Interrupts(until))
    run(data, tmp_path / "parts", changes={**wide, "backend": "torch", "workers": 2})

    told = [event["event"] for event in events(tmp_path / "parts")]
    assert told == ["started", *("stopped", "resumed") * len(legs), "finished"]
    expected, found = history(one), history(many)
    assert sorted(found) == sorted(expected) == list(range(STEPS))
    worst = 0.0
    for step, (samples, loss) in expected.items():
        assert found[step][0] == samples
        worst = max(worst, abs(found[step][1] - loss) / loss)
    print(f"losses differ by {worst:.1e} at most")
    assert worst < CURVE_FLOAT64
