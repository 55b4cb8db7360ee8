"""How long a step of each rule takes: `python -m benchmarks.optim --millions 100`.

Every contender runs in a fresh process, and rounds go through all of them in turn, so that what
else the machine does falls on all alike. Figures are medians in milliseconds and the median, over
rounds, of the ratio to the round's own yardstick, `torch.optim.AdamW(fused=True)`. A step is the
rule's alone: no norm, no clipping, Sophia without its estimate of the curvature. `torch` is what
training runs, `torch compiled` the same rules through `torch.compile`; a Flax step depends on being
taken, as in training. The bars are printed with what was found. With `--alone` every contender has
one core and is measured by the time that the core spent on it, which other programs touch less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from models.weights import Weight
from optim.rules import AdamW, Adan, AnyRule, Lion, ScheduleFree, Sgd, SophiaG

RULES: dict[str, AnyRule] = {
    "sgd": Sgd(),
    "adamw": AdamW(),
    "lion": Lion(),
    "adan": Adan(),
    "sophia_g": SophiaG(),
    "schedule_free": ScheduleFree(),
}
YARDSTICK = "torch.optim.AdamW fused"
CONTENDERS = (
    YARDSTICK,
    "torch.optim.AdamW foreach",
    *(f"torch {name}" for name in RULES),
    *(f"torch compiled {name}" for name in RULES),
    *(f"flax {name}" for name in RULES),
    "optax adamw donated",
    "optax adamw not donated",
)
WARM_STEPS, TIMED_STEPS = 3, 9


class Bar(NamedTuple):
    """How long a contender may take: at most so many times the time of another one."""

    contender: str
    over: str
    times: float


BARS = (
    Bar("torch adamw", YARDSTICK, 1.1),
    Bar("flax adamw", YARDSTICK, 1.5),
    *(
        Bar(f"{twin} {rule}", f"{twin} adamw", times)
        for twin in ("torch", "flax")
        for rule, times in (("lion", 0.8), ("adan", 1.5), ("sophia_g", 1.5))
    ),
)


def table_of(millions: int) -> dict[str, Weight]:
    """Matrices and gains of a decoder of about so many million values."""
    width = max(64, round((millions * 1e6 / (12 * 12)) ** 0.5 / 64) * 64)
    rows = []
    for layer in range(12):
        sides = {"query": width, "key": width, "value": width, "output": width}
        for name in sides:
            rows.append(Weight(f"{layer}.{name}", (width, width), "matrix", ("heads", "width")))
        rows.append(Weight(f"{layer}.up", (4 * width, width), "matrix", ("hidden", "width")))
        rows.append(Weight(f"{layer}.down", (width, 4 * width), "matrix", ("width", "hidden")))
        rows.append(Weight(f"{layer}.norm", (width,), "gain", ("width",)))
    return {row.name: row for row in rows}


def values_of(table: dict[str, Weight], *, seed: int) -> dict[str, Any]:
    """Float32 numbers for every weight."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(row.shape, np.float32) for name, row in table.items()}


def in_torch(contender: str, table: dict[str, Weight]) -> Callable[[int], None]:
    """A step of a torch contender."""
    import torch

    from optim.torch.optimizer import RuleOptimizer, groups_of

    gradients = values_of(table, seed=1)
    named = {}
    for name, value in values_of(table, seed=0).items():
        named[name] = torch.nn.Parameter(torch.from_numpy(value))
        named[name].grad = torch.from_numpy(gradients[name])
    if contender.startswith("torch.optim"):
        theirs = torch.optim.AdamW(
            named.values(), fused=contender.endswith("fused"), foreach=contender.endswith("foreach")
        )
        return lambda step: theirs.step()
    rule = RULES[contender.split()[-1]]
    ones, decay = dict.fromkeys(table, 1.0), dict.fromkeys(table, 0.1)
    groups = groups_of(rule, table, named=named, decay=decay, rates=ones)
    ours = RuleOptimizer(groups, rule, compiled="compiled" in contender)

    def step_once(step: int) -> None:
        ours.set_step(step, rate=1e-3)
        ours.step()

    return step_once


def in_jax(contender: str, table: dict[str, Weight]) -> Callable[[int], None]:
    """A step of a JAX contender."""
    import jax
    import jax.numpy as jnp
    import optax

    from optim.flax import rule as flax_rule

    weights = jax.tree.map(jnp.asarray, values_of(table, seed=0))
    gradients = jax.tree.map(jnp.asarray, values_of(table, seed=1))
    held: list[Any] = []
    if contender.startswith("optax"):
        theirs = optax.adamw(1e-3)

        def update(weights: Any, state: Any, gradients: Any, step: Any) -> Any:
            updates, state = theirs.update(gradients, state, weights)
            return optax.apply_updates(weights, updates), state

        held += [weights, theirs.init(weights)]
        donated: tuple[int, ...] = () if "not donated" in contender else (0, 1)
        jitted = jax.jit(update, donate_argnums=donated)
    else:
        rule = RULES[contender.split()[-1]]
        ones, decay = dict.fromkeys(table, 1.0), dict.fromkeys(table, 0.1)

        def ours(weights: Any, slots: Any, gradients: Any, step: Any) -> Any:
            old = flax_rule.Stepped(weights, slots)

            def new() -> flax_rule.Stepped:
                return flax_rule.update(
                    rule,
                    table,
                    weights=weights,
                    gradients=gradients,
                    slots=slots,
                    decay=decay,
                    rates=ones,
                    step=step,
                    rate=jnp.float32(1e-3),
                )

            return flax_rule.in_place(rule, step >= 0, old=old, new=new)

        held += [weights, flax_rule.first_slots(rule, table, weights)]
        jitted = jax.jit(ours, donate_argnums=(0, 1))

    def step_once(step: int) -> None:
        done: Any = jitted(*held, gradients, np.int32(step))
        held[:] = jax.block_until_ready(done)  # type: ignore[no-untyped-call]

    return step_once


def measure(contender: str, *, millions: int, alone: bool) -> float:
    """Median milliseconds of a step, in this process."""
    clock = time.perf_counter
    if alone:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        clock = time.process_time
    table = table_of(millions)
    build = in_torch if contender.startswith("torch") else in_jax
    step_once, times = build(contender, table), []
    for step in range(WARM_STEPS + TIMED_STEPS):
        start = clock()
        step_once(step)
        times.append(clock() - start)
    return 1e3 * statistics.median(times[WARM_STEPS:])


def ratio_of(own: list[float], base: list[float]) -> float:
    """The median, over rounds, of the ratio within a round."""
    return statistics.median(one / other for one, other in zip(own, base, strict=True))


def main() -> None:
    """Run every contender in turn, some rounds long, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="contenders whose name holds one of these, a,b")
    parser.add_argument("--alone", action="store_true", help="one core, and its time")
    parser.add_argument("--contender", choices=CONTENDERS, help="measure one, print milliseconds")
    given = parser.parse_args()
    if given.contender:
        found = measure(given.contender, millions=given.millions, alone=given.alone)
        print(json.dumps(found))
        return
    asked = given.only.split(",")
    chosen = [
        each for each in CONTENDERS if each == YARDSTICK or any(part in each for part in asked)
    ]
    times: dict[str, list[float]] = {each: [] for each in chosen}
    for _ in range(given.rounds):
        for each in chosen:
            command = [sys.executable, "-m", "benchmarks.optim", "--contender", each]
            command += ["--millions", str(given.millions), *["--alone"] * given.alone]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            times[each].append(float(ran.stdout.splitlines()[-1]))
    size = sum(row.size for row in table_of(given.millions).values())
    print(f"{size / 1e6:.1f} million values; medians of {given.rounds} rounds", flush=True)
    for each in chosen:
        ratio = ratio_of(times[each], times[YARDSTICK])
        print(f"{each:30} {statistics.median(times[each]):8.1f} ms  x{ratio:.2f}")
    for bar in BARS:
        if bar.contender in times and bar.over in times:
            ratio = ratio_of(times[bar.contender], times[bar.over])
            verdict = "met" if ratio <= bar.times else "missed"
            print(f"{bar.contender:30} {verdict}: x{ratio:.2f} of {bar.over}, bar {bar.times}")


if __name__ == "__main__":
    main()
