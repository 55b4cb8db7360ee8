"""What a params file asks of each step: rate, decay and dropout, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.curves import share, warmup_steps
from models.spec import ConstantCurve
from optim.schedule import decay_share, rate
from tasks.evaluate.plots import COLORS
from tasks.figures import INK, NO_METADATA, QUIET, STYLE
from tasks.params import Params

FORMATS = (".svg", ".png")
# More steps than this are drawn as so many, spread evenly.
MOST_STEPS = 4000
DOTS_PER_INCH = 160

Row = dict[str, float]


def at_steps(params: Params, steps: Sequence[int]) -> list[Row]:
    """What moves in a run, at some of its steps.

    Returns:
        A row for each step: `step`, `rate`, and where they change over the run `decay` (of the
        weights that decay by role) and `dropout` (what multiplies its shares).
    """
    total, optim, strength = params.train.steps, params.optim, params.model.dropout.strength
    rows = []
    for step in steps:
        row: Row = {"step": step, "rate": rate(optim.schedule, step=step, total_steps=total)}
        if optim.decay_schedule is not None:
            held = decay_share(optim.decay_schedule, step=step, total_steps=total)
            row["decay"] = optim.rule.decay * held
        if strength != ConstantCurve():
            row["dropout"] = share(strength, step=step, total_steps=total)
        rows.append(row)
    return rows


def landmarks(params: Params) -> list[Row]:
    """The rows of the first step, the end of each warm-up, the quarters and the last step."""
    total = params.train.steps
    curves = (
        params.optim.schedule.curve,
        params.optim.decay_schedule,
        params.model.dropout.strength,
    )
    warm = {warmup_steps(curve) - 1 for curve in curves if curve is not None}
    quarters = {total * part // 4 - 1 for part in (1, 2, 3, 4)}
    return at_steps(params, sorted(step for step in warm | quarters | {0} if step >= 0))


def plot(params: Params, path: Path) -> None:
    """Draw a panel for each thing that moves; the name's ending says the format.

    Raises:
        ValueError: the name ends in neither .svg nor .png.
    """
    if path.suffix not in FORMATS:
        raise ValueError(
            f"a plot is written as {' or '.join(FORMATS)}; got {path.name}. "
            f"Try {path.with_suffix(FORMATS[0]).name}."
        )
    total = params.train.steps
    drawn = min(total, MOST_STEPS)
    rows = at_steps(params, [(total - 1) * n // max(drawn - 1, 1) for n in range(drawn)])
    panels = [name for name in rows[0] if name != "step"]
    # A picture is pasted anywhere; the SVG takes the colour of its page.
    facecolor = "white" if path.suffix == ".png" else "none"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.6 + 2.4 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
        for name, axes in zip(panels, grid[:, 0], strict=True):
            _draw(axes, rows, name)
        grid[-1, 0].set_xlabel("step")
        figure.savefig(
            path,
            format=path.suffix[1:],
            dpi=DOTS_PER_INCH,
            facecolor=facecolor,
            metadata=NO_METADATA if path.suffix == ".svg" else {"Software": None},
        )


def _draw(axes: Axes, rows: Sequence[Mapping[str, float]], name: str) -> None:
    values = [row[name] for row in rows]
    axes.plot([row["step"] for row in rows], values, color=COLORS["challenger"], linewidth=1.6)
    axes.set_ylim(0, 1.08 * max(values) or 1)
    axes.set_ylabel(name)
    axes.annotate(
        f"{values[-1]:.3g}", (rows[-1]["step"], values[-1]), color=INK, ha="right", va="bottom"
    )
    axes.axhline(max(values), color=QUIET, linewidth=0.7, linestyle="dotted")
