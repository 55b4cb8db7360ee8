"""What people see of a run: metrics, traces, utilisation, and who may end it."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tasks.train.callbacks import Callback, Step, is_best, run_dry
from tasks.train.engine import ExpertLoad, StepResult
from tasks.train.events import Events
from tasks.train.metrics import FILE, WRITE_EVERY_S, Metrics
from tasks.train.peak import CPU_SIDE, measured_peak
from tasks.train.profiling import Profiler
from tasks.train.run_spec import EarlyStopping, ProfileSpec
from tasks.train.saving import Saved
from tasks.train.speed import Peak


def step(done: int, *, load: ExpertLoad | None = None, taken: bool = True) -> Step:
    result = StepResult(loss=2.5, gradient_norm=0.5, objective=2.75, taken=taken, load=load)
    return Step(done, result, rate=1e-3, positions=4000, seconds=0.5, data_wait_s=0.125)


def metrics(folder: Path, *, port: int | None = None, now: list[float] | None = None) -> Metrics:
    times = now or [0.0]
    return Metrics(
        folder,
        run="abc",
        backend="torch",
        peak=Peak(16e9, 10**6),
        port=port,
        clock=lambda: times[0],
    )


def samples(text: str) -> dict[str, float]:
    return {
        sample.name.removeprefix("tandem_train_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_file_tells_every_figure_of_the_run(tmp_path: Path) -> None:
    with metrics(tmp_path) as watched:
        watched.after_step(step(1, load=ExpertLoad(1.5, 0.25)))
        watched.after_step(step(2, load=ExpertLoad(1.25, 0.0), taken=False))
        watched.after_step(step(2, load=ExpertLoad(1.25, 0.0)))
        watched.after_validation(2, 3.0)
        watched.after_save(Saved(2, blocked_s=0.01, writing_s=0.2))
    text = (tmp_path / FILE).read_text()
    assert 'tandem_train_loss{run="abc"} 2.5' in text
    seen = samples(text)
    assert seen.pop("memory_resident_bytes") > 2**20
    assert seen == {
        "step": 2,
        "loss": 2.5,
        "validation_loss": 3.0,
        "objective": 2.75,
        "gradient_norm": 0.5,
        "learning_rate": 1e-3,
        "tokens_per_second": 8000,
        "mfu": 0.5,
        "expert_imbalance": 1.25,
        "expert_dropped": 0.0,
        "checkpoint_step": 2,
        "tokens_total": 12000,
        "skipped_steps_total": 1,
        "data_wait_seconds_total": 0.375,
        "step_seconds_count": 3,
        "step_seconds_sum": 1.5,
        "checkpoint_blocked_seconds_count": 1,
        "checkpoint_blocked_seconds_sum": 0.01,
        "checkpoint_writing_seconds_count": 1,
        "checkpoint_writing_seconds_sum": 0.2,
    }
    assert {path.name for path in tmp_path.iterdir()} == {FILE}


def test_what_was_not_measured_is_not_told(tmp_path: Path) -> None:
    with metrics(tmp_path) as watched:
        watched.after_step(step(1))
    seen = samples((tmp_path / FILE).read_text())
    assert seen.keys().isdisjoint({"expert_imbalance", "validation_loss", "checkpoint_step"})


def test_the_file_is_written_now_and_then_and_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    now = [0.0]
    watched = metrics(tmp_path, now=now)
    for done, time_s, told in ((1, 0.0, 1), (2, 1.0, 1), (3, WRITE_EVERY_S, 3)):
        now[0] = time_s
        watched.after_step(step(done))
        assert samples((tmp_path / FILE).read_text())["step"] == told
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    watched.close()


def test_a_scrape_on_the_loopback_interface_reads_the_same(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with metrics(tmp_path, port=port) as watched:
        watched.after_step(step(7))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert samples(answer.read().decode())["step"] == 7
        with pytest.raises(ValueError, match=f"train.metrics_port must be a free.*{port}"):
            metrics(tmp_path, port=port)
    # Closed, it can be opened again by the worker that takes over.
    metrics(tmp_path, port=port).close()


@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_a_measured_peak_is_one_that_a_machine_can_have(backend: str) -> None:
    peak = measured_peak(backend, "float32")  # type: ignore[arg-type]
    assert 2 * CPU_SIDE**3 / 60 < peak < 1e16


@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_the_switch_traces_the_steps_that_were_asked_for(tmp_path: Path, backend: str) -> None:
    if backend == "torch":
        import torch

        def compute() -> None:
            torch.ones(3).cumsum(0)

    else:
        import jax.numpy as jnp

        def compute() -> None:
            jnp.ones(3).cumsum(0).block_until_ready()

    events = Events(tmp_path / "events.jsonl")
    tracer = Profiler(
        ProfileSpec(start=2, steps=2),
        tmp_path,
        backend=backend,  # type: ignore[arg-type]
        rank=0,
        done=0,
        events=events,
    )
    folder = tmp_path / "profile" / "rank-000"
    with tracer:
        for done in range(1, 6):
            compute()
            tracer.after_step(step(done))
            assert bool(events.read()) == (done >= 4)
            assert folder.exists() == (done >= 2)
    (event,) = events.read()
    assert (event["event"], event["folder"]) == ("profiled", str(folder))
    if backend == "torch":
        trace = json.loads((folder / "steps-2-4.json").read_text())
        calls = [call for call in trace["traceEvents"] if call.get("name") == "aten::cumsum"]
        assert len(calls) == 2
    else:
        assert list((folder / "steps-2-4").rglob("*.xplane.pb"))


def test_a_trace_that_the_end_cuts_short_is_written(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    spec = ProfileSpec(start=0, steps=9)
    with Profiler(spec, tmp_path, backend="torch", rank=1, done=4, events=events) as tracer:
        tracer.after_step(step(5))
    assert (tmp_path / "profile" / "rank-001" / "steps-4-9.json").is_file()
    assert events.read() == []


def test_metrics_and_the_profiler_are_callbacks(tmp_path: Path) -> None:
    spec = ProfileSpec(start=9)
    events = Events(tmp_path / "events.jsonl")
    listeners: list[Callback] = [
        metrics(tmp_path),
        Profiler(spec, tmp_path, backend="torch", rank=0, done=0, events=events),
    ]
    assert [listener.after_validation(1, 2.0) for listener in listeners] == [False, False]


@pytest.mark.parametrize(
    ("losses", "patience", "least_change", "ends_after"),
    [
        ([3, 2, 1, 1, 1, 1], 2, 0.0, 5),
        ([3, 2, 2, 1, 1, 0.5], 2, 0.0, None),
        ([3, 2.95, 2.9, 2.85], 2, 0.1, 3),
        # A slow fall counts in the end: what is compared is the best so far.
        ([3, 2.95, 2.85, 2.7], 3, 0.1, None),
        ([1, 2, 3], 1, 0.0, 2),
    ],
)
def test_a_run_ends_when_nothing_better_came(
    losses: list[float], patience: int, least_change: float, ends_after: int | None
) -> None:
    spec = EarlyStopping(patience=patience, least_change=least_change)
    ended = [count for count in range(len(losses) + 1) if run_dry(spec, losses[:count])]
    assert (ended[0] if ended else None) == ends_after
    assert not run_dry(None, losses)


@given(st.lists(st.floats(0, 10), min_size=1), st.integers(1, 5))
def test_a_run_that_only_improves_never_ends_early(losses: list[float], patience: int) -> None:
    falling = sorted(set(losses), reverse=True)
    assert not run_dry(EarlyStopping(patience=patience), falling)
    assert all(is_best(falling[: count + 1]) for count in range(len(falling)))
