"""One training step in PyTorch: through DeepSpeed, or plainly where the judge needs float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from models.dropout import strength_at
from models.inputs import IGNORED
from models.spec import POLICIES, ModelSpec
from models.torch.loss import Mix, Tally
from models.torch.model import Model
from models.torch.random import Draw
from models.torch.weights import load_weights
from models.weights import Weight, balance_rows, check_weights, initial_weights, weight_table
from optim.controls import Controls
from optim.groups import Treatment, plan
from optim.rules import SophiaG, SophiaH, curvature_due
from optim.slices import check_slices
from optim.spec import OptimSpec
from optim.state import averages, check_slots, first_values, held_slots, judged
from optim.torch import curvature
from optim.torch.optimizer import RuleOptimizer, groups_of
from tasks.prepare.batch import Batch
from tasks.train.compiling import check_compiled, check_compiler
from tasks.train.engine import EngineState, ExpertLoad, LossSum, StepResult
from tasks.train.regularise import Strengths, needs_teacher, strengths_at
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.sharing import check_sharing
from tasks.train.spec import TrainSpec
from tasks.train.torch_objective import Rows, tally_of
from tasks.train.torch_state import Applied

Arrays = Mapping[str, NDArray[Any]]
Estimates = Mapping[nn.Parameter, Tensor]


class Part(NamedTuple):
    """A micro-batch on the device."""

    rows: Rows
    draw: Draw
    strengths: Strengths = Strengths()


class Measuring(NamedTuple):
    """What a module is asked without dropout."""

    rows: Rows


class Objective(nn.Module):
    """The model with what training minimises, as one module, so that an engine wraps both."""

    def __init__(self, regularise: RegulariseSpec, model: Model, teacher: Model | None) -> None:
        super().__init__()
        self.model = model
        self._regularise = regularise
        # No part of the module: it is not trained and has no gradients to share out.
        self._teacher = [] if teacher is None else [teacher]

    @property
    def teacher(self) -> Model | None:
        """The model with averaged weights, for a mean teacher."""
        return self._teacher[0] if self._teacher else None

    def forward(self, part: Part | Measuring) -> Tally:
        """The sums of a micro-batch."""
        if isinstance(part, Measuring):
            tally: Tally = self.model(*part.rows[:2], lengths=part.rows.lengths)
            return tally
        return tally_of(
            self._regularise,
            self.model,
            part.rows,
            draw=part.draw,
            strengths=part.strengths,
            teacher=self.teacher,
        )


class Updater(Protocol):
    """Backward pass and update of one model, whoever shares out what."""

    objective: nn.Module
    """`Objective`, or an engine around it that is called alike."""

    def accumulate(self, objective: Tensor) -> None:
        """Backward from this worker's share of the objective; gradients add up."""

    def apply(self, controls: Controls, *, loss_scale: float, curvature: Estimates) -> Applied:
        """Average the gradients over the workers, clip, update.

        Nothing is updated when the norm is not finite or above `controls.skip`.
        """

    def named(self) -> dict[str, nn.Parameter]:
        """The model's parameters, whole only where nothing is shared out."""

    def move(self, name: str, step: Tensor) -> None:
        """Add to a weight that no gradient moves."""

    def alike(self) -> dict[str, Tensor]:
        """What every worker holds whole and alike, by name."""

    def show(self, weights: Arrays) -> None:
        """Let the model compute with other weights; `state` and updates do not see them."""

    def state(self) -> EngineState:
        """The whole weights and slots, by name."""

    def load(self, state: EngineState) -> None:
        """Replace weights and slots."""

    def close(self, *, leave: bool) -> None:
        """Let go of the model; `leave` ends the process group as well."""


class TorchEngine:
    """Trains on one device of each worker.

    DeepSpeed 0.19.8 does not compute in float64: at stage 0 it refuses the gradients ("attempting
    to reduce an unsupported grad type"), and from stage 1 on it keeps float32 master weights
    without a word. So float64 runs the same step plainly: model, rule, clipping and reduction are
    the same, and only what `train.zero_stage` would share out is held by every worker.
    """

    def __init__(
        self,
        model_spec: ModelSpec,
        optim_spec: OptimSpec,
        train_spec: TrainSpec,
        *,
        engine: Literal["deepspeed", "plain"] | None = None,
        regularise: RegulariseSpec = RegulariseSpec(),
    ) -> None:
        """Draw the first weights and hand them to the engine.

        Args:
            engine: None takes DeepSpeed, or the plain step for float64; `deepspeed` takes
                `train.zero_stage` even for one worker, who shares with nobody.

        Raises:
            ValueError: DeepSpeed is asked for float64, the process group has another size than
                `train.workers`, or the optimizer needs whole weights where workers share them out.
        """
        wide = train_spec.precision == "float64"
        if wide and engine == "deepspeed":
            raise ValueError(
                "train.precision=float64 is not computed by DeepSpeed, which keeps float32 "
                "master weights; use engine=plain or train.precision=float32."
            )
        check_sharing(optim_spec, train_spec, regularise)
        check_compiled(model_spec, train_spec)
        stage = train_spec.zero_stage
        if engine == "deepspeed" and stage > 0:
            check_slices(optim_spec)
        elif train_spec.workers == 1:
            # DeepSpeed would flatten weights and copy gradients for nobody.
            stage = 0
        self.model_spec, self.optim_spec, self.train_spec = model_spec, optim_spec, train_spec
        self._regularise = regularise
        self._table = weight_table(model_spec)
        self._plan = plan(optim_spec, self._table)
        self._joined = _join(train_spec)
        model = Model(model_spec, precision=train_spec.precision)
        load_weights(model, initial_weights(model_spec, seed=train_spec.seed))
        optimizer = RuleOptimizer(
            _groups(model, optim_spec, self._table, self._plan),
            optim_spec.rule,
            gradient=optim_spec.gradient,
            averages=optim_spec.average is not None,
        )
        slots = held_slots(optim_spec, self._table)
        self._model, teacher = model, None
        if needs_teacher(regularise):
            teacher = Model(model_spec, precision=train_spec.precision).requires_grad_(False)
        if train_spec.compile:
            if not torch.cuda.is_available():
                check_compiler()
            model.compile_layers()
            if teacher is not None:
                teacher.compile_layers()
        self._objective = Objective(regularise, model, teacher)
        self._optimizer = optimizer
        self._updater: Updater
        if engine == "plain" or wide:
            from tasks.train.plain_update import PlainUpdater

            self._updater = PlainUpdater(self._objective, optimizer, slots)
        else:
            from tasks.train.deepspeed_update import DeepSpeedUpdater

            self._updater = DeepSpeedUpdater(
                self._objective,
                optimizer,
                slots,
                train_spec,
                stage=stage,
            )

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        """Train on this worker's rows of the global batch."""
        step, total = controls.step, self.train_spec.steps
        strength = strength_at(self.model_spec, step=step, total_steps=total)
        strengths = strengths_at(self._regularise, step=step, total_steps=total)
        parts = [
            Part(self._rows(part), self._draw(part, step, strength), strengths)
            for part in self._cut(batch)
        ]
        self._teach()
        # Gradients are averaged over the workers, whose shares of the targets may differ.
        workers, targets = self.train_spec.workers, _scored_by_all(parts)
        share, divisor, scale = workers / targets, 1.0, 1.0
        if _scaled(self.train_spec):
            # Float16 holds the same numbers however many workers there are.
            share, divisor, scale = loss_scale / targets, loss_scale / workers, loss_scale
        estimate: Estimates = {}
        if self._is_due(step):
            # Compiled layers cannot be differentiated twice.
            with torch.compiler.set_stance("force_eager"):
                estimate = self._estimate(parts, targets, scale=scale)
            if not _finite(estimate):
                # It overflowed, as a gradient may: nothing is to change.
                share = math.nan
        sums: Tally | None = None
        for part in parts:
            tally: Tally = self._updater.objective(part)
            self._updater.accumulate(tally.objective * share)
            own = _on_float64(tally)
            sums = own if sums is None else _added(sums, own)
        assert sums is not None
        sums = _sum_over_workers(sums)
        applied = self._updater.apply(controls, loss_scale=divisor, curvature=estimate)
        if applied.taken:
            for row in balance_rows(self.model_spec):
                if self._plan[row.name].frozen:
                    continue
                chosen = sums.chosen[row.place]
                self._updater.move(row.name, row.rate * torch.sign(chosen.mean() - chosen))
        count = max(float(sums.count), 1.0)
        return StepResult(
            loss=float(sums.nats) / count,
            gradient_norm=applied.norm,
            objective=float(sums.objective) / count,
            taken=applied.taken,
            load=ExpertLoad.of(
                [layer.cpu().numpy() for layer in sums.chosen],
                [layer.cpu().numpy() for layer in sums.taken],
            ),
        )

    @torch.no_grad()
    def loss(self, batch: Batch) -> LossSum:
        """Measure this worker's rows, without dropout and without an update."""
        tally: Tally = self._updater.objective(Measuring(self._rows(batch)))
        sums = _sum_over_workers(_on_float64(tally))
        return LossSum(float(sums.nats), round(float(sums.count)))

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Inside, `loss` measures the weights that a model is judged by."""
        if not averages(self.optim_spec):
            yield
            return
        state = self.state()
        self._updater.show(judged(self.optim_spec, state.weights, state.slots))
        try:
            yield
        finally:
            self._updater.show(state.weights)

    def state(self) -> EngineState:
        """The whole state, gathered, on every worker."""
        return self._updater.state()

    @torch.no_grad()
    def replicas(self) -> dict[str, NDArray[np.int64]]:
        """Checksums of what every worker holds alike: name -> (workers,)."""
        workers, alike = self.train_spec.workers, self._updater.alike()
        if workers == 1 or not alike:
            return {}
        own = torch.stack([_bits(tensor) for tensor in alike.values()])
        others = [torch.empty_like(own) for _ in range(workers)]
        distributed.all_gather(others, own)
        sums = torch.stack(others, dim=1).cpu().numpy()
        return dict(zip(alike, sums, strict=True))

    def load(self, state: EngineState) -> None:
        """Go on from a state that either framework saved; without slots they start anew.

        Raises:
            ValueError: the state is of another model or another optimizer.
        """
        check_weights(self.model_spec, state.weights)
        slots = state.slots or first_values(self.optim_spec, self._table, state.weights)
        check_slots(self.optim_spec, self._table, slots)
        self._updater.load(EngineState(state.weights, slots))

    def close(self) -> None:
        """Leave the process group, if this engine joined one."""
        self._updater.close(leave=self._joined)

    def _is_due(self, step: int) -> bool:
        return curvature_due(self.optim_spec.rule, step=step)

    def _estimate(self, parts: Sequence[Part], targets: float, *, scale: float) -> Estimates:
        """The curvature that the rule asks for, of the whole batch.

        Args:
            targets: scored by all workers.
            scale: what the objective is multiplied by, and its derivatives divided.
        """
        rule = self.optim_spec.rule
        assert isinstance(rule, SophiaG | SophiaH)
        named = self._updater.named()
        moving = {name: named[name] for name, each in self._plan.items() if each.moves}
        if isinstance(rule, SophiaG):
            sampled = [self._sampled(part, moving) for part in parts]
            drawn = torch.stack([each.drawn for each in sampled]).sum()
            found = _tree_sum([each.gradients for each in sampled])
            distributed.all_reduce(drawn)
            _reduce(found)
            estimate = curvature.gauss_newton_bartlett(curvature.Sampled(found, drawn))
        else:
            along = curvature.probes(rule, moving, draw=parts[0].draw)
            share = scale / targets
            found = _tree_sum([self._bent(part, moving, along, share) for part in parts])
            _reduce(found)
            estimate = {name: along[name] * found[name] / scale for name in moving}
        return {moving[name]: value for name, value in estimate.items()}

    def _sampled(self, part: Part, moving: Mapping[str, Tensor]) -> curvature.Sampled:
        draw, rows = part.draw, part.rows
        return curvature.sampled_gradients(
            lambda: self._model.logits(rows.inputs, draw=draw, lengths=rows.lengths),
            moving,
            rows.targets != IGNORED,
            draw=draw,
        )

    def _bent(
        self, part: Part, moving: Mapping[str, Tensor], along: dict[str, Tensor], share: float
    ) -> dict[str, Tensor]:

        def objective() -> Tensor:
            tally: Tally = self._objective(part)
            return tally.objective * share

        return curvature.hessian_vector(objective, moving, along)

    def _cut(self, batch: Batch) -> list[Batch]:
        """A worker's rows as micro-batches."""
        size = len(batch.samples) // self.train_spec.accumulation
        return [batch.rows(slice(at, at + size)) for at in range(0, len(batch.samples), size)]

    def _rows(self, batch: Batch) -> Rows:
        device = next(self._model.parameters()).device

        def placed(rows: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(rows)).to(device)

        mix = None
        if batch.others is not None and batch.shares is not None:
            mix = Mix(placed(batch.others), placed(batch.shares).to(self._number))
        return Rows(
            placed(batch.inputs),
            placed(batch.targets),
            None if batch.lengths is None else placed(batch.lengths),
            mix,
            None if batch.again is None else placed(batch.again),
        )

    @property
    def _number(self) -> torch.dtype:
        return torch.float64 if self.train_spec.precision == "float64" else torch.float32

    def _draw(self, batch: Batch, step: int, strength: int) -> Draw:
        seed = self.train_spec.seed
        return Draw.of(seed=seed, step=step, samples=batch.samples, strength=strength)

    @torch.no_grad()
    def _teach(self) -> None:
        """Give the mean teacher the averages as they are now."""
        teacher = self._objective.teacher
        if teacher is not None:
            named = self._updater.named()
            for name, weight in teacher.named_parameters():
                own = named[name]
                weight.copy_(self._optimizer.state[own].get("average", own))


def _join(train_spec: TrainSpec) -> bool:
    """Make sure of a process group of all workers; True if this made it."""
    if not distributed.is_initialized() and train_spec.workers == 1:
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        return True
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    if size != train_spec.workers:
        raise ValueError(
            f"train.workers={train_spec.workers} needs a process group of that size; got {size}. "
            "Call torch.distributed.init_process_group in every worker first."
        )
    return False


def _groups(
    model: Model,
    optim: OptimSpec,
    table: Mapping[str, Weight],
    plan: Mapping[str, Treatment],
) -> list[dict[str, Any]]:
    """The parameters that move by rule, decay and rate.

    The others want no gradient, so that nothing is computed or kept for them.
    """
    moving = {name: table[name] for name, treatment in plan.items() if treatment.moves}
    for name in table.keys() - moving.keys():
        model.get_parameter(name).requires_grad_(False)
    return groups_of(
        optim.rule,
        moving,
        named={name: model.get_parameter(name) for name in moving},
        decay={name: plan[name].decay for name in moving},
        rates={name: plan[name].rate for name in moving},
    )


def _bits(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits, read as integers of 32 bits."""
    return tensor.detach().flatten().view(torch.int32).sum(dtype=torch.int64)


def _scaled(train_spec: TrainSpec) -> bool:
    """Whether gradients pass through float16 and need a scale."""
    return POLICIES[train_spec.precision].compute == "float16"


def _finite(tree: Estimates) -> bool:
    """Whether every value is a number; true of nothing."""
    return all(bool(value.isfinite().all()) for value in tree.values())


def _scored_by_all(parts: Sequence[Part]) -> float:
    """Number of scored targets of the global batch, at least 1."""
    scored = torch.stack([(part.rows.targets != IGNORED).sum() for part in parts]).sum()
    distributed.all_reduce(scored)
    return max(float(scored), 1.0)


def _on_float64(tally: Tally) -> Tally:
    """The figures of a micro-batch without what its gradient needed."""
    layers = (tuple(each.detach().double() for each in layer) for layer in tally[3:])
    chosen, taken = layers
    objective, nats, count = (each.detach().double() for each in tally[:3])
    return Tally(objective, nats, count, chosen, taken)


def _added(left: Tally, right: Tally) -> Tally:
    pairs = (
        tuple(a + b for a, b in zip(one, other, strict=True))
        for one, other in zip(left[3:], right[3:], strict=True)
    )
    chosen, taken = pairs
    objective, nats, count = (a + b for a, b in zip(left[:3], right[:3], strict=True))
    return Tally(objective, nats, count, chosen, taken)


def _sum_over_workers(tally: Tally) -> Tally:
    """The tally of the global batch."""
    parts = [tally.objective, tally.nats, tally.count, *tally.chosen, *tally.taken]
    sums = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(sums)
    whole = list(torch.split(sums, [part.numel() for part in parts]))
    layers = len(tally.chosen)
    objective, nats, count = (whole[index].squeeze(0) for index in range(3))
    return Tally(objective, nats, count, tuple(whole[3 : 3 + layers]), tuple(whole[3 + layers :]))


def _tree_sum(trees: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    first, *others = trees
    total = dict(first)
    for tree in others:
        for name, value in tree.items():
            total[name] = total[name] + value
    return total


def _reduce(tree: Mapping[str, Tensor]) -> None:
    """Sum over the workers, in place."""
    for value in tree.values():
        distributed.all_reduce(value)
