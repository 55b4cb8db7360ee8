"""How a run went: one row every few steps, and the CSV that DVC plots."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from pydantic import Field

from models.record import write_atomically
from models.spec import Spec


class CurveRow(Spec):
    """One row of `curves.csv`; figures are those of all workers together."""

    step: int = Field(description="optimizer steps done")
    tokens: int = Field(description="positions trained on so far, padding left out")
    loss: float = Field(description="mean over the steps since the last row, nats per target")
    validation_loss: float | None = Field(description="nats per target; None if not measured here")
    objective: float = Field(description="what this step minimised, per target")
    rate: float = Field(description="learning rate of this step")
    gradient_norm: float | None = Field(description="of this step, before clipping")
    expert_imbalance: float | None = Field(
        None, description="busiest expert's load over the mean, the worst layer's; None: no experts"
    )
    expert_dropped: float | None = Field(
        None, description="share of this step's choices that no expert took; None: no experts"
    )
    tokens_per_s: float = Field(description="positions per second of training since the last row")
    mfu: float | None = Field(
        None, description="model FLOPs utilisation since the last row, 0 to 1; None: no peak known"
    )
    data_wait: float | None = Field(
        None, description="share of the time since the last row that rank 0 waited for samples"
    )


def write_curves(path: Path, rows: tuple[CurveRow, ...]) -> None:
    """Write the rows as CSV, atomically; a value that was not measured is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(CurveRow.model_fields), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row.model_dump())
    write_atomically(path, text.getvalue().encode())
