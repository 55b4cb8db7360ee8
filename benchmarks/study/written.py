"""What a study found, as a Markdown table and as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from benchmarks.study.course import SEEDS, TUNING_SEED, Column, Findings, Row
from benchmarks.study.intervals import Interval
from benchmarks.study.problems import open_problem
from benchmarks.study.recipes import GRID, RECIPES, YARDSTICK
from models.weights import parameter_count
from tasks import page
from tasks.figures import QUIET, svg


class Budget(NamedTuple):
    """What rules may spend alike, and how it is drawn."""

    label: str
    column: Callable[[Row], Column]
    color: str
    shift: float


BUDGETS = (
    Budget("with as many steps", lambda row: row.tokens, "#2563eb", 0.14),
    Budget("in as much time", lambda row: row.clock, "#d97706", -0.14),
)
HEADS = (
    "rule",
    "peak",
    "loss",
    "minus AdamW",
    "time of a step",
    "steps in AdamW's time",
    "loss in that time",
    "minus AdamW in that time",
)


def markdown(findings: Sequence[Findings]) -> str:
    """Two tables for each problem: the results, and the tuning behind them."""
    lines = []
    for found in findings:
        lines += [f"## {_title(found)}", "", _about(found), "", *map(_line, _results(found)), ""]
        lines += [*map(_line, _tuning(found)), "", _verdict(found), ""]
    return "\n".join(lines)


def write_study_page(path: Path, findings: Sequence[Findings]) -> None:
    """Write the page; equal findings give equal bytes."""
    body = ["<h1>Do the optimizers help?</h1>", f"<p>{escape(_how())}</p>"]
    for found in findings:
        heads, _, *rows = _results(found)
        grid, _, *tuned = _tuning(found)
        body += [
            f"<h2>{escape(_title(found))}</h2>",
            f"<p>{escape(_about(found))}</p>",
            f"<p>{escape(_verdict(found))}</p>",
            page.figure(_drawn(found), f"difference to AdamW with its interval, {_title(found)}"),
            page.table(heads, rows),
            "<h2>Tuning</h2>",
            page.table(grid, tuned),
        ]
    centres = [(rule, f"{each.centre:g}", each.why) for rule, each in RECIPES.items()]
    body += ["<h2>Centres of the grids</h2>", page.table(("rule", "centre", "why"), centres)]
    page.write_page(path, title="Do the optimizers help?", body=body)


def _how() -> str:
    return (
        f"Each rule is tuned by {len(GRID)} peaks around a centre of its own, with seed "
        f"{TUNING_SEED}; its best peak is run with the seeds {', '.join(map(str, SEEDS))}, for as "
        "many steps as AdamW and for as much time. Intervals are Student's, 95 %, of the mean over "
        "seeds; differences are paired by seed. They are not widened for the number of "
        "comparisons: one in twenty leaves zero by chance."
    )


def _title(found: Findings) -> str:
    return open_problem(found.problem).title


def _about(found: Findings) -> str:
    problem = open_problem(found.problem)
    targets = problem.batch * problem.model.inputs.length
    return (
        f"{parameter_count(problem.model):,} weights, {found.steps} steps of {problem.batch} "
        f"samples ({found.steps * targets:,} positions); validation loss in {problem.unit}."
    )


def _results(found: Findings) -> list[tuple[str, ...]]:
    rows = [HEADS, tuple("---" for _ in HEADS)]
    for row in found.rows:
        edge = " (edge)" if row.at_edge else ""
        rows.append(
            (
                row.rule,
                f"{row.peak:g}{edge}",
                *_cells(row.tokens),
                f"{row.time:.2f}",
                str(row.clock.steps),
                *_cells(row.clock),
            )
        )
    return rows


def _tuning(found: Findings) -> list[tuple[str, ...]]:
    heads = ("tuning", *(f"centre x {factor:.3g}" for factor in GRID))
    rows = [heads, tuple("---" for _ in heads)]
    for row in found.rows:
        losses = (row.tuned[peak] for peak in sorted(row.tuned))
        rows.append((row.rule, *("blew up" if it is None else f"{it:.4f}" for it in losses)))
    return rows


def _cells(column: Column) -> tuple[str, str]:
    blown = sum(loss is None for loss in column.losses)
    if column.mean is None:
        return f"{blown} of {len(column.losses)} blew up", ""
    return _spelled(column.mean, ".4f"), _spelled(column.difference, "+.4f")


def _spelled(it: Interval | None, form: str) -> str:
    return "" if it is None else f"{it.mean:{form}} ({it.low:{form}} to {it.high:{form}})"


def _verdict(found: Findings) -> str:
    """Which rules left AdamW behind, and which stayed behind it."""
    parts = []
    for side, word in ((-1, "Better"), (1, "Worse")):
        for budget in BUDGETS:
            names = [row.rule for row in found.rows if _side(budget.column(row)) == side]
            parts.append(f"{word} than AdamW {budget.label}: {', '.join(names) or 'none'}.")
    return " ".join(parts)


def _side(column: Column) -> int:
    """Where the interval of the difference lies: -1 below zero, 1 above, 0 where it holds zero."""
    it = column.difference
    if it is None or it.holds_zero:
        return 0
    return 1 if it.mean > 0 else -1


def _drawn(found: Findings) -> str:
    rows = [row for row in reversed(found.rows) if row.rule != YARDSTICK]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=QUIET, linewidth=1)
        for budget in BUDGETS:
            columns = [budget.column(row).difference for row in rows]
            points = [(place, it) for place, it in enumerate(columns) if it is not None]
            below = [it.mean - it.low for _, it in points]
            above = [it.high - it.mean for _, it in points]
            axes.errorbar(
                [it.mean for _, it in points],
                [place + budget.shift for place, _ in points],
                xerr=[below, above],
                fmt="o",
                markersize=4,
                linewidth=1.4,
                color=budget.color,
                label=budget.label,
            )
        axes.set_yticks(range(len(rows)), [row.rule for row in rows])
        axes.set_xlabel(f"loss minus AdamW's, {open_problem(found.problem).unit}; left is better")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)

    return svg(draw, height=1.2 + 0.34 * len(rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
