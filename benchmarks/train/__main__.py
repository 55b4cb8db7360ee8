"""How fast our training is beside that of others: `python -m benchmarks.train`.

The same first weights, batches, optimizer and precision for all. Each contender trains in a process
of its own with all cores; rounds go through all of them in turn, between two of their steps.
Figures are medians, and ratios are medians over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from benchmarks.models.__main__ import Peaks, Sheet, measure_peaks, written
from benchmarks.models.rounds import Contenders
from benchmarks.train.contender import NEEDS, missing
from benchmarks.train.course import Precision, Task, shape_of, train_spec, write_data
from benchmarks.train.race import Raced, race
from models.weights import flops_per_token, parameter_count

OURS = ("flax", "torch")
NAMES = {
    "flax": "Tandem, Flax",
    "torch": "Tandem, PyTorch",
    "plain": "plain PyTorch, compiled",
    "trainer": "transformers.Trainer",
    "litgpt": "LitGPT, compiled",
}
COLUMNS = ("contender", "tokens/s", "ratio to best rival", "of peak", "outside steps", "last loss")


def measure(
    peaks: Peaks,
    precision: Precision,
    *,
    who: Sequence[str],
    rounds: int,
    each: int,
    tiny: bool,
    tell: Callable[[str], None],
) -> Sheet:
    """The contenders of one precision."""
    ready = [name for name in who if missing(name) is None]
    with tempfile.TemporaryDirectory() as scratch:
        data = str(write_data(Path(scratch)))
        tasks = [Task(name, precision, data, tiny=tiny) for name in ready]
        raced = race(tasks, rounds=rounds, each=each, tell=tell)
    found = {each.task.who: _charged(each) for each in raced}
    best = min(
        (each for name, each in found.items() if name not in OURS),
        key=lambda each: each.step_s,
        default=None,
    )
    rows = [
        (
            _row(found[name], best, peaks)
            if name in found
            else (NAMES[name], "not installed", *[""] * (len(COLUMNS) - 2))
        )
        for name in who
    ]
    spec = shape_of(tiny=tiny).spec
    title = f"{precision}, {parameter_count(spec) / 1e6:.0f}M weights"
    return Sheet(title, COLUMNS, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write down if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=3, help="steps of a contender in a round")
    parser.add_argument("--quick", action="store_true", help="two rounds of a tiny model")
    parser.add_argument(
        "--precision", nargs="+", choices=get_args(Precision), default=list(get_args(Precision))
    )
    parser.add_argument("--only", nargs="+", choices=NEEDS, default=list(NEEDS))
    parser.add_argument("--markdown", type=Path, help="where to write the tables")
    asked = parser.parse_args(arguments)
    rounds, tiny = (2 if asked.quick else asked.rounds), asked.quick
    console = Console(width=140)
    console.print(f"{platform.processor() or platform.machine()}, {platform.platform()}")
    for name in asked.only:
        if (remedy := missing(name)) is not None:
            console.print(f"{NAMES[name]} is not installed; {remedy}")
    with Contenders() as contenders:
        peaks, sheet = measure_peaks(contenders, rounds=rounds, tiny=tiny)
    sheets = [sheet]
    console.print(_shown(sheet))
    for precision in asked.precision:
        sheets.append(
            measure(
                peaks,
                precision,
                who=asked.only,
                rounds=rounds,
                each=asked.each,
                tiny=tiny,
                tell=console.print,
            )
        )
        console.print(_shown(sheets[-1]))
    if asked.markdown:
        asked.markdown.write_text(written(sheets))


def _charged(raced: Raced) -> Raced:
    """Ours with its checkpoints; the others write none."""
    if raced.task.who not in OURS:
        return raced
    return raced.charged(every=train_spec(raced.task).checkpoint.every_steps)


def _row(raced: Raced, best: Raced | None, peaks: Peaks) -> tuple[str, ...]:
    shape = shape_of(tiny=raced.task.tiny)
    tokens_per_s = shape.batch * shape.length / raced.step_s
    peak = max(peaks.flops[framework, raced.task.precision] for framework in OURS)
    own = raced.task.who in OURS
    return (
        NAMES[raced.task.who],
        f"{tokens_per_s:,.0f}",
        f"{raced.times_faster(best):.2f}" if best is not None else "",
        f"{tokens_per_s * flops_per_token(shape.spec) / peak:.0%}",
        f"{raced.outside:.2%}" if own else "",
        f"{raced.run.losses[-1]:.4f}",
    )


def _shown(sheet: Sheet) -> Table:
    table = Table(*sheet.columns, title=sheet.title)
    for row in sheet.rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    main()
