"""How fast both twins are beside `transformers`: `python -m benchmarks.models`.

Each library runs in a process of its own with all cores; rounds go through all contenders of a row
in turn. Figures are medians, and ratios are medians over rounds of the ratio within a round. The
FLOPs of a position are those of `models.weights.flops_per_token`, held against products of square
matrices in the same framework, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.models.contender import Task
from benchmarks.models.peaks import COPIED_BYTES
from benchmarks.models.rounds import Contenders, Measured
from benchmarks.models.shapes import FAMILIES, decoding_shape, training_shape
from models.weights import flops_per_token, parameter_count

PRECISIONS = ("float32", "bfloat16")
SIZES = {"float32": 4, "bfloat16": 2}
# What training calls them.
OWN = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
PARTS = ("peaks", "train", "decode", "compile", "experts", "memory")
CHECKPOINTING = ("none", "matmuls", "blocks")
PEAK_SIDE = 2048


class Sheet(NamedTuple):
    """A table of figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Peaks(NamedTuple):
    """What the machine can do at most.

    Attributes:
        flops: of a second, by framework and precision.
        copied: bytes that are read, or written, in a second of copying.
    """

    flops: dict[tuple[str, str], float]
    copied: float


def measure_peaks(contenders: Contenders, *, rounds: int, tiny: bool) -> tuple[Peaks, Sheet]:
    """Products of square matrices, and copies."""
    side = 64 if tiny else PEAK_SIDE
    kinds = [(who, precision) for precision in PRECISIONS for who in ("torch", "flax")]
    tasks = [Task(who, "peak", precision=precision, size=side) for who, precision in kinds]
    *products, copy = contenders.run([*tasks, Task("torch", "peak")], rounds=rounds)
    flops = {kind: 2 * side**3 / timed.median for kind, timed in zip(kinds, products, strict=True)}
    peaks = Peaks(flops, 2 * COPIED_BYTES / copy.median)
    rows = [
        (who, precision, f"{rate / 1e9:.0f} GFLOP/s") for (who, precision), rate in flops.items()
    ]
    rows.append(("memory", "copy, read + written", f"{peaks.copied / 1e9:.1f} GB/s"))
    return peaks, Sheet("Peaks", ("who", "what", "rate"), rows)


def measure_training(
    contenders: Contenders, peaks: Peaks, families: Sequence[str], *, rounds: int, tiny: bool
) -> Sheet:
    """A forward and backward pass of each family."""
    rows = []
    for family in families:
        shape = training_shape(family, tiny=tiny)
        tokens = shape.batch * shape.length
        for precision in PRECISIONS:
            theirs = ("float32",) if precision == "float32" else ("autocast", "bfloat16")
            tasks = [Task("transformers", "train", family, kind, tiny=tiny) for kind in theirs]
            tasks += [
                Task(who, "train", family, OWN[precision], tiny=tiny) for who in ("torch", "flax")
            ]
            *rivals, torch, flax = contenders.run(tasks, rounds=rounds)
            rival = min(rivals, key=lambda timed: timed.median)
            flops = flops_per_token(shape.spec) * tokens
            rows.append(
                (
                    f"{family}, {parameter_count(shape.spec) / 1e6:.0f}M",
                    precision,
                    f"{tokens / rival.median:,.0f} ({rival.task.precision})",
                    f"{flops / rival.median / peaks.flops['torch', precision]:.0%}",
                    *_training_row(torch, rival, tokens, flops, peaks.flops["torch", precision]),
                    *_training_row(flax, rival, tokens, flops, peaks.flops["flax", precision]),
                )
            )
    columns: tuple[str, ...] = ("shape", "precision", "transformers", "of peak")
    columns += ("torch twin", "ratio", "of peak", "Flax twin", "ratio", "of peak")
    return Sheet("Forward and backward, tokens/s", columns, rows)


def measure_decoding(contenders: Contenders, peaks: Peaks, *, rounds: int, tiny: bool) -> Sheet:
    """Greedy generation behind prompts of 16 tokens, the prompt included."""
    rows = []
    spec, tokens = decoding_shape(tiny=tiny), 8 if tiny else 64
    for precision in PRECISIONS:
        weights = parameter_count(spec) * SIZES[precision]
        for batch in (1, 8):
            libraries = ("transformers", "torch", "flax")
            ways = [Task(who, "decode", "llama", precision) for who in libraries]
            tasks = [way._replace(size=batch, tokens=tokens, tiny=tiny) for way in ways]
            rival, torch, flax = contenders.run(tasks, rounds=rounds)
            roof = batch * peaks.copied / weights
            rows.append(
                (
                    f"{batch}",
                    precision,
                    f"{batch * tokens / rival.median:.1f}",
                    *_decoding_row(torch, rival, batch * tokens, roof),
                    *_decoding_row(flax, rival, batch * tokens, roof),
                    f"{roof:.0f}",
                )
            )
    columns: tuple[str, ...] = ("batch", "precision", "transformers")
    columns += ("torch twin", "ratio", "of roof", "Flax twin", "ratio", "of roof", "roof")
    title = f"Decoding, tokens/s ({parameter_count(spec) / 1e6:.0f}M weights)"
    return Sheet(title, columns, rows)


def measure_compiling(contenders: Contenders, *, rounds: int, tiny: bool) -> Sheet:
    """Tracing and compiling a JAX step of few and of many layers."""
    few, many = contenders.run(
        [Task("flax", "compile", size=layers, tiny=tiny) for layers in (4, 24)],
        rounds=min(rounds, 3),
    )
    row = (f"{few.median:.2f} s", f"{many.median:.2f} s", f"{few.times_faster(many):.2f}")
    return Sheet("Compiling a Flax step", ("4 layers", "24 layers", "ratio"), [row])


def measure_experts(contenders: Contenders, *, rounds: int, tiny: bool) -> Sheet:
    """A step with two active experts of few and of many."""
    rows = []
    for who in ("torch", "flax"):
        for precision in OWN.values():
            ways = [Task(who, "experts", precision=precision, size=size) for size in (8, 32)]
            few, many = contenders.run([way._replace(tiny=tiny) for way in ways], rounds=rounds)
            times = (f"{few.median:.3f} s", f"{many.median:.3f} s")
            rows.append((who, precision, *times, f"{few.times_faster(many):.2f}"))
    columns = ("twin", "precision", "8 experts", "32 experts", "ratio")
    return Sheet("A step with 2 active experts", columns, rows)


def measure_memory(*, tiny: bool) -> Sheet:
    """What a step holds beside weights and inputs, by what its backward pass computes again."""
    rows = []
    for who in ("torch", "flax"):
        for precision in OWN.values():
            way = Task(who, "memory", precision=precision, tiny=tiny)
            sizes = []
            for policy in CHECKPOINTING:
                with Contenders() as alone:
                    (found,) = alone.run([way._replace(checkpointing=policy)], rounds=1)
                sizes.append(f"{found.median / 2**20:,.0f} MiB")
            rows.append((who, precision, *sizes))
    return Sheet("Memory of a Llama step", ("twin", "precision", *CHECKPOINTING), rows)


def measure(
    contenders: Contenders,
    parts: Sequence[str],
    families: Sequence[str],
    *,
    rounds: int,
    tiny: bool,
) -> Iterator[Sheet]:
    """The tables of some parts, each as it is ready; the peaks come first, for shares of them."""
    peaks, sheet = measure_peaks(contenders, rounds=rounds, tiny=tiny)
    yield sheet
    for part in parts:
        match part:
            case "train":
                yield measure_training(contenders, peaks, families, rounds=rounds, tiny=tiny)
            case "decode":
                yield measure_decoding(contenders, peaks, rounds=rounds, tiny=tiny)
            case "compile":
                yield measure_compiling(contenders, rounds=rounds, tiny=tiny)
            case "experts":
                yield measure_experts(contenders, rounds=rounds, tiny=tiny)
            case "memory":
                yield measure_memory(tiny=tiny)


def written(sheets: Sequence[Sheet]) -> str:
    """Markdown tables."""
    lines = []
    for sheet in sheets:
        lines += [f"## {sheet.title}", "", _line(sheet.columns)]
        lines += [_line(["---"] * len(sheet.columns)), *(_line(row) for row in sheet.rows), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write down if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of tiny shapes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--json", type=Path, help="where to write the tables")
    parser.add_argument("--markdown", type=Path, help="where to write them as Markdown")
    asked = parser.parse_args(arguments)
    rounds, tiny = (2 if asked.quick else asked.rounds), asked.quick
    console = Console(width=140)
    console.print(f"{platform.processor() or platform.machine()}, {platform.platform()}")
    with Contenders() as contenders:
        sheets = []
        for sheet in measure(contenders, asked.only, asked.families, rounds=rounds, tiny=tiny):
            sheets.append(sheet)
            console.print(_shown(sheet))
    if asked.json:
        asked.json.write_text(json.dumps([each._asdict() for each in sheets], indent=1))
    if asked.markdown:
        asked.markdown.write_text(written(sheets))


def _training_row(
    own: Measured, rival: Measured, tokens: int, flops: int, peak: float
) -> tuple[str, str, str]:
    rate = f"{tokens / own.median:,.0f}"
    return rate, f"{own.times_faster(rival):.2f}", f"{flops / own.median / peak:.0%}"


def _decoding_row(own: Measured, rival: Measured, tokens: int, roof: float) -> tuple[str, str, str]:
    rate = tokens / own.median
    return f"{rate:.1f}", f"{own.times_faster(rival):.2f}", f"{rate / roof:.0%}"


def _shown(sheet: Sheet) -> Table:
    table = Table(*sheet.columns, title=sheet.title)
    for row in sheet.rows:
        table.add_row(*row)
    return table


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
