"""`training.html`: how a run went, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from tasks import page
from tasks.artifacts import TrainingReport
from tasks.figures import INK, svg
from tasks.train.curves import CurveRow
from tasks.train.speed import spelled

BLUE, ORANGE, RED = "#2563eb", "#d97706", "#dc2626"
MOST_EVENTS = 200
# What every run does is no mark in its curves.
EXPECTED = ("started", "finished", "profiled", "new_run")


@dataclass(frozen=True)
class Line:
    """One curve of a figure; rows where it was not measured are left out."""

    label: str
    color: str
    value: Callable[[CurveRow], float | None]


@dataclass(frozen=True)
class Figure:
    """What is drawn over the steps."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    logarithmic: bool = False


FIGURES = (
    Figure(
        "Loss",
        "nats per target",
        (
            Line("training", BLUE, lambda row: row.loss),
            Line("validation", INK, lambda row: row.validation_loss),
        ),
    ),
    Figure("Learning rate", "", (Line("rate", BLUE, lambda row: row.rate),)),
    Figure(
        "Gradient norm",
        "before clipping",
        (Line("norm", BLUE, lambda row: row.gradient_norm),),
        logarithmic=True,
    ),
    Figure("Speed", "positions/s", (Line("speed", BLUE, lambda row: row.tokens_per_s),)),
    Figure(
        "Utilisation",
        "share",
        (
            Line("model FLOPs", BLUE, lambda row: row.mfu),
            Line("waiting for data", ORANGE, lambda row: row.data_wait),
        ),
    ),
    Figure(
        "Experts",
        "load over the mean, share",
        (
            Line("imbalance", BLUE, lambda row: row.expert_imbalance),
            Line("dropped", ORANGE, lambda row: row.expert_dropped),
        ),
    ),
)


def write_training_page(
    path: Path,
    *,
    report: TrainingReport,
    curve: Sequence[CurveRow],
    events: Sequence[dict[str, Any]],
) -> None:
    """Write the page; equal arguments give equal bytes.

    Args:
        curve: at least one row.
        events: as `Events.read` gives them, the oldest first; those worth a person's attention
            are marked by their number at their step.
    """
    last_step = curve[-1].step
    numbered = list(enumerate(events, start=1))[-MOST_EVENTS:]
    marks = {
        number: event["step"]
        for number, event in numbered
        # An earlier attempt may have come further than the one that finished.
        if event["event"] not in EXPECTED and event.get("step", last_step + 1) <= last_step
    }
    drawn = (
        part
        for figure in FIGURES
        if any(line.value(row) is not None for line in figure.lines for row in curve)
        for part in (
            f"<h2>{figure.title}</h2>",
            page.figure(_draw(figure, curve, marks), f"{figure.title} over the steps"),
        )
    )
    told = [
        (str(number), event["time"], event["event"], event["message"]) for number, event in numbered
    ]
    measured = [(name, str(value)) for name, value in report.model_dump().items()]
    body = (
        "<h1>Training</h1>",
        f"<p>{escape(_headline(report))}</p>",
        *drawn,
        "<h2>What happened</h2>",
        page.table(("", "time", "event", "message"), told),
        "<h2>The run</h2>",
        page.table(("figure", "value"), measured),
    )
    page.write_page(path, title="Training", body=body)


def _headline(report: TrainingReport) -> str:
    return (
        f"{report.steps:,} steps of a model with {report.parameters:,} parameters on "
        f"{report.tokens:,} positions in {spelled(report.seconds)} with {report.backend}: "
        f"validation loss {report.validation_loss:.4f} nats, {report.tokens_per_s:,.0f} positions "
        "a second."
    )


def _draw(figure: Figure, curve: Sequence[CurveRow], marks: dict[int, int]) -> str:
    def draw(axes: Axes) -> None:
        for line in figure.lines:
            points = [(row.step, y) for row in curve if (y := line.value(row)) is not None]
            # Validations are few: they show as dots, so that a single one is seen.
            marker = "o" if len(points) <= 40 else ""
            axes.plot(
                [step for step, _ in points],
                [y for _, y in points],
                color=line.color,
                linewidth=1.4,
                marker=marker,
                markersize=3.5,
                label=line.label,
            )
        if figure.logarithmic and axes.dataLim.y1 > 0:
            axes.set_yscale("log")
        axes.set_xlim(0, curve[-1].step * 1.01)
        for number, step in marks.items():
            axes.axvline(step, color=RED, linewidth=1, linestyle="--")
            axes.text(
                step, 1, f" {number}", color=RED, va="top", transform=axes.get_xaxis_transform()
            )
        axes.set_xlabel("step")
        axes.set_ylabel(figure.unit)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)

    return svg(draw, height=2.8)
