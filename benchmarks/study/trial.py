"""One run of the study: a rule, a peak, a seed, so many steps, and the loss that it ends with."""

from __future__ import annotations

import math

from benchmarks.study.problems import Problem, open_problem
from benchmarks.study.recipes import optim_of
from models.record import digest_of
from models.spec import Spec
from optim.controls import controls
from optim.spec import OptimSpec
from tasks.prepare.order import batch_indices
from tasks.train.engine import Engine
from tasks.train.loop import validation_batches
from tasks.train.spec import TrainSpec


class Trial(Spec):
    """What is run; `seed` is of weights, data order and dropout."""

    problem: str
    rule: str
    peak: float
    seed: int
    steps: int

    @property
    def identity(self) -> str:
        """Digest of all that its outcome depends on but the code, 64 hex digits."""
        problem, optim = open_problem(self.problem), self.optim.model_dump(mode="json")
        return digest_of([problem.digest, optim, self.seed, self.steps])

    @property
    def optim(self) -> OptimSpec:
        """The optimizer."""
        return optim_of(self.rule, peak=self.peak, steps=self.steps)


class Ended(Spec):
    """How a trial ended.

    Attributes:
        identity: of the trial.
        loss: mean validation loss of the weights that the rule is judged by; None: a loss or a
            gradient on the way was not finite.
    """

    identity: str
    trial: Trial
    loss: float | None


def train(trial: Trial) -> Ended:
    """Run a trial through the engine of `tasks.train`, in this process."""
    from tasks.train.worker import build_engine

    problem, spec = open_problem(trial.problem), train_spec(trial)
    engine = build_engine(problem.model, trial.optim, spec)
    try:
        loss = _measure(engine, problem, spec) if _steps(engine, problem, trial) else math.nan
    finally:
        engine.close()
    found = loss if math.isfinite(loss) else None
    return Ended(identity=trial.identity, trial=trial, loss=found)


def train_spec(trial: Trial) -> TrainSpec:
    """The section `train` of a trial."""
    problem = open_problem(trial.problem)
    return TrainSpec(
        backend="torch",
        steps=trial.steps,
        batch=problem.batch,
        seed=trial.seed,
        validation_batches=problem.validation_batches,
    )


def _steps(engine: Engine, problem: Problem, trial: Trial) -> bool:
    """Do all steps; False as soon as a number is not finite."""
    optim, samples = trial.optim, problem.training
    for step in range(trial.steps):
        indices = batch_indices(samples.shares, seed=trial.seed, step=step, batch=problem.batch)
        now = controls(optim, step=step, total_steps=trial.steps)
        result = engine.step(samples.read(indices), now)
        if not result.taken or not math.isfinite(result.loss):
            return False
    return True


def _measure(engine: Engine, problem: Problem, spec: TrainSpec) -> float:
    held_out = validation_batches(len(problem.validation), spec)
    with engine.judged():
        sums = [engine.loss(problem.validation.read(indices)) for indices in held_out]
    return sum(part.loss for part in sums) / sum(part.targets for part in sums)
