"""Figures of the report, as SVG text."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tasks.evaluate.curves import Curves
from tasks.evaluate.table import UNIT_NATS, ScoreTable, Unit
from tasks.figures import INK, QUIET, short, svg

COLORS = {"challenger": "#2563eb", "champion": "#d97706", "baseline": "#94a3b8"}
# More marks than this are drawn as one picture inside the SVG.
MOST_MARKS = 2000


def candidates_figure(table: ScoreTable, unit: Unit) -> str:
    """One bar for each candidate."""

    def draw(axes: Axes) -> None:
        names = list(table.loss)
        scores = [table.score(name) / UNIT_NATS[unit] for name in names]
        axes.barh(names, scores, color=[COLORS[name] for name in names], height=0.6)
        for row, score in enumerate(scores):
            axes.text(score, row, f" {score:.4f}", va="center", color=INK)
        axes.set_xlim(0, max(scores) * 1.15 or 1)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label(unit))

    return svg(draw, height=0.9 + 0.45 * len(table.loss))


def slices_figure(table: ScoreTable, unit: Unit) -> str:
    """A group of bars for each slice."""
    slices = table.by_slice()

    def draw(axes: Axes) -> None:
        names = list(table.loss)
        rows = np.arange(len(slices))
        height = 0.8 / len(names)
        for number, name in enumerate(names):
            scores = [one.loss[name] / one.weight / UNIT_NATS[unit] for one in slices.values()]
            offset = (number - (len(names) - 1) / 2) * height
            axes.barh(rows + offset, scores, height=height * 0.9, color=COLORS[name], label=name)
        axes.set_yticks(rows, [short(name) for name in slices])
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label(unit))
        _legend(axes, len(names))

    return svg(draw, height=1.2 + 0.18 * len(slices) * (len(table.loss) + 0.6))


def curves_figure(curves: Curves) -> str:
    """Training and validation loss over the steps."""

    def draw(axes: Axes) -> None:
        steps, losses = zip(*curves.train) if curves.train else ((), ())
        axes.plot(steps, losses, color=COLORS["challenger"], linewidth=1.4, label="training")
        if curves.validation:
            steps, losses = zip(*curves.validation)
            axes.plot(
                steps, losses, color=INK, linewidth=1.4, marker="o", markersize=4,
                label="validation",
            )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("nats per target")
        _legend(axes, 2)

    return svg(draw, height=3.4)


def pairs_figure(table: ScoreTable, opponent: str, unit: Unit) -> str:
    """Each document's score under the challenger against its score under an opponent."""
    challenger, other = _each(table, "challenger", unit), _each(table, opponent, unit)

    def draw(axes: Axes) -> None:
        low = float(min(challenger.min(), other.min()))
        high = float(max(challenger.max(), other.max()))
        area = 8 + 60 * table.weight / table.weight.max()
        axes.plot([low, high], [low, high], color=QUIET, linewidth=1)
        axes.scatter(
            other, challenger, s=area, color=COLORS["challenger"], alpha=0.45, linewidth=0,
            rasterized=len(other) > MOST_MARKS,
        )  # fmt: skip
        axes.set_xlabel(f"{opponent}, {label(unit)}")
        axes.set_ylabel(f"challenger, {label(unit)}")

    return svg(draw, height=4.2, width=4.6)


def differences_figure(table: ScoreTable, opponent: str, unit: Unit) -> str:
    """How many documents the challenger wins against an opponent, and by how much."""
    difference = _each(table, "challenger", unit) - _each(table, opponent, unit)

    def draw(axes: Axes) -> None:
        bins = min(40, max(8, round(len(difference) ** 0.5) * 2))
        # Zero is an edge, so that no bar mixes wins and losses.
        width = max(float(np.ptp(difference)), 1e-9) / bins
        first, last = np.floor(difference.min() / width), np.floor(difference.max() / width)
        edges = width * np.arange(first, last + 2)
        counts, _ = np.histogram(difference, bins=edges)
        middles = (edges[1:] + edges[:-1]) / 2
        colors = [COLORS["challenger" if middle < 0 else "baseline"] for middle in middles]
        axes.bar(middles, counts, width=0.92 * width, color=colors)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel(f"challenger - {opponent}, {label(unit)}; left of zero is better")
        axes.set_ylabel("documents")

    return svg(draw, height=4.2, width=4.6)


def label(unit: Unit) -> str:
    """A unit for people."""
    return unit.replace("_", " ")


def _each(table: ScoreTable, candidate: str, unit: Unit) -> NDArray[np.float64]:
    return table.loss[candidate] / table.weight / UNIT_NATS[unit]


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)
