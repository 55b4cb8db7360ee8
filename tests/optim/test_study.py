"""The study of the rules: all are treated alike, nothing is done twice, figures mean what they
say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from benchmarks.study.__main__ import PAGE, RESULTS, TABLE, main
from benchmarks.study.course import SEEDS, Findings, Row, Study, column, steps_in_time
from benchmarks.study.intervals import interval, paired_difference
from benchmarks.study.journal import Journal
from benchmarks.study.problems import open_problem
from benchmarks.study.recipes import GRID, RECIPES, Recipe, optim_of, peaks_of
from benchmarks.study.timing import ROUNDS, Timed, Timing
from benchmarks.study.trial import Ended, Trial, train, train_spec
from benchmarks.study.workers import Workers
from benchmarks.study.written import markdown
from optim.rules import AnyRule, Sgd
from tasks.progress import Progress, silent
from tasks.train.checkpoints import Checkpoints
from tasks.train.events import Events
from tasks.train.loop import run_loop
from tasks.train.stopping import Stopping
from tasks.train.worker import build_engine

SCALE = 0.01
RULES = ("adamw", "sgd")
NOISE = (-0.01, 0.0, 0.02)
TINY = Trial(problem="digits", rule="adamw", peak=1e-3, seed=1, steps=2)


class Ran(NamedTuple):
    folder: Path
    findings: Findings

    def row(self, rule: str) -> Row:
        return next(row for row in self.findings.rows if row.rule == rule)


def study(path: Path, *, progress: Progress = silent) -> Findings:
    (found,) = Study(
        Journal(path),
        problems=["digits"],
        rules=RULES,
        scale=SCALE,
        processes=1,
        progress=progress,
    ).run()
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A study in which all rates of SGD are far too high."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "sgd", Recipe(Sgd(), 300.0, "planted"))
        arguments = ["--scale", str(SCALE), "--processes", "1", "--problems", "digits"]
        main([*arguments, "--rules", *RULES, "--out", str(folder)])
        yield Ran(folder, study(folder / RESULTS))


def test_a_study_tunes_every_rule_alike_and_judges_it_by_other_seeds(ran: Ran) -> None:
    lines = [json.loads(line) for line in (ran.folder / RESULTS).read_text().splitlines()]
    trials = [line["trial"] for line in lines if "trial" in line]
    for rule in RULES:
        own = [trial for trial in trials if trial["rule"] == rule]
        tuning = [trial for trial in own if trial["seed"] not in SEEDS]
        assert [trial["peak"] for trial in tuning] == list(peaks_of(rule))
        assert {trial["seed"] for trial in tuning} == {0}
        row = ran.row(rule)
        losses = {line["trial"]["peak"]: line["loss"] for line in lines if line.get("trial") in own}
        assert row.tuned.keys() == losses.keys()
        assert row.tuned[row.peak] == min(loss for loss in row.tuned.values() if loss is not None)
        final = [trial for trial in own if trial["seed"] in SEEDS]
        assert {trial["peak"] for trial in final} == {row.peak}
        budgets = {row.tokens.steps, row.clock.steps}
        assert sorted((trial["seed"], trial["steps"]) for trial in final) == sorted(
            (seed, steps) for seed in SEEDS for steps in budgets
        )
        assert row.tokens.steps == ran.findings.steps == 6
        assert row.clock.steps == steps_in_time(6, time=row.time)


def test_a_rule_that_does_harm_is_told_apart(ran: Ran) -> None:
    sgd, adamw = ran.row("sgd").tokens, ran.row("adamw").tokens
    assert sgd.difference is not None and sgd.difference.mean > 10
    assert adamw.difference is None
    own, base = ([loss for loss in each.losses if loss is not None] for each in (sgd, adamw))
    assert len(own) == len(SEEDS) and sgd.difference == paired_difference(own, base)


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (
            -0.5,
            "Better than AdamW with as many steps: sgd. Better than AdamW in as much time: none.",
        ),
        (0.5, "Worse than AdamW with as many steps: sgd. Worse than AdamW in as much time: none."),
        (0.0, "Better than AdamW with as many steps: none."),
    ],
)
def test_a_verdict_names_rules_whose_interval_leaves_zero(
    ran: Ran, shift: float, verdict: str
) -> None:
    base = [2.0, 3.0, 4.0]
    tokens = column(
        6, [loss + shift + noise for loss, noise in zip(base, NOISE, strict=True)], base=base
    )
    clock = column(6, [loss + noise for loss, noise in zip(base, NOISE, strict=True)], base=base)
    sgd = ran.row("sgd")._replace(tokens=tokens, clock=clock)
    assert verdict in markdown([ran.findings._replace(rows=(ran.row("adamw"), sgd))])


def test_a_study_is_written_as_a_table_and_as_a_page(ran: Ran) -> None:
    found = (ran.folder / TABLE).read_text()
    assert found == markdown([ran.findings])
    mean = ran.row("sgd").tokens.mean
    assert mean is not None and f"| {mean.mean:.4f} ({mean.low:.4f} to {mean.high:.4f}) |" in found
    page = (ran.folder / PAGE).read_text()
    assert "<svg" in page and "with as many steps" in page and escape(RECIPES["soap"].why) in page


def test_a_resumed_study_repeats_nothing(ran: Ran, tmp_path: Path) -> None:
    whole = (ran.folder / RESULTS).read_bytes()
    lines = whole.splitlines(keepends=True)
    path = tmp_path / RESULTS
    # Killed while it wrote the last but two.
    path.write_bytes(b"".join(lines[:-3]) + lines[-3][:40])
    assert study(path) == ran.findings
    assert path.read_bytes() == whole
    told: list[tuple[int, int]] = []
    study(path, progress=lambda done, total, note="": told.append((done, total)))
    assert path.read_bytes() == whole
    assert told and all(done == total for done, total in told)


def test_results_of_other_settings_are_no_results(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(ran.folder / RESULTS)
    steps, peak = ran.findings.steps, peaks_of("sgd")[0]
    trial = Trial(problem="digits", rule="sgd", peak=peak, seed=0, steps=steps)
    assert journal.get(trial.identity) is not None
    for change in ({"steps": steps + 1}, {"seed": 9}, {"peak": 2 * peak}, {"problem": "text"}):
        assert journal.get(trial.model_copy(update=change).identity) is None
    monkeypatch.setitem(RECIPES, "sgd", Recipe(Sgd(momentum=0.8), 300.0, "planted"))
    assert journal.get(trial.identity) is None


def test_a_damaged_journal_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    path.write_text('{"identity": 3}\n')
    with pytest.raises(ValueError, match="line 1 is no result"):
        Journal(path)


@pytest.mark.parametrize(("problem", "rule"), [("text", "adamw"), ("digits", "schedule_free")])
def test_a_trial_ends_where_the_loop_of_training_ends(
    tmp_path: Path, problem: str, rule: str
) -> None:
    trial = Trial(problem=problem, rule=rule, peak=0.01, seed=2, steps=4)
    held, spec = open_problem(problem), train_spec(trial)
    checkpoints = Checkpoints(tmp_path, {}, 1, Events(tmp_path / "events.jsonl"))
    engine = build_engine(held.model, trial.optim, spec)
    run_loop(
        engine,
        train=spec,
        optim=trial.optim,
        training=held.training,
        validation=held.validation,
        positions=held.model.inputs.length,
        checkpoints=checkpoints,
        start=None,
        stopping=Stopping(tmp_path),
    )
    engine.close()
    last = checkpoints.newest()
    assert last is not None
    assert train(trial).loss == last.manifest.ledger.curve[-1].validation_loss


def test_a_run_that_blows_up_ends_at_once_without_a_loss() -> None:
    assert train(TINY.model_copy(update={"peak": 1e30, "steps": 10**6})).loss is None
    blown = column(4, [1.0, None, 2.0], base=[1.0, 2.0, 3.0])
    assert blown.mean is None and blown.difference is None


@pytest.mark.slow
def test_other_processes_find_what_this_one_finds_and_are_missed_when_they_end() -> None:
    trials = [TINY, TINY.model_copy(update={"seed": 2})]
    unknown = TINY.model_copy(update={"rule": "dance"})
    with pytest.raises(RuntimeError, match="dance"), Workers(2) as workers:
        found = list(workers.run(trials))
        list(workers.run([unknown]))
    assert sorted(each.identity for each in found) == sorted(each.identity for each in trials)
    for each in found:
        assert isinstance(each, Ended)
        assert each.loss == train(each.trial).loss


def test_every_kind_of_rule_is_studied_with_a_grid_of_equal_length() -> None:
    kinds = {rule.model_fields["kind"].default for rule in get_args(AnyRule)}
    assert RECIPES.keys() == kinds
    for name, recipe in RECIPES.items():
        assert recipe.rule.kind == name
        peaks = peaks_of(name)
        assert len(peaks) == len(GRID) and peaks[len(GRID) // 2] == recipe.centre
        steps = [low / high for low, high in zip(peaks, peaks[1:], strict=False)]
        assert steps == pytest.approx([1 / 3] * (len(GRID) - 1), rel=0.01)
        optim = optim_of(name, peak=0.5, steps=100)
        assert optim.schedule.peak == 0.5 and optim.rule == recipe.rule


def test_an_unknown_rule_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got dance"):
        Study(
            Journal(tmp_path / RESULTS),
            problems=["digits"],
            rules=["dance"],
            scale=1.0,
            processes=1,
        )


def test_intervals_are_students() -> None:
    # t(2) at 97.5 % is 4.302653; the standard deviation of 1, 2, 3 is 1.
    found = interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert found.holds_zero is True
    with pytest.raises(ValueError, match="at least two values; got 1"):
        interval([1.0])


def test_differences_are_taken_seed_by_seed() -> None:
    # Seeds differ by ten, rules by 0.1, 0.2 and 0.3.
    found = paired_difference([10.1, 20.2, 30.3], [10.0, 20.0, 30.0])
    half = 4.302653 * 0.1 / 3**0.5
    assert found == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-6)


def test_a_ratio_of_times_is_the_median_within_rounds() -> None:
    timing = Timing(problem="digits", rules=("adamw", "sgd"))
    seconds: dict[str, tuple[float, ...]]
    seconds = {"adamw": (1.0, 4.0, 2.0), "sgd": (3.0, 4.0, 1.0)}
    assert Timed(identity="", timing=timing, seconds=seconds).ratio("sgd") == 1.0


def test_steps_are_timed_in_turns(ran: Ran) -> None:
    found = Journal(ran.folder / RESULTS).get(Timing(problem="digits", rules=RULES).identity)
    assert isinstance(found, Timed)
    assert {rule: len(values) for rule, values in found.seconds.items()} == dict.fromkeys(
        RULES, ROUNDS
    )
    assert found.ratio("adamw") == 1.0


@pytest.mark.parametrize(
    ("time", "steps"), [(2.0, 50), (0.5, 200), (1.015, 100), (0.985, 100), (1.03, 97), (1e9, 2)]
)
def test_a_slower_rule_has_fewer_steps_in_the_same_time(time: float, steps: int) -> None:
    assert steps_in_time(100, time=time) == steps
