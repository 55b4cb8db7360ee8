"""Figures of reports, as SVG text. Equal numbers give equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, QUIET = "#0f172a", "#64748b"
NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tandem",
    # Text stays text: small, searchable, and in the reader's font.
    "svg.fonttype": "none",
    # A dollar sign in somebody's file name is no formula.
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": "#cbd5e1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def short(name: str, longest: int = 28) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def svg(draw: Callable[[Axes], None], *, height: float, width: float = 9.2) -> str:
    """Draw on new axes, sizes in inches, and give the `<svg>` element alone."""
    with matplotlib.rc_context(STYLE):
        # Not through pyplot, which keeps figures and picks a window system.
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=NO_METADATA)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Ids of groups are counters that would repeat in every figure of one page; nothing refers
    # to them.
    return re.sub(r'<g id="[^"]*"', "<g", drawn)
