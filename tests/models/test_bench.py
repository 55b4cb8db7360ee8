"""The benchmark of the twins: every kind of contender works, and its figures mean what they say."""

from __future__ import annotations

import pytest

from benchmarks.models.__main__ import Sheet, written
from benchmarks.models.contender import Task, work_of
from benchmarks.models.rounds import Contenders, Measured

TASKS = (
    Task("torch", "train", "vit", "mixed_bfloat16", tiny=True),
    Task("flax", "train", "gpt2", tiny=True),
    Task("transformers", "train", "mixtral", "autocast", tiny=True),
    Task("torch", "decode", precision="bfloat16", size=2, tokens=2, tiny=True),
    Task("flax", "decode", precision="bfloat16", size=1, tokens=2, tiny=True),
    Task("transformers", "decode", size=2, tokens=2, tiny=True),
    Task("torch", "experts", size=4, tiny=True),
    Task("torch", "peak", precision="bfloat16", size=8),
    Task("flax", "peak", size=8),
)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.who} {task.what}")
def test_a_contender_does_its_task(task: Task) -> None:
    assert work_of(task)() is None


def test_a_contender_measures_compiling_by_itself() -> None:
    seconds = work_of(Task("flax", "compile", size=1, tiny=True))()
    assert seconds is not None and seconds > 0


def test_computing_blocks_again_takes_less_memory() -> None:
    task = Task("flax", "memory", tiny=True)
    policies = ("none", "blocks")
    most, least = (work_of(task._replace(checkpointing=policy))() for policy in policies)
    assert most is not None and least is not None and 0 < least < most


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="got 'dance'"):
        work_of(Task("torch", "dance"))


def test_contenders_take_turns_and_answer_once_a_round() -> None:
    one, other = Task("torch", "peak"), Task("torch", "peak", precision="bfloat16")
    with Contenders() as contenders:
        found = contenders.run([one, other], rounds=3)
        again = contenders.run([other], rounds=1)
    assert [each.task for each in found] == [one, other]
    assert [len(each.values) for each in (*found, *again)] == [3, 3, 1]
    assert all(each.median > 0 for each in found)


def test_a_contender_that_ends_is_an_error() -> None:
    with (
        pytest.raises(RuntimeError, match="torch ended at take"),
        Contenders() as contenders,
    ):
        contenders.run([Task("torch", "dance")], rounds=1)


def test_ratios_are_medians_within_rounds() -> None:
    task = Task("torch", "peak")
    own, other = Measured(task, (1.0, 4.0, 2.0)), Measured(task, (2.0, 4.0, 20.0))
    assert own.times_faster(other) == 2.0
    assert own.median == 2.0


def test_a_sheet_is_written_as_markdown() -> None:
    text = written([Sheet("Title", ("a", "b"), [("1", "2")])])
    assert text == "## Title\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
