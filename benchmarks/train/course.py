"""What every contender trains: one model, one optimizer, one order of the same tokens."""

from __future__ import annotations

import email
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.models.shapes import Shape, language
from models.spec import ConstantCurve
from models.weights import initial_weights
from optim.gradient import ClipNorm, GradientSpec
from optim.rules import AdamW
from optim.schedules import Schedule
from optim.spec import OptimSpec
from tasks.prepare import prepare
from tasks.prepare.dataset import open_split
from tasks.prepare.order import batch_indices
from tasks.prepare.spec import ByteBpe, DataSpec, Language, SplitShares, TextFiles
from tasks.snapshot import snapshot
from tasks.train.spec import TrainSpec

Precision = Literal["float32", "bfloat16"]
# Float32 weights and update, bfloat16 in between; PyTorch's name for it is autocast.
OWN: dict[Precision, Literal["float32", "mixed_bfloat16"]] = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
}
SEED = 0
RULE = AdamW()
RATE = 1e-3
LIMIT = 1.0
OPTIM = OptimSpec(
    rule=RULE,
    schedule=Schedule(peak=RATE, curve=ConstantCurve()),
    gradient=GradientSpec(clip=ClipNorm(limit=LIMIT)),
)
# No run gets there: the driver ends it.
STEPS = 10_000


class Task(NamedTuple):
    """What a contender trains.

    Attributes:
        who: `flax` or `torch`, our loop; `plain`, `trainer` or `litgpt`.
        data: folder of the prepared data set.
        compiled: those that can compile their model do so; Flax always does.
        tiny: as small as tests need.
    """

    who: str
    precision: Precision
    data: str
    compiled: bool = True
    tiny: bool = False


class Step(NamedTuple):
    """A batch: (B, T) tokens and the ones behind them."""

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]


def shape_of(*, tiny: bool) -> Shape:
    """A Llama of 35 million weights, most of whose time goes into products."""
    if tiny:
        return Shape("llama", language("llama", width=32, layers=2, context=32, vocabulary=512), 2)
    return Shape("llama", language("llama", width=768, layers=4, context=512), 4)


def train_spec(task: Task) -> TrainSpec:
    """A run of ours that logs and saves as often as any does."""
    assert task.who in ("flax", "torch")
    return TrainSpec(
        backend="flax" if task.who == "flax" else "torch",
        steps=STEPS,
        batch=shape_of(tiny=task.tiny).batch,
        seed=SEED,
        precision=OWN[task.precision],
        compile=task.compiled,
    )


def weights_of(shape: Shape) -> dict[str, NDArray[np.float32]]:
    """The first weights of every contender, by the names of the weight table."""
    drawn = initial_weights(shape.spec, seed=SEED)
    return {name: np.array(values, np.float32) for name, values in drawn.items()}


def steps_of(task: Task, *, count: int = 64) -> Iterator[Step]:
    """The batches of a run in order, for ever; the first `count` are read before it begins.

    They cost a rival nothing; ours reads its own, step by step.
    """
    shape = shape_of(tiny=task.tiny)
    samples = open_split(Path(task.data), "train", context=shape.length)
    held = []
    for step in range(count):
        chosen = batch_indices(samples.shares, seed=SEED, step=step, batch=shape.batch)
        batch = samples.read(chosen)
        held.append(Step(batch.inputs.astype(np.int64), batch.targets.astype(np.int64)))
    return itertools.cycle(held)


def write_data(folder: Path) -> Path:
    """A data set of the standard library's `email`, prepared as any; its folder."""
    spec = DataSpec(
        source=TextFiles(path=str(Path(email.__file__).parent)),
        task=Language(tokenizer=ByteBpe(vocabulary=512)),
        split=SplitShares(validation=0.2, test=0.2),
    )
    snapshot(spec.source, out=folder / "snapshot")
    prepare(spec, snapshot=folder / "snapshot", out=folder / "data")
    return folder / "data"
