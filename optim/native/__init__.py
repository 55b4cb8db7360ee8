"""Rules that work value by value, in one pass over memory, for weights on a CPU.

`rules.h` has their equations and `update.c` what hands the values out to threads. They are compiled
when the project is installed; where there was no compiler nothing is known here, and PyTorch's
operations do the same, one after another.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from optim.rules import AdamW, Adan, AnyRule, Lion, Sgd, SophiaG, SophiaH

KINDS = ("sgd", "adamw", "lion", "adan", "sophia")
MOST_SLOTS = 4


class Line(NamedTuple):
    """Addresses of a weight and of what belongs to it, each `size` values in one piece of memory.

    Attributes:
        slots: in the order of `optim.slots.slot_shapes`.
        estimate: of the curvature; 0 where none was made for this step.
    """

    weight: int
    gradient: int
    slots: Sequence[int]
    estimate: int
    size: int


def typed(library: ctypes.CDLL) -> ctypes.CDLL:
    """`update.c` compiled, told what its function takes."""
    library.update.restype = None
    library.update.argtypes = (
        ctypes.c_int,
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_double),
        ctypes.c_int,
    )
    return library


def _load() -> ctypes.CDLL | None:
    found = find_spec("optim.native._update")
    if found is None or found.origin is None:
        return None
    return typed(ctypes.CDLL(found.origin))


LIBRARY = _load()


def knows(rule: AnyRule) -> bool:
    """Whether a variant of a rule is here."""
    return LIBRARY is not None and rule.elementwise and _kind(rule) in KINDS


def update(
    rule: AnyRule,
    lines: Sequence[Line],
    *,
    wide: bool,
    step: int,
    rate: float,
    decay: float,
    seen: Sequence[float],
    threads: int,
) -> None:
    """Update weights and slots where they lie.

    Args:
        rule: one that `knows` knows.
        wide: values are float64, else float32.
        step: from 0.
        rate: learning rate.
        decay: weight decay.
        seen: `1 - beta ** (step + 1)` of the rule's betas.
        threads: how many share the work.
    """
    assert LIBRARY is not None
    numbers = (rate, decay, *_numbers(rule, step=step, seen=seen))
    flat: list[int] = []
    for line in lines:
        unused = (0,) * (MOST_SLOTS - len(line.slots))
        flat += (line.weight, line.gradient, *line.slots, *unused, line.estimate, line.size)
    LIBRARY.update(
        KINDS.index(_kind(rule)),
        wide,
        (ctypes.c_int64 * len(flat))(*flat),
        len(lines),
        (ctypes.c_double * len(numbers))(*numbers),
        threads,
    )


def _kind(rule: AnyRule) -> str:
    return "sophia" if isinstance(rule, SophiaG | SophiaH) else rule.kind


def _numbers(rule: AnyRule, *, step: int, seen: Sequence[float]) -> tuple[float, ...]:
    """What a rule in `rules.h` reads behind rate and decay."""
    match rule:
        case Sgd():
            return (rule.momentum, rule.nesterov, rule.decoupled)
        case AdamW():
            seen = seen if rule.bias_correction else (1.0, 1.0)
            return (rule.beta1, rule.beta2, rule.epsilon, rule.decoupled, *seen)
        case Lion():
            return (rule.beta1, rule.beta2)
        case Adan():
            seen = seen if rule.start == "bias_correction" else (1.0, 1.0, 1.0)
            # 0 on the first step: no gradient came before, and averages begin anew.
            kept = (1, 1, 1) if rule.start == "bias_correction" else (step > 0, step > 1, step > 0)
            betas = (rule.beta1 * kept[0], rule.beta2 * kept[1], rule.beta3 * kept[2])
            return (*betas, rule.epsilon, rule.beta2, step > 0, rule.proximal, *seen)
        case SophiaG() | SophiaH():
            return (rule.beta1, rule.beta2, rule.gamma, rule.epsilon, rule.clip)
    raise ValueError(f"rule.kind must be one of {', '.join(KINDS)}; got {rule.kind!r}.")
