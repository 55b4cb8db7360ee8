"""One training step in JAX: Flax NNX model, our optimizer, one jitted and donated program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from models.dropout import strength_at
from models.flax.loss import Mix, Tally
from models.flax.model import Model
from models.flax.random import Draw
from models.flax.weights import merge, split
from models.inputs import IGNORED
from models.spec import POLICIES, ModelSpec
from models.weights import balance_rows, check_weights, initial_weights, weight_table
from optim.controls import Controls
from optim.flax import curvature
from optim.flax.optimizer import Held, Optimizer, Tree
from optim.groups import plan
from optim.rules import SophiaG, SophiaH, curvature_due
from optim.spec import OptimSpec
from optim.state import averages, check_slots, first_values, held_slots
from tasks.prepare.batch import Batch
from tasks.train.engine import EngineState, ExpertLoad, LossSum, StepResult
from tasks.train.flax_objective import Rows, tally_of
from tasks.train.regularise import Strengths, needs_teacher, strengths_at
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.spec import TrainSpec

Arrays = Mapping[str, NDArray[Any]]


class Carry(NamedTuple):
    """What a step takes and gives back; its buffers are donated."""

    weights: Tree
    slots: Held


class Parts(NamedTuple):
    """Micro-batches of a step: every array is (N, B / N, ...)."""

    rows: Rows
    samples: Array


class Given(NamedTuple):
    """Numbers that change from step to step."""

    controls: Controls
    strength: Any
    strengths: Strengths
    loss_scale: Any


class Measured(NamedTuple):
    """The figures of a step."""

    tally: Tally
    norm: Array
    taken: Array


class FlaxEngine:
    """Trains over every device of every process: the batch is shared out on one mesh axis, `data`.

    With several workers `jax.distributed` is initialised before the engine is made. What
    `train.zero_stage` shares out is cut along the first axis of an array, where the devices divide
    it: from 1 the optimizer slots, from 2 the gradients, at 3 the weights. The compiler then
    places the gathers and scatters (Xu et al. 2020, arXiv:2004.13336); the numbers stay, and every
    rule sees whole weights.
    """

    def __init__(
        self,
        model_spec: ModelSpec,
        optim_spec: OptimSpec,
        train_spec: TrainSpec,
        regularise: RegulariseSpec = RegulariseSpec(),
    ) -> None:
        """Draw the first weights and place them.

        Raises:
            ValueError: another number of processes than `train.workers`, or a batch that the
                devices cannot share.
        """
        self.model_spec, self.optim_spec, self.train_spec = model_spec, optim_spec, train_spec
        self._regularise = regularise
        self._wide = train_spec.precision == "float64"
        self._mesh = _data_mesh(train_spec)
        self._table = weight_table(model_spec)
        self._plan = plan(optim_spec, self._table)
        self._optimizer = Optimizer(optim_spec, self._table)
        shared = train_spec.zero_stage >= 3
        self._weights_lie = {
            name: self._cut(row.shape, shared=shared) for name, row in self._table.items()
        }
        shared = train_spec.zero_stage >= 1
        self._slots_lie = {
            slot: {name: self._cut(shape, shared=shared) for name, shape in shapes.items()}
            for slot, shapes in held_slots(optim_spec, self._table).items()
        }
        self._everywhere = _along(self._mesh)
        with jax.enable_x64(self._wide):
            self._graph, _ = split(Model(model_spec, precision=train_spec.precision))
        lie = (self._weights_lie, self._slots_lie)
        self._carry: Carry
        self._judged: Tree | None = None
        self._step = jax.jit(
            self._train, donate_argnums=0, out_shardings=(Carry._make(lie), self._everywhere)
        )
        self._curvature = jax.jit(self._estimate)
        self._average = jax.jit(self._optimizer.judged)
        self._loss = jax.jit(self._measure, out_shardings=self._everywhere)
        self._sums = jax.jit(partial(jax.tree.map, _bits))
        self._gather = jax.jit(_identity, out_shardings=self._everywhere)
        self.load(EngineState(initial_weights(model_spec, seed=train_spec.seed)))

    def step(self, batch: Batch, controls: Controls, *, loss_scale: float = 1.0) -> StepResult:
        """Train on this worker's rows of the global batch."""
        step, total = controls.step, self.train_spec.steps
        with jax.enable_x64(self._wide):
            cut = self._cut_rows
            rows = Parts(self._rows(batch, cut), cut(batch.samples.astype(np.uint32)))
            strengths = strengths_at(self._regularise, step=step, total_steps=total)
            numbers: Any = (np.uint32(step), *map(self._number, controls[1:]))
            weighing: Any = map(self._number, strengths)
            given = Given(
                Controls(*numbers),
                np.uint32(strength_at(self.model_spec, step=step, total_steps=total)),
                Strengths(*weighing),
                self._number(loss_scale),
            )
            estimate = None
            if curvature_due(self.optim_spec.rule, step=step):
                estimate = self._curvature(self._carry, rows, given)
            self._carry, measured = self._step(self._carry, rows, given, estimate)
            tally = jax.tree.map(_on_host, measured.tally)
            count = max(float(tally.count), 1.0)
            return StepResult(
                loss=float(tally.nats) / count,
                gradient_norm=float(measured.norm),
                objective=float(tally.objective) / count,
                taken=bool(measured.taken),
                load=ExpertLoad.of(tally.chosen, tally.taken),
            )

    def loss(self, batch: Batch) -> LossSum:
        """Measure this worker's rows; every worker brings as many, a multiple of its devices."""
        weights = self._carry.weights if self._judged is None else self._judged
        with jax.enable_x64(self._wide):
            tally = self._loss(weights, self._rows(batch, self._local))
            return LossSum(float(tally.nats), int(tally.count))

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Inside, `loss` measures the weights that a model is judged by."""
        if averages(self.optim_spec):
            with jax.enable_x64(self._wide):
                self._judged = self._average(*self._carry)
        try:
            yield
        finally:
            self._judged = None

    def state(self) -> EngineState:
        """The whole state, gathered, on every worker."""
        with jax.enable_x64(self._wide):
            whole = jax.tree.map(_on_host, self._gather(self._carry))
        return EngineState(whole.weights, whole.slots)

    def replicas(self) -> dict[str, NDArray[np.int64]]:
        """Checksums of what every device holds alike: name -> (devices,)."""
        if self._mesh.size == 1:
            return {}
        held: Tree = dict(self._carry.weights)
        for slot, arrays in self._carry.slots.items():
            held |= {f"{slot} of {name}": array for name, array in arrays.items()}
        held = {name: each for name, each in held.items() if each.is_fully_replicated}
        if not held:
            return {}
        with jax.enable_x64(self._wide):
            copies = zip(*(each.addressable_shards for each in held.values()), strict=True)
            trees = [
                dict(zip(held, (shard.data for shard in shards), strict=True)) for shards in copies
            ]
            sums = [jax.device_get(self._sums(tree)) for tree in trees]
            own = np.array([[each[name] for name in held] for each in sums], np.uint32)
            gathered = process_allgather(own).reshape(-1, len(held))
        return dict(zip(held, gathered.T.astype(np.int64), strict=True))

    def load(self, state: EngineState) -> None:
        """Go on from a state that either framework saved; without slots they start anew.

        Raises:
            ValueError: the state is of another model or another optimizer.
        """
        check_weights(self.model_spec, state.weights)
        slots = state.slots or first_values(self.optim_spec, self._table, state.weights)
        check_slots(self.optim_spec, self._table, slots)
        with jax.enable_x64(self._wide):
            self._carry = Carry(
                self._place(state.weights, self._weights_lie),
                {slot: self._place(slots[slot], lie) for slot, lie in self._slots_lie.items()},
            )

    def close(self) -> None:
        """Nothing to leave: who initialised `jax.distributed` shuts it down."""

    def _train(
        self, carry: Carry, rows: Parts, given: Given, estimate: Tree | None
    ) -> tuple[Carry, Measured]:
        moving = self._moving(carry.weights)
        share = self._objective(carry, rows, given)
        gradients, tally = _summed(jax.grad(share, has_aux=True), moving, rows)
        if self.train_spec.zero_stage >= 2:
            gradients = _lay(gradients, self._moving(self._weights_cut))
        if _scaled(self.train_spec):
            gradients = jax.tree.map(lambda leaf: leaf / given.loss_scale, gradients)
        if estimate is not None:
            # It overflowed, as a gradient may: nothing is to change.
            sound = jnp.stack([jnp.isfinite(leaf).all() for leaf in estimate.values()]).all()
            gradients = jax.tree.map(lambda leaf: jnp.where(sound, leaf, jnp.nan), gradients)
        stepped = self._optimizer.step(
            moving, gradients, carry.slots, controls=given.controls, curvature=estimate
        )
        balanced = self._balanced(carry.weights, tally, taken=stepped.taken)
        weights = carry.weights | stepped.weights | balanced
        return Carry(weights, stepped.slots), Measured(tally, stepped.norm, stepped.taken)

    def _estimate(self, carry: Carry, rows: Parts, given: Given) -> Tree:
        """The curvature that the rule asks for, of the whole batch."""
        rule = self.optim_spec.rule
        assert isinstance(rule, SophiaG | SophiaH)
        moving = self._moving(carry.weights)
        if isinstance(rule, SophiaG):

            def sampled(moving: Tree, part: Parts) -> curvature.Sampled:
                draw, rows = self._draw(part, given), part.rows

                def logits(moving: Tree) -> Array:
                    model = merge(self._graph, self._whole(carry.weights | moving))
                    return model.logits(rows.inputs, draw=draw, lengths=rows.lengths)

                scored = rows.targets != IGNORED
                return curvature.sampled_gradients(logits, moving, scored, draw=draw)

            return curvature.gauss_newton_bartlett(_summed(sampled, moving, rows))
        first = jax.tree.map(lambda each: each[0], rows)
        along = curvature.probes(rule, moving, draw=self._draw(first, given))
        share = self._objective(carry, rows, given)

        def bent(moving: Tree, part: Parts) -> Tree:
            return curvature.hessian_vector(lambda tree: share(tree, part)[0], moving, along)

        found = _summed(bent, moving, rows)
        scale = given.loss_scale if _scaled(self.train_spec) else 1.0
        return {name: along[name] * found[name] / scale for name in moving}

    def _objective(
        self, carry: Carry, rows: Parts, given: Given
    ) -> Callable[[Tree, Parts], tuple[Array, Tally]]:
        """A micro-batch's share of the mean objective, as a function of the moving weights."""
        count = jnp.maximum(jnp.sum(rows.rows.targets != IGNORED), 1)
        teacher = None
        if needs_teacher(self._regularise):
            teacher = merge(self._graph, self._whole(self._optimizer.judged(*carry)))

        def share(moving: Tree, part: Parts) -> tuple[Array, Tally]:
            tally = tally_of(
                self._regularise,
                merge(self._graph, self._whole(carry.weights | moving)),
                part.rows,
                draw=self._draw(part, given),
                strengths=given.strengths,
                teacher=teacher,
            )
            mean = tally.objective / count
            return mean * given.loss_scale if _scaled(self.train_spec) else mean, tally

        return share

    def _draw(self, part: Parts, given: Given) -> Draw:
        step: Any = given.controls.step
        return Draw(self.train_spec.seed, step, part.samples, given.strength)

    def _balanced(self, weights: Tree, tally: Tally, *, taken: Array) -> Tree:
        """Biases of experts, moved towards even load (Wang et al. 2024, algorithm 1)."""
        moved = {}
        for row in balance_rows(self.model_spec):
            if self._plan[row.name].frozen:
                continue
            chosen = tally.chosen[row.place]
            step = row.rate * jnp.sign(jnp.mean(chosen) - chosen)
            step = jnp.where(taken, step, 0.0)
            moved[row.name] = weights[row.name] + step.astype(weights[row.name].dtype)
        return moved

    def _moving(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a tree by name that the optimizer updates."""
        return {name: leaf for name, leaf in tree.items() if name in self._optimizer.table}

    def _number(self, value: float) -> np.floating[Any]:
        return np.float64(value) if self._wide else np.float32(value)

    def _measure(self, weights: Tree, rows: Rows) -> Tally:
        model = merge(self._graph, self._whole(weights))
        return model(rows.inputs, rows.targets, lengths=rows.lengths)

    def _whole(self, weights: Tree) -> Tree:
        """Gather shared weights where they are used, as ZeRO 3 does."""
        if self.train_spec.zero_stage < 3:
            return weights
        return _lay(weights, self._everywhere)

    @property
    def _weights_cut(self) -> dict[str, NamedSharding]:
        """How gradients lie where they are shared out."""
        return {name: self._cut(row.shape, shared=True) for name, row in self._table.items()}

    def _cut(self, shape: tuple[int, ...], *, shared: bool) -> NamedSharding:
        """How an array lies on the devices."""
        divides = bool(shape) and shape[0] % self._mesh.size == 0
        return _along(self._mesh, *["data"] * (shared and divides))

    def _place(self, arrays: Arrays, placement: Mapping[str, NamedSharding]) -> Tree:
        """Put whole arrays of the host on the devices, in the order of the table."""
        dtype = np.dtype(POLICIES[self.train_spec.precision].parameters)
        placed: Tree = {}
        for name, sharding in placement.items():
            array = np.array(arrays[name], dtype)
            placed[name] = jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        return placed

    def _rows(self, batch: Batch, place: Callable[[NDArray[Any]], Array]) -> Rows:
        """A batch on the devices."""
        mix = None
        if batch.others is not None and batch.shares is not None:
            mix = Mix(place(batch.others), place(batch.shares.astype(self._number(0).dtype)))
        return Rows(
            place(batch.inputs),
            place(batch.targets),
            None if batch.lengths is None else place(batch.lengths.astype(np.int32)),
            mix,
            None if batch.again is None else place(batch.again),
        )

    def _local(self, rows: NDArray[Any]) -> Array:
        """This process's rows as its share of the global array."""
        place = jax.make_array_from_process_local_data
        placed: Array = place(_along(self._mesh, "data"), rows)  # type: ignore[no-untyped-call]
        return placed

    def _cut_rows(self, rows: NDArray[Any]) -> Array:
        """The same, cut into micro-batches: (N, B / N, ...)."""
        parts = self.train_spec.accumulation
        cut = rows.reshape(parts, len(rows) // parts, *rows.shape[1:])
        place = jax.make_array_from_process_local_data
        lie = _along(self._mesh, None, "data")
        placed: Array = place(lie, cut)  # type: ignore[no-untyped-call]
        return placed


def _summed(function: Callable[[Tree, Parts], Any], moving: Tree, rows: Parts) -> Any:
    """The sum of what a function gives for each micro-batch; one after the other."""
    if len(rows.samples) == 1:
        return function(moving, jax.tree.map(lambda each: each[0], rows))
    first = jax.tree.map(lambda each: each[0], rows)
    shapes = jax.eval_shape(function, moving, first)
    zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)

    def add(total: Any, part: Parts) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(moving, part)), None

    total, _ = jax.lax.scan(add, zeros, rows)
    return total


def _scaled(train_spec: TrainSpec) -> bool:
    """Whether gradients pass through float16 and need a scale."""
    return POLICIES[train_spec.precision].compute == "float16"


def _data_mesh(train_spec: TrainSpec) -> Mesh:
    processes, devices = jax.process_count(), jax.device_count()
    if processes != train_spec.workers:
        raise ValueError(
            f"train.workers={train_spec.workers} needs as many JAX processes; got {processes}. "
            "Call jax.distributed.initialize in every worker before the engine is made."
        )
    parts = devices * train_spec.accumulation
    if train_spec.batch % parts:
        raise ValueError(
            "train.batch must be a multiple of the number of JAX devices x train.accumulation; "
            f"got batch={train_spec.batch}, devices={devices}, "
            f"accumulation={train_spec.accumulation}. "
            f"Try batch={-(-train_spec.batch // parts) * parts}."
        )
    # The compiler decides placements: explicit axes refuse the embedding's gather.
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def _along(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Cut along the first axes of an array by mesh axes; whole everywhere without one."""
    return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]


def _lay(tree: Tree, placement: Any) -> Tree:
    """Say in a traced program how arrays lie."""
    laid: Tree = jax.lax.with_sharding_constraint(tree, placement)  # type: ignore[no-untyped-call]
    return laid


def _identity(tree: Carry) -> Carry:
    return tree


def _bits(array: Array) -> Array:
    """The sum of an array's bits, read as integers of 32 bits, modulo 2^32."""
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
    return jnp.sum(bits, dtype=jnp.uint32)


def _on_host(array: Array) -> NDArray[Any]:
    """A copy of an array that every process holds whole."""
    return np.array(array.addressable_data(0))
