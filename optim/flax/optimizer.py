"""An optimizer step as a pure function, to be jitted with its arguments donated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from models.weights import Weight
from optim.controls import Controls
from optim.flax import rule
from optim.flax.clip import clip_by_global_norm
from optim.flax.gradient import shaped
from optim.groups import plan
from optim.spec import OptimSpec

Tree = dict[str, Array]
Held = dict[str, Tree]


class Stepped(NamedTuple):
    """A model after a step.

    Attributes:
        weights: by name, those that the optimizer moves.
        slots: slot -> weight -> array.
        norm: of the gradient before clipping, ().
        taken: whether the step was; else weights and slots are the old ones, ().
    """

    weights: Tree
    slots: Held
    norm: Array
    taken: Array


class Optimizer:
    """What `optim` says, for the weights of one table.

    Attributes:
        table: lines of the weights that it moves.
    """

    def __init__(self, optim: OptimSpec, table: Mapping[str, Weight]) -> None:
        """Plan how each weight is trained."""
        planned = plan(optim, table)
        self.optim = optim
        self.table = {name: table[name] for name, each in planned.items() if each.moves}
        self._decay = {name: planned[name].decay for name in self.table}
        self._rates = {name: planned[name].rate for name in self.table}

    def step(
        self,
        weights: Mapping[str, Array],
        gradients: Mapping[str, Array],
        slots: Mapping[str, Mapping[str, Array]],
        *,
        controls: Controls,
        curvature: Mapping[str, Array] | None = None,
    ) -> Stepped:
        """Clip, shape, update, average; nothing where the norm is not finite or a spike.

        Args:
            weights: those that move; gradients and slots are theirs.
            controls: numbers of the step, which may be traced.
            curvature: of each weight, where `optim.rules.curvature_due` says so.
        """
        held = {slot: dict(arrays) for slot, arrays in slots.items()}
        averages = held.pop("average", None)
        scale, norm = clip_by_global_norm(dict(gradients), controls.clip)
        taken = jnp.isfinite(norm) & (norm <= controls.skip)

        def new() -> rule.Stepped:
            # Scaled inside, or all scaled gradients would be written down first.
            scaled = {name: gradient * scale for name, gradient in gradients.items()}
            return rule.update(
                self.optim.rule,
                self.table,
                weights=weights,
                gradients={
                    name: self._shaped(weights, scaled, name, step=controls.step)
                    for name in weights
                },
                slots=held,
                decay=self._decay_now(controls.decay_share),
                rates=self._rates,
                step=controls.step,
                rate=controls.rate,
                curvature=curvature,
            )

        old = rule.Stepped(dict(weights), held)
        moved = rule.in_place(self.optim.rule, taken, old=old, new=new)
        if averages is not None:
            share = controls.average_share
            moved.slots["average"] = {
                name: jnp.where(taken, average + _number(share, average) * (new - average), average)
                for name, average in averages.items()
                for new in [moved.weights[name].astype(average.dtype)]
            }
        return Stepped(*moved, norm, taken)

    def judged(self, weights: Tree, slots: Held) -> Tree:
        """The weights that a model is measured with; see `optim.state.judged`."""
        if self.optim.average is not None:
            averages = slots["average"]
            return weights | {
                name: average.astype(weights[name].dtype) for name, average in averages.items()
            }
        return rule.averaged(self.optim.rule, weights=weights, slots=slots)

    def _shaped(
        self, weights: Mapping[str, Array], gradients: Tree, name: str, *, step: ArrayLike
    ) -> Array:
        spec = self.optim.gradient
        if not spec.shapes:
            return gradients[name]
        wide = jnp.promote_types(weights[name].dtype, jnp.float32)
        weight, gradient = weights[name].astype(wide), gradients[name].astype(wide)
        return shaped(spec, weight, gradient, row=self.table[name], step=step)

    def _decay_now(self, share: Any) -> dict[str, Any]:
        if self.optim.decay_schedule is None:
            return dict(self._decay)
        return {name: decay * share for name, decay in self._decay.items()}


def _number(value: Any, like: Array) -> Array:
    return jnp.asarray(value).astype(like.dtype)
