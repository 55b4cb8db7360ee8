"""The data report as a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tasks.figures import INK, short, svg
from tasks.page import figure, table, write_page

COLORS = {"train": "#2563eb", "validation": "#d97706", "test": "#94a3b8"}
# More classes than this are pooled in the figure.
MOST_CLASSES = 40
REST = "other classes"


def write_data_page(path: Path, report: dict[str, Any]) -> None:
    """Write the page of what `report.json` holds; equal reports give equal bytes."""
    splits, counts = report["splits"], report["documents"]
    dropped = [[kind, name] for kind, names in report["dropped"].items() for name in names]
    body = [
        "<h1>Data</h1>",
        f"<p>{escape(_headline(report))}</p>",
        table(["documents", "number"], [[name, count] for name, count in counts.items()]),
        "<h2>What was read</h2>",
        table(["from", "what"], [[str(key), str(what)] for key, what in report["schema"].items()]),
        "<h2>Splits</h2>",
        table(
            ["split", "documents", *(["empty places"] if report["waste"] else [])],
            [
                [split, held["documents"], *([report["waste"][split]] if report["waste"] else [])]
                for split, held in splits.items()
            ],
        ),
        figure(
            _bars({split: _lengths(held) for split, held in splits.items()}, "bytes, at most"),
            "documents of each length",
        ),
    ]
    if any(held["classes"] for held in splits.values()):
        body += [
            "<h2>Classes</h2>",
            figure(
                _bars(_pooled({split: held["classes"] for split, held in splits.items()}), "class"),
                "documents of each class",
            ),
        ]
    body += ["<h2>Leakage</h2>", f"<p>{escape(LEAKAGE)}</p>", _leaks(report)]
    if report["parts"]:
        rows = [[part["weight"], *part["samples"].values()] for part in report["parts"]]
        body += ["<h2>Mixture</h2>", table(["weight", *splits], rows)]
    if dropped:
        body += ["<h2>Dropped</h2>", table(["why", "document"], dropped)]
    if report["files_skipped"]:
        skipped = [[why, count] for why, count in report["files_skipped"].items()]
        body += ["<h2>Files left out</h2>", table(["why", "files"], skipped)]
    write_page(path, title=f"Data of {report['source']}", body=body)


LEAKAGE = (
    "Documents with the same content are dropped before they are dealt, so none can be in two "
    "splits. Alike are those that differ in case and white space only."
)


def _headline(report: dict[str, Any]) -> str:
    counts = report["documents"]
    return (
        f"{report['source']}: {counts['kept']:,} of {counts['found']:,} documents are kept; "
        f"{counts['empty']:,} are empty and {counts['duplicates']:,} say nothing new."
    )


def _leaks(report: dict[str, Any]) -> str:
    alike = report["alike_in_both_splits"]
    rows = [[pair, same, alike[pair]] for pair, same in report["in_both_splits"].items()]
    return table(["splits", "same documents", "alike"], rows)


def _lengths(held: dict[str, Any]) -> dict[str, int]:
    return {f"{int(size):,}": count for size, count in held["bytes_at_most"].items()}


def _pooled(splits: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The classes of most documents, and the others as one."""
    total: dict[str, int] = {}
    for held in splits.values():
        for name, count in held.items():
            total[name] = total.get(name, 0) + count
    kept = set(sorted(total, key=lambda name: (-total[name], name))[:MOST_CLASSES])
    pooled: dict[str, dict[str, int]] = {split: {} for split in splits}
    for split, held in splits.items():
        for name, count in held.items():
            shown = name if name in kept else REST
            pooled[split][shown] = pooled[split].get(shown, 0) + count
    return pooled


def _bars(splits: dict[str, dict[str, int]], axis: str) -> str:
    """A group of bars for each name: the share of each split's documents."""
    names = list(dict.fromkeys(name for held in splits.values() for name in held))
    if axis != "class":
        names.sort(key=lambda name: int(name.replace(",", "")))

    def draw(axes: Axes) -> None:
        height = 0.8 / len(splits)
        for number, (split, held) in enumerate(splits.items()):
            rows = np.arange(len(names)) + (number - (len(splits) - 1) / 2) * height
            counts: Sequence[int] = [held.get(name, 0) for name in names]
            shares = [count / max(1, sum(counts)) for count in counts]
            label = f"{split} ({sum(counts):,})"
            axes.barh(rows, shares, height=0.9 * height, color=COLORS[split], label=label)
        axes.set_yticks(np.arange(len(names)), [short(name) for name in names], color=INK)
        axes.set_ylabel(axis)
        axes.set_xlabel("share of the split's documents")
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(splits), borderaxespad=0.2)

    return svg(draw, height=1.4 + 0.42 * len(names))
