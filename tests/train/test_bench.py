"""The benchmark of training: contenders train the same thing, its figures mean what they say."""

from __future__ import annotations

import pytest

from benchmarks.train import contender
from benchmarks.train.contender import NEEDS, Run, missing
from benchmarks.train.course import Task, shape_of, weights_of, write_data
from benchmarks.train.plain import Llama, load
from benchmarks.train.race import Raced, race
from benchmarks.train.turns import Turn, Turns
from tests.tolerances import CURVE_FLOAT32_LOSS

PRESENT = [who for who in NEEDS if missing(who) is None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared data set."""
    return str(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def losses(data: str) -> dict[str, tuple[float, ...]]:
    """Three steps of every contender that is installed."""
    found = {}
    for who in PRESENT:
        turns = Turns([2, 1], lambda turn: None)
        task = Task(who, "float32", data, compiled=False, tiny=True)
        found[who] = contender.train(task, turns).losses
    return found


@pytest.mark.parametrize("who", PRESENT)
def test_contenders_train_the_same_model_on_the_same_tokens_by_the_same_rule(
    losses: dict[str, tuple[float, ...]], who: str
) -> None:
    # The first loss tells of weights and tokens, the others of the rule.
    expected = pytest.approx(losses["plain"], rel=CURVE_FLOAT32_LOSS)
    assert len(losses[who]) == 3
    assert losses[who] == expected


def test_a_contender_in_bfloat16_rounds(data: str, losses: dict[str, tuple[float, ...]]) -> None:
    for who in ("torch", "plain"):
        task = Task(who, "bfloat16", data, compiled=False, tiny=True)
        (loss,) = contender.train(task, Turns([1], lambda turn: None)).losses
        assert 0 < abs(loss - losses[who][0]) < 0.01, who


def test_contenders_take_turns_and_count_their_own_steps(data: str) -> None:
    tasks = [Task(who, "float32", data, compiled=False, tiny=True) for who in ("plain", "torch")]
    plain, ours = race(tasks, rounds=2, each=2, tell=lambda line: None)
    assert [len(each.turns) for each in (plain, ours)] == [2, 2]
    assert [len(each.run.losses) for each in (plain, ours)] == [6, 6]
    assert plain.run.losses == pytest.approx(ours.run.losses, rel=1e-4)
    assert plain.run.saving_s == 0.0 < ours.run.saving_s
    assert all(0 < turn.inside_s < turn.seconds for turn in ours.turns)


def test_a_contender_that_ends_is_an_error(data: str) -> None:
    with pytest.raises(RuntimeError, match="dance ended"):
        race([Task("dance", "float32", data)], rounds=1, each=1, tell=lambda line: None)


def test_a_missing_rival_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contender.NEEDS, "litgpt", {"no_such_module": "its-name"})
    remedy = missing("litgpt")
    assert remedy is not None and "--no-deps --target artifacts/rivals its-name" in remedy


def test_weights_that_do_not_fit_a_rival_are_refused() -> None:
    shape = shape_of(tiny=True)
    with pytest.raises(ValueError, match="left .*gate"):
        load(Llama(shape.spec), {})
    with pytest.raises(ValueError, match="unknown .*query"):
        load(Llama(shape.spec), weights_of(shape))


def test_turns_measure_from_step_to_step_and_end_the_loop() -> None:
    now, told = iter([0.0, 5.0, 6.0, 8.0, 9.0]), list[Turn]()
    turns = Turns([2, 1], told.append, clock=lambda: next(now))
    ends = [turns.after_step(loss, inside_s=inside) for loss, inside in ((3, 1), (2, 4), (1, 5))]
    assert ends == [False, False, True]
    assert told == [Turn(5.0, 4.0), Turn(2.0, 1.0)]
    assert turns.losses == [3, 2, 1]


def test_a_checkpoint_is_charged_to_every_step_that_it_covers() -> None:
    task = Task("torch", "float32", "")
    raced = Raced(task, 2, (Turn(4.0, 3.0), Turn(8.0, 7.6), Turn(2.0, 1.0)), Run((1.0,), 5.0))
    assert raced.steps_s == [2.0, 4.0, 1.0] and raced.step_s == 2.0
    assert raced.outside == 0.25
    assert raced.charged(every=50).steps_s == pytest.approx([2.1, 4.1, 1.1])
    rival = raced._replace(turns=(Turn(4.0, 0.0), Turn(4.0, 0.0), Turn(6.0, 0.0)))
    assert raced.times_faster(rival) == 1.0
