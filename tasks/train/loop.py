"""THE loop: the same for both frameworks, any number of workers, and a run that was resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.spec import POLICIES
from optim.controls import controls
from optim.norms import remembered
from optim.spec import OptimSpec
from tasks.prepare.dataset import Samples
from tasks.prepare.draw import draw
from tasks.progress import Progress, silent
from tasks.train.augment import augment
from tasks.train.augment_spec import AugmentSpec
from tasks.train.callbacks import Callback, Step, is_best, run_dry
from tasks.train.checkpoints import Checkpoint, Checkpoints, Ledger
from tasks.train.curves import CurveRow
from tasks.train.engine import Engine, StepResult
from tasks.train.recovery import what_is_bad
from tasks.train.regularise import looks_twice
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.replicas import Sums, check_replicas
from tasks.train.saving import Saved, Saver, unwatched
from tasks.train.scaling import LossScale, moved
from tasks.train.spec import TrainSpec
from tasks.train.speed import Peak, spelled
from tasks.train.stopping import Stopping

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Seat:
    """Which worker this is, 0 .. workers - 1."""

    rank: int = 0
    workers: int = 1

    def rows(self, indices: Indices) -> Indices:
        """This worker's contiguous share of a batch."""
        share = len(indices) // self.workers
        return indices[self.rank * share : (self.rank + 1) * share]


@dataclass(frozen=True)
class Outcome:
    """How far the loop came: `finished`, or asked to stop after `step` steps and saved there."""

    step: int
    finished: bool


class Bad(Exception):
    """The numbers of a step are bad.

    Attributes:
        step: which one, from 0.
        changed: whether it has changed weights or slots.
    """

    def __init__(self, what: str, *, step: int, changed: bool = True) -> None:
        super().__init__(what)
        self.step, self.changed = step, changed


def alone(step: int | None) -> int | None:
    """One worker agrees with itself."""
    return step


def tokens_in(lengths: Indices) -> int:
    """Positions of samples of these lengths, (B,), where each place that counts is one."""
    return int(lengths.sum())


def run_loop(
    engine: Engine,
    *,
    train: TrainSpec,
    optim: OptimSpec,
    training: Samples,
    validation: Samples,
    positions: int,
    counted: Callable[[Indices], int] = tokens_in,
    checkpoints: Checkpoints,
    start: Checkpoint | None,
    stopping: Stopping,
    augmentation: AugmentSpec = AugmentSpec(),
    regularise: RegulariseSpec = RegulariseSpec(),
    seat: Seat = Seat(),
    agree: Callable[[int | None], int | None] = alone,
    callbacks: Sequence[Callback] = (),
    told: Callable[[Saved], None] = unwatched,
    peak: Peak | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train until the last step, until nothing is gained, or until asked to stop.

    The state is saved in all three cases. Every worker calls this with the same arguments but
    `seat`, `callbacks` and what belongs to them.

    Args:
        positions: of a sample that is full, T tokens or patches; the unit of `tokens` in the curve.
        counted: positions of padded samples, from their lengths; padding is none.
        start: where to go on; None starts at step 0 with the engine's initial weights.
        agree: gives every worker what rank 0 passed; a barrier.
        callbacks: hear of steps and validations; one may end the run.
        told: of every checkpoint that is safe.
        peak: what utilisation is a share of.
        progress: told after every step.
        clock: seconds, monotonic.

    Raises:
        ValueError: a loss, a gradient or a weight is not finite, more often than
            `train.bad_numbers` lets pass; the message names the step and the samples. No
            checkpoint of it is written.
        OSError: a checkpoint could not be written; those before it are intact.
        CorruptReplica: workers or devices hold different values of the same array.
    """
    run = _Run(train, optim, seat, checkpoints, peak, clock)
    if start is not None:
        run.resume(start)
        engine.load(start.state)
    held_out = validation_batches(len(validation), train)
    augmented = augmentation != AugmentSpec() or looks_twice(regularise)
    saver = Saver(checkpoints, rank=seat.rank, writers=seat.workers, told=told, clock=clock)
    with saver:
        while run.done < train.steps:
            began = clock()
            drawn = draw(training, seed=train.seed, step=run.place, batch=train.batch)
            indices = drawn.indices
            batch = drawn.samples.read(seat.rows(indices))
            lengths = drawn.lengths
            places = train.batch * positions if lengths is None else counted(lengths)
            if augmented:
                batch = augment(
                    augmentation,
                    batch,
                    seed=train.seed,
                    step=run.done,
                    total_steps=train.steps,
                    together=indices,
                    read=drawn.samples.read,
                    twice=looks_twice(regularise),
                )
            waited = clock() - began
            now = controls(optim, step=run.done, total_steps=train.steps, norms=run.norms)
            result = engine.step(batch, now, loss_scale=run.scale.value)
            try:
                run.take(result, skip=now.skip, indices=indices)
                seconds = clock() - began
                run.count(result.loss, places, seconds, waited)
                step = Step(
                    run.done,
                    result,
                    rate=now.rate,
                    positions=places,
                    seconds=seconds,
                    data_wait_s=waited,
                )
                for callback in callbacks:
                    callback.after_step(step)
                last, best = run.done == train.steps, False
                validate = last or run.done % train.validate_every_steps == 0
                if validate or run.done % train.log_every_steps == 0:
                    loss = None
                    if validate:
                        loss = _measure(engine, validation, held_out, seat=seat)
                        if not math.isfinite(loss):
                            what = f"the validation loss after it is {loss}"
                            raise Bad(what, step=run.done - 1)
                    run.log(result, rate=now.rate, validation_loss=loss)
                    if loss is not None:
                        best = train.checkpoint.best and is_best(run.validation_losses)
                        ends = [each.after_validation(run.done, loss) for each in callbacks]
                        asking = zip(callbacks, ends, strict=True)
                        if not last:
                            run.end_if([type(each).__name__ for each, end in asking if end])
                progress(run.done, train.steps, run.note(result.loss))
                stop = stopping.after(run.done)
                last = last or run.ended is not None
                due = run.done % train.checkpoint.every_steps == 0
                if last or stop or best or due or run.compares:
                    run.compare(engine.replicas())
                if last or stop or best or due:
                    try:
                        saver.save(
                            engine.state,
                            step=run.done,
                            samples=run.place * train.batch,
                            backend=train.backend,
                            workers=seat.workers,
                            ledger=run.ledger(),
                            validation_loss=run.validation_loss,
                        )
                    except FloatingPointError as error:
                        raise Bad(str(error), step=run.done - 1) from None
            except Bad as error:
                saver.wait()
                back = run.recover(error, indices=indices, agree=agree)
                if back is not None:
                    engine.load(back.state)
                continue
            if last or stop:
                saver.wait()
                return Outcome(run.done, finished=last)
    return Outcome(run.done, finished=True)


def validation_batches(count: int, train: TrainSpec) -> list[Indices]:
    """The samples of every validation: the same each time, spread evenly over the split.

    Args:
        count: samples in the split.

    Returns:
        Batches of `train.batch` samples; one smaller batch where the split holds fewer.

    Raises:
        ValueError: the split has fewer samples than workers.
    """
    batch = min(train.batch, count // train.workers * train.workers)
    if batch == 0:
        raise ValueError(
            "the validation split must hold at least one sample for each of train.workers; got "
            f"{count} samples, workers={train.workers}. Try a larger data.split.validation."
        )
    batches = min(train.validation_batches, count // batch)
    chosen = np.arange(batches * batch, dtype=np.int64) * count // (batches * batch)
    return list(chosen.reshape(batches, batch))


def _measure(engine: Engine, samples: Samples, batches: list[Indices], *, seat: Seat) -> float:
    with engine.judged():
        sums = [engine.loss(samples.read(seat.rows(indices))) for indices in batches]
    return sum(part.loss for part in sums) / sum(part.targets for part in sums)


class _Run:
    """What the loop remembers from step to step.

    Attributes:
        done: optimizer steps so far.
        norms: of past gradients, as `optim.norms` keeps them.
        scale: of the next step's loss.
        ended: why the run ends before its last step.
    """

    def __init__(
        self,
        train: TrainSpec,
        optim: OptimSpec,
        seat: Seat,
        checkpoints: Checkpoints,
        peak: Peak | None,
        clock: Callable[[], float],
    ) -> None:
        self._train, self._optim, self._seat = train, optim, seat
        self._checkpoints, self._peak, self._clock = checkpoints, peak, clock
        self._scaled = POLICIES[train.precision].compute == "float16"
        self.scale = LossScale(train.loss_scale.initial) if self._scaled else LossScale()
        self.done = self._passed_over = self._strikes = 0
        self.norms: tuple[float, ...] = ()
        self._curve: list[CurveRow] = []
        self._losses: list[float] = []
        self._recent: list[float] = []
        self._tokens = self._interval_tokens = 0
        self._interval_s = self._interval_wait_s = 0.0
        self.ended: str | None = None
        self._resumed_from_step: int | None = None
        self._began = clock()

    @property
    def place(self) -> int:
        """Batches of the data order that are used up."""
        return self.done + self._passed_over

    @property
    def validation_losses(self) -> list[float]:
        """All of them so far."""
        measured = (row.validation_loss for row in self._curve)
        return [loss for loss in measured if loss is not None]

    @property
    def validation_loss(self) -> float | None:
        """Of this very step, if it was measured."""
        row = self._curve[-1] if self._curve else None
        return row.validation_loss if row is not None and row.step == self.done else None

    def resume(self, start: Checkpoint) -> None:
        """Go on from a checkpoint."""
        ledger = start.manifest.ledger
        self.done = self._resumed_from_step = start.manifest.step
        self._passed_over, self._strikes = ledger.passed_over, ledger.strikes
        self._remember(ledger)
        self._began = self._clock() - ledger.seconds

    def take(self, result: StepResult, *, skip: float, indices: Indices) -> None:
        """Count a step that is done.

        Raises:
            Bad: its numbers are.
        """
        finite = math.isfinite(result.gradient_norm)
        overflow = self._scaled and not finite and self.scale.value > 1.0
        if self._scaled:
            self.scale = moved(self._train.loss_scale, self.scale, finite=finite)
        if overflow:
            what = f"its gradients leave float16; the scale of the loss is {self.scale.value:g} now"
            self._tell_of_skipped(what, indices=indices)
        else:
            bad = what_is_bad(self._train.bad_numbers, result, self._recent)
            if bad is not None:
                raise Bad(bad, step=self.done, changed=result.taken)
            if not result.taken:
                norm = f"{result.gradient_norm:.4g}"
                what = f"its gradient norm is {norm}, optim.gradient.skip allows {skip:.4g}"
                self._tell_of_skipped(what, indices=indices)
            self.norms = remembered(self._optim.gradient, self.norms, result.gradient_norm)
            if self._train.bad_numbers.spike is not None:
                window = self._train.bad_numbers.window
                self._recent = [*self._recent, result.loss][-window:]
        self.done += 1

    def count(self, loss: float, positions: int, seconds: float, waited: float) -> None:
        """Add a step to the interval that the next row sums up."""
        self._losses.append(loss)
        self._tokens += positions
        self._interval_tokens += positions
        self._interval_s += seconds
        self._interval_wait_s += waited

    def log(self, result: StepResult, *, rate: float, validation_loss: float | None) -> None:
        """Close the interval with a row."""
        steps, interval_s = len(self._losses), max(self._interval_s, 1e-9)
        norm = result.gradient_norm
        tokens_per_s = self._interval_tokens / interval_s
        self._curve.append(
            CurveRow(
                step=self.done,
                tokens=self._tokens,
                loss=sum(self._losses) / steps,
                validation_loss=validation_loss,
                rate=rate,
                gradient_norm=norm if math.isfinite(norm) else None,
                objective=result.objective,
                expert_imbalance=result.load.imbalance if result.load else None,
                expert_dropped=result.load.dropped if result.load else None,
                tokens_per_s=tokens_per_s,
                mfu=self._peak.utilisation(tokens_per_s) if self._peak else None,
                data_wait=self._interval_wait_s / interval_s,
            )
        )
        self._losses, self._interval_tokens = [], 0
        self._interval_s = self._interval_wait_s = 0.0

    @property
    def compares(self) -> bool:
        """Whether copies are compared after this very step."""
        every = self._train.compare_replicas_every_steps
        return every is not None and self.done % every == 0

    def compare(self, sums: Sums) -> None:
        """Make sure that what is held more than once is held alike.

        Raises:
            CorruptReplica: it is not.
        """
        events = self._checkpoints.events if self._seat.rank == 0 else None
        check_replicas(sums, step=self.done, workers=self._seat.workers, events=events)

    def end_if(self, asking: Sequence[str]) -> None:
        """Decide after a validation whether the run ends here; `asking` are callbacks by name."""
        if run_dry(self._train.early_stopping, self.validation_losses):
            self.ended = "train.early_stopping"
        elif asking:
            self.ended = ", ".join(asking)
        if self.ended is not None and self._seat.rank == 0:
            message = f"ends after {self.done} steps, as {self.ended} asks"
            self._checkpoints.events.write("ended", message, step=self.done)

    def note(self, loss: float) -> str:
        """The current figures in a line."""
        parts = [f"loss {loss:.4f}"]
        if self.validation_losses:
            parts.append(f"validation {self.validation_losses[-1]:.4f}")
        if self._curve:
            row = self._curve[-1]
            parts.append(f"{row.tokens_per_s:,.0f} tokens/s")
            if row.mfu is not None:
                parts.append(f"MFU {row.mfu:.0%}")
            left = (self._train.steps - self.done) * row.tokens / row.step
            if left:
                parts.append(f"{spelled(left / row.tokens_per_s)} left")
        return ", ".join(parts)

    def ledger(self) -> Ledger:
        """What a checkpoint keeps of this."""
        return Ledger(
            seconds=self._clock() - self._began,
            curve=tuple(self._curve),
            losses=tuple(self._losses),
            tokens=self._tokens,
            interval_tokens=self._interval_tokens,
            interval_s=self._interval_s,
            interval_wait_s=self._interval_wait_s,
            norms=self.norms,
            recent=tuple(self._recent),
            loss_scale=self.scale.value,
            loss_scale_steps=self.scale.steps,
            passed_over=self._passed_over,
            strikes=self._strikes,
            resumed_from_step=self._resumed_from_step,
            ended=self.ended,
        )

    def recover(
        self, bad: Bad, *, indices: Indices, agree: Callable[[int | None], int | None]
    ) -> Checkpoint | None:
        """Pass over a bad step, or go back behind it.

        Returns:
            The checkpoint whose state the engine must load; None where nothing has changed.

        Raises:
            ValueError: it happened too often, nothing is saved, or the run is to stop.
        """
        spec = self._train.bad_numbers
        if spec.action == "stop" or self._strikes >= spec.times:
            raise self._stopped(str(bad), step=bad.step, indices=indices)
        if spec.action == "skip":
            if bad.changed:
                raise self._stopped(str(bad), step=bad.step, indices=indices)
            self._tell_of_skipped(str(bad), indices=indices)
            self._strikes += 1
            self._passed_over += 1
            return None
        back = self._newest(agree)
        if back is None:
            what = f"{bad}, and no checkpoint is there to go back to"
            raise self._stopped(what, step=bad.step, indices=indices)
        used = self._passed_over + bad.step + 1
        self.done, self._strikes = back.manifest.step, self._strikes + 1
        self._passed_over = used - self.done
        self._remember(back.manifest.ledger)
        if self._seat.rank == 0:
            message = (
                f"went back from step {bad.step} to step {self.done}: {bad}. The batches since "
                f"then are passed over; time {self._strikes} of {spec.times}"
            )
            samples = indices.tolist()
            self._checkpoints.events.write("rolled_back", message, step=bad.step, samples=samples)
        return back

    def _newest(self, agree: Callable[[int | None], int | None]) -> Checkpoint | None:
        """The newest checkpoint that rank 0 can read, for all workers alike."""
        if self._seat.rank:
            step = agree(None)
            return None if step is None else self._checkpoints.read(step)
        found = self._checkpoints.newest()
        agree(found.manifest.step if found else None)
        return found

    def _remember(self, ledger: Ledger) -> None:
        self._curve, self._losses = list(ledger.curve), list(ledger.losses)
        self._tokens, self._interval_tokens = ledger.tokens, ledger.interval_tokens
        self._interval_s, self._interval_wait_s = ledger.interval_s, ledger.interval_wait_s
        self._recent, self.norms = list(ledger.recent), ledger.norms
        if ledger.loss_scale is not None:
            self.scale = LossScale(ledger.loss_scale, ledger.loss_scale_steps)

    def _tell_of_skipped(self, what: str, *, indices: Indices) -> None:
        """Tell of a step that changed nothing, with every sample."""
        if self._seat.rank == 0:
            message = f"step {self.done} was left out: {what}"
            samples = indices.tolist()
            self._checkpoints.events.write("skipped", message, step=self.done, samples=samples)

    def _stopped(self, what: str, *, step: int, indices: Indices) -> ValueError:
        """The error that ends the run, told as an event with every sample."""
        samples = indices.tolist()
        shown = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
        often = f", after {self._strikes} that were left behind" if self._strikes else ""
        message = (
            f"training stopped at step {step}{often}: {what}; the batch was samples {shown} of the "
            "training split. No checkpoint of it was written. Try a lower optim.schedule.peak, "
            "more steps of warmup or a smaller optim.gradient.clip.limit."
        )
        if self._seat.rank == 0:
            self._checkpoints.events.write("diverged", message, step=step, samples=samples)
        return ValueError(message)
