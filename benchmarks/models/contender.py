"""The work of one library, in a process of its own that does what each line asks.

A line is an order and what it is about, in JSON: `take` a task and warm it up, `do` the task of
that number once, or `leave` all of them. The answer to `do` is what the task measured: seconds,
or bytes where memory is asked for.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from benchmarks.models import peaks
from benchmarks.models.shapes import Shape, decoding_shape, language, training_shape

WARM = 2
Work = Callable[[], float | None]


class Task(NamedTuple):
    """What a contender does.

    Attributes:
        who: `torch`, `flax` or `transformers`.
        what: `train`, `decode`, `experts` (a step with `size` experts), `compile` (of `size`
            layers), `memory` (of a step), or `peak`: of a product of `size` x `size` matrices, or
            of a copy (size 0).
        shape: a family.
        precision: of the twins, or of `rivals`.
        size: batch, experts, layers, or side of a matrix.
        tokens: generated for each prompt.
        checkpointing: what the backward pass of `memory` computes again.
        tiny: as small as tests need.
    """

    who: str
    what: str
    shape: str = "llama"
    precision: str = "float32"
    size: int = 0
    tokens: int = 0
    checkpointing: str = "none"
    tiny: bool = False


def work_of(task: Task) -> Work:
    """The work, ready to be timed; it may measure itself."""
    match task.what:
        case "train":
            return _training(task, training_shape(task.shape, tiny=task.tiny))
        case "experts":
            width, context, batch = (32, 32, 2) if task.tiny else (384, 512, 4)
            spec = language(
                "mixtral", width=width, layers=2, context=context, experts=task.size, tiny=task.tiny
            )
            return _training(task, Shape("mixtral", spec, batch))
        case "decode":
            return _decoding(task)
        case "compile":
            return _compiling(task)
        case "memory":
            return _remembering(task)
        case "peak":
            return peaks.work_of(task.who, task.precision, task.size)
    raise ValueError(
        f"what must be train, experts, decode, compile, memory or peak; got {task.what!r}."
    )


def main() -> None:
    """Answer lines until there are no more."""
    taken: list[Work] = []
    for line in sys.stdin:
        order, about = json.loads(line)
        match order:
            case "take":
                print(_take(Task(*about), taken), flush=True)
            case "do":
                print(_measured(taken[about]), flush=True)
            case "leave":
                taken.clear()
                gc.collect()
                print(0.0, flush=True)


def _take(task: Task, taken: list[Work]) -> int:
    """Hold the work, warm; its number."""
    work = work_of(task)
    if task.what not in ("compile", "memory"):
        for _ in range(WARM):
            work()
    taken.append(work)
    return len(taken) - 1


def _measured(work: Work) -> float:
    begun = time.perf_counter()
    own = work()
    return time.perf_counter() - begun if own is None else own


def _training(task: Task, shape: Shape) -> Work:
    if task.who == "transformers":
        from benchmarks.models import rivals

        return rivals.training(shape, task.precision)
    from benchmarks.models import twins

    return twins.training(cast(Any, task.who), shape, cast(Any, task.precision))


def _decoding(task: Task) -> Work:
    spec = decoding_shape(tiny=task.tiny)
    asked: dict[str, int] = {"batch": task.size, "prompt": 16, "tokens": task.tokens}
    if task.who == "transformers":
        from benchmarks.models import rivals

        return rivals.decoding(spec, task.precision, **asked)
    from benchmarks.models import twins

    return twins.decoding(cast(Any, task.who), spec, cast(Any, task.precision), **asked)


def _compiling(task: Task) -> Work:
    from benchmarks.models import twins

    width, context = (32, 32) if task.tiny else (256, 128)
    spec = language("llama", width=width, layers=task.size, context=context, tiny=task.tiny)
    return lambda: twins.compile_seconds(Shape("llama", spec, 2))


def _remembering(task: Task) -> Work:
    from benchmarks.models import twins

    shape = training_shape(task.shape, tiny=task.tiny)
    asked = shape.spec.execution.model_copy(update={"checkpointing": task.checkpointing})
    spec = shape.spec.model_copy(update={"execution": asked})
    return twins.memory(cast(Any, task.who), shape._replace(spec=spec), cast(Any, task.precision))


if __name__ == "__main__":
    main()
