"""`report.html`: what was measured, for people."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from tasks.artifacts import DataManifest
from tasks.evaluate import plots
from tasks.evaluate.curves import Curves
from tasks.evaluate.spec import Baseline
from tasks.evaluate.table import UNIT_NATS, ScoreTable, Unit
from tasks.page import figure, write_page
from tasks.page import table as table_of

HARDEST = 10
# What a slice is weighed by.
COUNTED: dict[Unit, str] = {
    "bits_per_byte": "bytes",
    "nats_per_image": "images",
    "nats_per_sample": "samples",
}


def write_report(
    path: Path,
    *,
    table: ScoreTable,
    unit: Unit,
    curves: Curves,
    model: str,
    data: DataManifest,
    champion: str | None,
    baseline: Baseline,
) -> None:
    """Write the page; equal arguments give equal bytes.

    Args:
        model: digest of the challenger's ModelManifest.
        champion: registry digest of the champion, if there is one.
    """
    opponents = [name for name in ("champion", "baseline") if name in table.loss]
    pairs = (
        f"<h2>Document by document, against the {escape(name)}</h2>"
        "<p>Every mark is a test document, larger for more text; below the line the challenger is "
        'better.</p><div class="pair">'
        + figure(plots.pairs_figure(table, name, unit), f"challenger against {name}")
        + figure(plots.differences_figure(table, name, unit), f"differences to the {name}")
        + "</div>"
        for name in opponents
    )
    body = (
        "<h1>Evaluation</h1>",
        f"<p>{_headline(table, unit, opponents)}</p>",
        _cards(table, unit),
        figure(plots.candidates_figure(table, unit), "score of each candidate"),
        "<h2>Slices</h2>",
        figure(plots.slices_figure(table, unit), "score of each candidate on each slice"),
        _slices(table, unit),
        "<h2>Training</h2>",
        figure(plots.curves_figure(curves), "training and validation loss"),
        *pairs,
        f"<h2>Where the challenger does worst against the {escape(opponents[0])}</h2>",
        _hardest(table, unit, opponents[0]),
        "<h2>What was measured</h2>",
        f"<p>{_method(unit)}</p>",
        _provenance(table, model=model, data=data, champion=champion, baseline=baseline),
    )
    write_page(path, title=f"Evaluation of {model[:12]}", body=body)


def _headline(table: ScoreTable, unit: Unit, opponents: Sequence[str]) -> str:
    own = table.score("challenger") / UNIT_NATS[unit]
    parts = []
    for name in opponents:
        other = table.score(name) / UNIT_NATS[unit]
        if own == other:
            parts.append(f"the same as the {name}")
        else:
            share = f"{abs(own / other - 1):.1%} " if other else ""
            parts.append(
                f"{share}{'less' if own < other else 'more'} than the {name} ({other:.4f})"
            )
    return escape(
        f"On {len(table.documents)} held-out documents the challenger needs {own:.4f} "
        f"{plots.label(unit)}: {' and '.join(parts)}."
    )


def _cards(table: ScoreTable, unit: Unit) -> str:
    accuracies = table.accuracies()
    cards = []
    for name in table.loss:
        right = "" if accuracies is None else f", {accuracies[name]:.1%} right"
        cards.append(
            f'<div class="card" style="--color: {plots.COLORS[name]}">{escape(name)}'
            f"<b>{table.score(name) / UNIT_NATS[unit]:.4f}</b>"
            f'<span class="quiet">{escape(plots.label(unit) + right)}</span></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _slices(table: ScoreTable, unit: Unit) -> str:
    rows = []
    for name, one in table.by_slice().items():
        figures: list[str | float] = [name, one.documents, round(one.weight)]
        figures += [one.loss[key] / one.weight / UNIT_NATS[unit] for key in table.loss]
        figures += [one.correct[key] / one.weight for key in table.loss if one.correct]
        rows.append(figures)
    heads = ["slice", "documents", COUNTED[unit], *table.loss]
    heads += [f"{key}, right" for key in table.loss if table.correct is not None]
    return table_of(heads, rows)


def _hardest(table: ScoreTable, unit: Unit, opponent: str) -> str:
    own = table.loss["challenger"] / table.weight / UNIT_NATS[unit]
    other = table.loss[opponent] / table.weight / UNIT_NATS[unit]
    worst = np.argsort(other - own, kind="stable")[:HARDEST]
    rows: list[list[str | float]] = [
        [table.names[i], table.slices[i], float(own[i]), float(other[i]), float(own[i] - other[i])]
        for i in worst
    ]
    return table_of(["document", "slice", "challenger", opponent, "difference"], rows)


def _method(unit: Unit) -> str:
    if unit == "bits_per_byte":
        return (
            "Every candidate predicts each document as a whole: all of its text and then its end. "
            "The summed loss is divided by the bytes of the text, which are the same for all, so "
            "candidates with different tokenizers can be compared. Windows of the context do not "
            "overlap; a document starts after the end mark."
        )
    return (
        f"Every candidate predicts the class of each {COUNTED[unit].removesuffix('s')}. The score "
        "is the mean of the negative log-probability of the right class."
    )


def _provenance(
    table: ScoreTable, *, model: str, data: DataManifest, champion: str | None, baseline: Baseline
) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in baseline.model_dump().items())
    rows: list[tuple[str, str]] = [
        ("challenger", model),
        ("champion", champion or "none yet"),
        ("baseline", f"{settings}; fitted on the training split"),
        ("data", data.digest),
        ("source", data.source),
        ("test split", f"{len(table.documents)} of {data.splits['test'].documents} documents"),
    ]
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>"
        for name, value in rows
    )
    return f'<div class="wide"><table>{cells}</table></div>'
