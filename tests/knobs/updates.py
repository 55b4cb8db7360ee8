"""Some steps of both optimizers on a table with every role, without an engine around them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import torch

from models.random import Site, stream_keys, words
from optim.controls import controls
from optim.flax.optimizer import Optimizer
from optim.groups import plan
from optim.norms import remembered
from optim.reference.curvature import probe
from optim.rules import SophiaG, SophiaH, curvature_due
from optim.spec import OptimSpec
from optim.state import first_values, judged
from optim.torch.clip import clip_by_global_norm
from optim.torch.optimizer import RuleOptimizer, groups_of
from tests.knobs.twins import Twin
from tests.optim.rule_runs import TABLE, gradients, start

STEPS = 12


@functools.cache
def updated(optim: OptimSpec, twin: Twin) -> bytes:
    """The weights that a model is judged by after some steps."""
    weights = _flax(optim) if twin == "flax" else _torch(optim)
    return b"".join(np.asarray(weights[name]).tobytes() for name in TABLE)


def estimate(optim: OptimSpec, step: int) -> dict[str, Any] | None:
    """Curvature that depends on the rule's probe, where one is due."""
    rule = optim.rule
    if not isinstance(rule, SophiaG | SophiaH) or not curvature_due(rule, step=step):
        return None
    law = rule.probe if isinstance(rule, SophiaH) else None
    found = {}
    for name, row in TABLE.items():
        keys = stream_keys(
            seed=step, step=0, samples=np.arange(1), layer=0, site=Site.CURVATURE_LABEL
        )
        values = words(keys, int(np.prod(row.shape)))[0].reshape(row.shape) / 2**32
        along = 1.0 if law is None else probe(name, row.shape, law=law, seed=0, step=step)
        found[name] = values * along * along
    return found


def _flax(optim: OptimSpec) -> dict[str, Any]:
    with jax.enable_x64(True):
        optimizer = Optimizer(optim, TABLE)
        step_once = jax.jit(
            lambda weights, slots, gradients, controls, curvature: optimizer.step(
                weights, gradients, slots, controls=controls, curvature=curvature
            )
        )
        weights: Any = dict(start())
        slots: Any = first_values(optim, TABLE, weights)
        norms: tuple[float, ...] = ()
        for step in range(STEPS):
            now = controls(optim, step=step, total_steps=STEPS, norms=norms)
            found = gradients({name: np.asarray(each) for name, each in weights.items()}, step)
            moving = {name: weights[name] for name in optimizer.table}
            own = estimate(optim, step)
            stepped = step_once(
                moving,
                slots,
                {name: found[name] for name in moving},
                jax.tree.map(np.float64, now)._replace(step=np.uint32(step)),
                own and {name: own[name] for name in moving},
            )
            norms = remembered(optim.gradient, norms, float(stepped.norm))
            weights, slots = {**weights, **stepped.weights}, stepped.slots
        host = {slot: {n: np.asarray(v) for n, v in held.items()} for slot, held in slots.items()}
        return judged(optim, {name: np.asarray(each) for name, each in weights.items()}, host)


def _torch(optim: OptimSpec) -> dict[str, Any]:
    planned = plan(optim, TABLE)
    table = {name: TABLE[name] for name, each in planned.items() if each.moves}
    named = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start().items()}
    groups = groups_of(
        optim.rule,
        table,
        named={name: named[name] for name in table},
        decay={name: planned[name].decay for name in table},
        rates={name: planned[name].rate for name in table},
    )
    optimizer = RuleOptimizer(
        groups, optim.rule, gradient=optim.gradient, averages=optim.average is not None
    )
    norms: tuple[float, ...] = ()
    for step in range(STEPS):
        now = controls(optim, step=step, total_steps=STEPS, norms=norms)
        found = gradients({name: each.detach().numpy() for name, each in named.items()}, step)
        for name in table:
            named[name].grad = torch.tensor(found[name])
        norm = float(clip_by_global_norm([named[n].grad for n in table], now.clip))  # type: ignore
        own = estimate(optim, step)
        optimizer.set_step(
            step,
            rate=now.rate,
            decay_share=now.decay_share,
            average_share=now.average_share,
            curvature=None if own is None else {named[n]: torch.tensor(own[n]) for n in table},
        )
        norms = remembered(optim.gradient, norms, norm)
        if norm <= now.skip:
            optimizer.step()
    held: dict[str, dict[str, Any]] = {}
    for name in table:
        for slot, values in optimizer.state[named[name]].items():
            held.setdefault(slot, {})[name] = values.numpy()
    return judged(optim, {name: each.detach().numpy() for name, each in named.items()}, held)
