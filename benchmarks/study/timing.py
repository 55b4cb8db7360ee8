"""How long a step of each rule takes: in one process, in turns, so that what else runs falls on
all alike."""

from __future__ import annotations

import statistics
import time

from benchmarks.study.problems import open_problem
from benchmarks.study.recipes import RECIPES, YARDSTICK, optim_of
from benchmarks.study.trial import Trial, train_spec
from models.record import digest_of
from models.spec import Spec
from optim.controls import controls
from tasks.prepare.order import batch_indices

# Some rules do more at every tenth step.
STEPS, ROUNDS = 10, 5


class Timing(Spec):
    """Rules whose steps are to be timed on a problem."""

    problem: str
    rules: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Digest of what is timed, 64 hex digits."""
        rules = [RECIPES[rule].rule.model_dump(mode="json") for rule in self.rules]
        return digest_of([open_problem(self.problem).digest, rules])


class Timed(Spec):
    """Seconds of a step: rule -> mean of each round."""

    identity: str
    timing: Timing
    seconds: dict[str, tuple[float, ...]]

    def ratio(self, rule: str) -> float:
        """Time of a step over AdamW's: median over the rounds of the ratio within a round."""
        pairs = zip(self.seconds[rule], self.seconds[YARDSTICK], strict=True)
        return statistics.median(own / base for own, base in pairs)


def time_steps(timing: Timing) -> Timed:
    """Take the time of whole training steps, in this process; a first round is thrown away."""
    from tasks.train.worker import build_engine

    problem, total = open_problem(timing.problem), (1 + ROUNDS) * STEPS
    batches = [
        problem.training.read(
            batch_indices(problem.training.shares, seed=0, step=step, batch=problem.batch)
        )
        for step in range(total)
    ]
    recipes, engines = {}, {}
    for rule in timing.rules:
        # The lowest rate: what is timed must not blow up.
        peak = RECIPES[rule].centre / 100
        recipes[rule] = optim_of(rule, peak=peak, steps=total)
        trial = Trial(problem=timing.problem, rule=rule, peak=peak, seed=0, steps=total)
        engines[rule] = build_engine(problem.model, recipes[rule], train_spec(trial))
    rounds: dict[str, list[float]] = {rule: [] for rule in timing.rules}
    for first in range(0, total, STEPS):
        for rule, engine in engines.items():
            began = time.perf_counter()
            for step in range(first, first + STEPS):
                engine.step(batches[step], controls(recipes[rule], step=step, total_steps=total))
            rounds[rule].append((time.perf_counter() - began) / STEPS)
    # The first engine made the process group that the others joined.
    for engine in reversed(engines.values()):
        engine.close()
    seconds = {rule: tuple(values[1:]) for rule, values in rounds.items()}
    return Timed(identity=timing.identity, timing=timing, seconds=seconds)
