"""Who is told to leave, loses a machine or has no memory left: what counts, and what is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from tasks.train.attempts import until_finished
from tasks.train.events import Events
from tasks.train.losses import last_words, loss_of, uncounted
from tasks.train.mailbox import ENDING, Ending
from tasks.train.ray_backend import Losses, allowed, why_uncounted

# What Ray 2.60 says of a worker that its memory monitor has killed, shortened.
NO_MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "192.0.2.2, ID: 8602d3) was 22.4GB used / 23.5GB limit (0.95)\nObject store memory usage: [- "
    "objects spillable: 0\nTo disable worker killing, set `RAY_memory_monitor_refresh_ms` to zero."
)


def noticed(cause: Exception) -> Exception:
    """As Ray's controller tells it of a worker that no longer answers."""
    error: Exception = WorkerHealthCheckFailedError("A health check failed.\nWorker: ...", cause)
    return error


DIED = noticed(ActorDiedError())
MEMORY = noticed(OutOfMemoryError(NO_MEMORY))
PREEMPTED = noticed(RayActorError(error_msg="The node was drained.", preempted=True))
RESET = RuntimeError("Connection closed by peer\nin all_reduce")


class Attempts:
    """Attempts that were decided before: how each ended, and the newest step on the disk then."""

    def __init__(self, endings: Iterable[tuple[str, int]], *, saved: int = 0) -> None:
        self.endings: Iterator[tuple[str, int]] = iter(endings)
        self.newest, self.made = saved, 0

    def __call__(self) -> Ending:
        status, self.newest = next(self.endings)
        self.made += 1
        assert self.made < 99, "for ever"
        return Ending(status=status, step=self.newest, message="so it is")  # type: ignore[arg-type]


def run(attempts: Attempts, folder: Path, *, restarts: int) -> int | None:
    return until_finished(
        attempts,
        saved=lambda: attempts.newest,
        restarts=restarts,
        events=Events(folder / "events.jsonl"),
    )


def told(folder: Path) -> list[dict[str, Any]]:
    return Events(folder / "events.jsonl").read()


@pytest.mark.parametrize("status", ["stopped", "lost"])
@pytest.mark.parametrize("restarts", [0, 3])
def test_workers_that_leave_before_anything_is_saved_are_not_replaced_for_ever(
    restarts: int, status: str, tmp_path: Path
) -> None:
    attempts = Attempts(itertools.repeat((status, 0)))
    with pytest.raises(ChildProcessError, match=f"{restarts + 1} times in a row .*step 0") as error:
        run(attempts, tmp_path, restarts=restarts)
    assert f"train.restarts, now {restarts}" in str(error.value)
    assert attempts.made == restarts + 1
    assert [event["idle"] for event in told(tmp_path)] == [*range(1, restarts + 1)]


@pytest.mark.parametrize("status", ["stopped", "lost"])
def test_workers_that_have_saved_something_new_leave_as_often_as_they_are_told(
    status: str, tmp_path: Path
) -> None:
    endings = [*((status, step) for step in range(6, 26)), ("finished", 26)]
    assert run(Attempts(endings, saved=5), tmp_path, restarts=0) == 26
    events = told(tmp_path)
    assert [event["event"] for event in events] == ["replaced"] * 20
    assert [event["step"] for event in events] == [*range(6, 26)]
    assert "replaced after step 6 (so it is)" in events[0]["message"]


def test_what_was_idle_is_forgiven_once_something_new_is_saved(tmp_path: Path) -> None:
    steps = [4, 4, 5, 5, 5, 6]
    endings = [*(("stopped", step) for step in steps), ("finished", 7)]
    assert run(Attempts(endings, saved=4), tmp_path, restarts=2) == 7
    assert [event["idle"] for event in told(tmp_path)] == [1, 2, 0, 1, 2, 0]


def test_a_run_that_always_falls_back_ends(tmp_path: Path) -> None:
    """The newest checkpoint is damaged each time: steps are saved, and none of them is new."""
    endings = itertools.cycle([("stopped", 11), ("stopped", 12), ("stopped", 10)])
    attempts = Attempts(endings, saved=12)
    with pytest.raises(ChildProcessError, match="more than step 12"):
        run(attempts, tmp_path, restarts=4)
    assert attempts.made == 5


def test_a_refusal_is_not_tried_again(tmp_path: Path) -> None:
    attempts = Attempts([("stopped", 3), ("refused", 3)])
    with pytest.raises(ValueError, match="so it is"):
        run(attempts, tmp_path, restarts=9)
    assert attempts.made == 2


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(0, 3))
def test_every_run_ends(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], restarts: int
) -> None:
    """Whatever its attempts leave on the disk, over and over."""
    attempts = Attempts(itertools.cycle(("stopped", step) for step in steps))
    with pytest.raises(ChildProcessError):
        run(attempts, tmp_path_factory.mktemp("run"), restarts=restarts)
    assert attempts.made <= (len(set(steps)) + 1) * (restarts + 1)


@pytest.mark.parametrize(
    ("errors", "cause", "says"),
    [
        ({0: MEMORY}, "memory", "no memory was left: 1 worker.* low on memory.*limit .0.95.. Try"),
        ({0: RESET, 1: MEMORY}, "memory", "low on memory"),
        ({0: RESET, 1: PREEMPTED}, "machine", "its machine was taken away: The node was drained"),
        ({0: PREEMPTED, 1: MEMORY}, "memory", "low on memory"),
        ({1: MemoryError("Unable to allocate 64 MiB")}, "memory", "left: Unable to allocate 64"),
        ({1: MemoryError()}, "memory", "no memory was left: MemoryError. Try a larger"),
        ({2: DIED, 0: RESET}, "other", "^Connection closed by peer$"),
        ({2: DIED}, "other", "^The actor died unexpectedly before finishing this task.$"),
    ],
)
def test_a_loss_is_told_with_its_cause(
    errors: dict[int, Exception], cause: str, says: str, tmp_path: Path
) -> None:
    events = Events(tmp_path / "events.jsonl")
    Losses(events, tmp_path).after_exception(SimpleNamespace(), errors)
    (event,) = events.read()
    assert (event["event"], event["cause"], event["ranks"]) == (
        "worker_lost",
        cause,
        sorted(errors),
    )
    found = loss_of(errors)
    assert event["message"].endswith(f": {found.reason}") and "\n" not in found.reason
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(found.reason)


def test_workers_that_end_after_a_refusal_are_no_loss(tmp_path: Path) -> None:
    Ending(status="refused", message="no").write(tmp_path / ENDING)
    Losses(Events(tmp_path / "events.jsonl"), tmp_path).after_exception(
        SimpleNamespace(), {0: DIED}
    )
    assert told(tmp_path) == []


def retried(error: Exception, *, restarts: int) -> int:
    """How often Ray would start the workers again, were they lost like this each time."""
    policy = DefaultFailurePolicy(allowed(restarts))
    decisions = (policy.make_decision(error) for _ in range(99))
    retries = itertools.takewhile(lambda decision: decision is FailureDecision.RETRY, decisions)
    return len(list(retries))


@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("cause", [DIED, MEMORY, MemoryError(), RESET])
def test_a_worker_that_memory_costs_is_lost_like_any_other(cause: Exception, restarts: int) -> None:
    error = WorkerGroupError("...", {1: cause})
    assert retried(error, restarts=restarts) == restarts
    assert uncounted(error) is None
    assert last_words(error) == loss_of({1: cause}).reason


def test_workers_that_do_not_meet_count_too() -> None:
    error = ControllerError(WorkerGroupStartupFailedError("the workers did not meet: no memory"))
    assert retried(error, restarts=3) == 3
    assert uncounted(error) is None
    assert last_words(error) == "the workers did not meet: no memory"


@pytest.mark.parametrize(
    ("make", "heard", "cause"),
    [
        (lambda: WorkerGroupError("...", {0: RESET, 1: PREEMPTED}), True, "machine"),
        (lambda: PreemptionError(PreemptionInfo(None, {"node": [1]})), False, "machine"),
        (lambda: ControllerError(OutOfMemoryError(NO_MEMORY)), False, "memory"),
        (lambda: ControllerError(ActorDiedError()), False, "other"),
    ],
    ids=["machine", "machine that was announced", "memory at the start", "death at the start"],
)
def test_what_ray_would_not_count_ends_the_attempt_and_is_counted_here(
    make: Callable[[], Exception], heard: bool, cause: str, tmp_path: Path
) -> None:
    """Ray by itself starts again without end where machines go, and never where a start fails."""
    error, events = make(), Events(tmp_path / "events.jsonl")
    assert retried(error, restarts=3) == 0
    reason = why_uncounted(error, events)
    assert reason
    # `Losses` has heard of what happened to workers that ran.
    causes = [event["cause"] for event in events.read()]
    assert causes == ([] if heard else [cause])
    loss = uncounted(error)
    assert loss is not None and loss.cause == cause


def test_a_controller_that_memory_costs_ends_the_run_and_says_so(tmp_path: Path) -> None:
    error, events = OutOfMemoryError(NO_MEMORY), Events(tmp_path / "events.jsonl")
    assert why_uncounted(error, events) is None
    (event,) = events.read()
    assert (event["event"], event["cause"]) == ("worker_lost", "memory")
    assert "lost Ray's controller: no memory was left: 1 worker(s)" in event["message"]
    assert last_words(error) in event["message"]


def test_a_mistake_at_the_start_is_not_tried_again() -> None:
    task = RayTaskError("run", "trace", ImportError("no module"))
    assert uncounted(ControllerError(task)) is None
    assert uncounted(ControllerError(KeyError("x"))) is None
