"""The course of a study: time the steps, tune every rule alike, run the best peaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.study.intervals import Interval, interval, paired_difference
from benchmarks.study.journal import Journal
from benchmarks.study.problems import open_problem
from benchmarks.study.recipes import RECIPES, YARDSTICK, peaks_of
from benchmarks.study.timing import Timed, Timing
from benchmarks.study.trial import Ended, Trial
from benchmarks.study.workers import Task, Workers
from tasks.progress import Progress, silent

TUNING_SEED, SEEDS = 0, (1, 2, 3)
LEAST_STEPS = 2
# Nearer times of a step are taken as equal, so that the same runs count for both budgets.
SAME_TIME = 0.02


class Column(NamedTuple):
    """A rule at its best peak under one budget.

    Attributes:
        steps: of the budget.
        losses: of each seed; None: it blew up.
        mean: of the losses; None where a seed blew up.
        difference: to AdamW, seed by seed; None for AdamW itself and where a seed blew up.
    """

    steps: int
    losses: tuple[float | None, ...]
    mean: Interval | None
    difference: Interval | None


class Row(NamedTuple):
    """What was found about a rule on a problem.

    Attributes:
        tuned: loss of the tuning seed at each peak of the grid; None: it blew up.
        peak: the best of them.
        time: of a step over AdamW's.
        tokens: with AdamW's steps.
        clock: with AdamW's time.
    """

    rule: str
    tuned: dict[float, float | None]
    peak: float
    time: float
    tokens: Column
    clock: Column

    @property
    def at_edge(self) -> bool:
        """Whether a better peak may lie outside of the grid."""
        return self.peak in (min(self.tuned), max(self.tuned))


class Findings(NamedTuple):
    """All rows of a problem, AdamW's first."""

    problem: str
    steps: int
    rows: tuple[Row, ...]


class Study:
    """Every rule on every problem; results that the journal holds are not computed again."""

    def __init__(
        self,
        journal: Journal,
        *,
        problems: Sequence[str],
        rules: Sequence[str],
        scale: float,
        processes: int,
        progress: Progress = silent,
    ) -> None:
        """Say what is studied.

        Args:
            problems: names in `PROBLEMS`.
            rules: names in `RECIPES`; AdamW belongs to every study.
            scale: multiplies the steps of every problem.
            processes: runs at the same time.
            progress: told of every result.

        Raises:
            ValueError: a rule is unknown, or the scale or the processes are not positive.
        """
        unknown = [rule for rule in rules if rule not in RECIPES]
        if unknown:
            raise ValueError(f"a rule is one of {', '.join(RECIPES)}; got {', '.join(unknown)}.")
        if scale <= 0 or processes < 1:
            raise ValueError(
                f"scale and processes must be positive; got scale={scale}, processes={processes}."
            )
        self._journal, self._progress, self._processes = journal, progress, processes
        self.problems = tuple(problems)
        self.rules = (YARDSTICK, *(rule for rule in rules if rule != YARDSTICK))
        self.steps = {
            name: max(LEAST_STEPS, round(open_problem(name).steps * scale)) for name in problems
        }

    def run(self) -> tuple[Findings, ...]:
        """Do what is missing; one `Findings` for each problem."""
        with Workers(self._processes) as workers:
            for name in self.problems:
                # One at a time: a second process would be measured as well.
                self._find(workers, "timing", [self._timing(name)])
            tuning = [trial for name in self.problems for trial in self._tuning(name)]
            self._find(workers, "tuning", tuning)
            finals = [trial for name in self.problems for trial in self._finals(name)]
            self._find(workers, "best peaks", finals)
        return tuple(self._findings(name) for name in self.problems)

    def _find(self, workers: Workers, phase: str, tasks: Sequence[Task]) -> None:
        wanted = {task.identity: task for task in tasks}
        missing = [task for name, task in wanted.items() if self._journal.get(name) is None]
        done = len(wanted) - len(missing)
        self._progress(done, len(wanted), phase)
        for found in workers.run(missing):
            self._journal.add(found)
            done += 1
            self._progress(done, len(wanted), phase)

    def _timing(self, problem: str) -> Timing:
        return Timing(problem=problem, rules=self.rules)

    def _tuning(self, problem: str) -> list[Trial]:
        return [trial for rule in self.rules for trial in self._grid(problem, rule)]

    def _grid(self, problem: str, rule: str) -> list[Trial]:
        steps = self.steps[problem]
        return [
            Trial(problem=problem, rule=rule, peak=peak, seed=TUNING_SEED, steps=steps)
            for peak in peaks_of(rule)
        ]

    def _finals(self, problem: str) -> list[Trial]:
        return [
            trial
            for rule in self.rules
            for steps in (self.steps[problem], self._steps_in_time(problem, rule))
            for trial in self._seeds(problem, rule, steps)
        ]

    def _seeds(self, problem: str, rule: str, steps: int) -> list[Trial]:
        peak = best_peak(self._tuned(problem, rule))
        return [
            Trial(problem=problem, rule=rule, peak=peak, seed=seed, steps=steps) for seed in SEEDS
        ]

    def _tuned(self, problem: str, rule: str) -> dict[float, float | None]:
        return {trial.peak: self._loss(trial) for trial in self._grid(problem, rule)}

    def _loss(self, trial: Trial) -> float | None:
        found = self._journal.get(trial.identity)
        assert isinstance(found, Ended)
        return found.loss

    def _time(self, problem: str, rule: str) -> float:
        found = self._journal.get(self._timing(problem).identity)
        assert isinstance(found, Timed)
        return found.ratio(rule)

    def _steps_in_time(self, problem: str, rule: str) -> int:
        return steps_in_time(self.steps[problem], time=self._time(problem, rule))

    def _findings(self, problem: str) -> Findings:
        rows = tuple(self._row(problem, rule) for rule in self.rules)
        return Findings(problem, self.steps[problem], rows)

    def _row(self, problem: str, rule: str) -> Row:
        tuned, steps = self._tuned(problem, rule), self.steps[problem]
        base = self._losses(problem, YARDSTICK, steps)
        own, fewer = self._losses(problem, rule, steps), self._steps_in_time(problem, rule)
        return Row(
            rule=rule,
            tuned=tuned,
            peak=best_peak(tuned),
            time=self._time(problem, rule),
            tokens=column(steps, own, base=base if rule != YARDSTICK else None),
            clock=column(
                fewer,
                self._losses(problem, rule, fewer),
                base=base if rule != YARDSTICK else None,
            ),
        )

    def _losses(self, problem: str, rule: str, steps: int) -> tuple[float | None, ...]:
        return tuple(self._loss(trial) for trial in self._seeds(problem, rule, steps))


def best_peak(tuned: Mapping[float, float | None]) -> float:
    """The peak with the lowest loss; where all blew up, the lowest peak.

    >>> best_peak({0.1: 2.0, 0.3: 1.5, 0.9: None})
    0.3
    """
    return min(sorted(tuned), key=lambda peak: math.inf if (it := tuned[peak]) is None else it)


def steps_in_time(steps: int, *, time: float) -> int:
    """Steps in the time of AdamW's `steps`, where one takes `time` times as long.

    >>> steps_in_time(600, time=1.5), steps_in_time(600, time=1.01)
    (400, 600)
    """
    if abs(time - 1) <= SAME_TIME:
        return steps
    return max(LEAST_STEPS, math.floor(steps / time))


def column(
    steps: int, losses: Sequence[float | None], *, base: Sequence[float | None] | None
) -> Column:
    """Losses of the seeds with their interval, and with that of the difference to AdamW's."""
    own = _finite(losses)
    mean = None if own is None else interval(own)
    yardstick = None if base is None else _finite(base)
    difference = None
    if own is not None and yardstick is not None:
        difference = paired_difference(own, yardstick)
    return Column(steps, tuple(losses), mean, difference)


def _finite(losses: Sequence[float | None]) -> list[float] | None:
    kept = [loss for loss in losses if loss is not None]
    return kept if len(kept) == len(losses) else None
