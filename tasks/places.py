"""Where the pipeline keeps its files, relative to the project's root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """`artifacts/` holds what DVC versions; `.tandem/` holds state that is never versioned."""

    root: Path

    @property
    def snapshot(self) -> Path:
        """Folder: the source as it was read from outside, with `manifest.json`."""
        return self.root / "artifacts" / "snapshot"

    @property
    def data(self) -> Path:
        """Folder: the prepared data set, with `manifest.json`."""
        return self.root / "artifacts" / "data"

    @property
    def model(self) -> Path:
        """Folder: the finished model, with `manifest.json`."""
        return self.root / "artifacts" / "model"

    @property
    def training(self) -> Path:
        """File: the `TrainingReport`."""
        return self.root / "artifacts" / "training.json"

    @property
    def curves(self) -> Path:
        """File: step, tokens, loss, validation_loss, rate, gradient_norm and more as CSV."""
        return self.root / "artifacts" / "curves.csv"

    @property
    def training_page(self) -> Path:
        """File: curves and events of the training, for people."""
        return self.root / "artifacts" / "training.html"

    @property
    def champion(self) -> Path:
        """File: the `Champion` that the challenger has to beat."""
        return self.root / "artifacts" / "champion.json"

    @property
    def evaluation(self) -> Path:
        """Folder: `evaluation.json`, `documents.parquet`, `report.html`."""
        return self.root / "artifacts" / "evaluation"

    @property
    def scores(self) -> Path:
        """File: the headline scores, a DVC metrics file."""
        return self.root / "artifacts" / "scores.json"

    @property
    def verdict(self) -> Path:
        """File: the `Verdict`."""
        return self.root / "artifacts" / "verdict.json"

    @property
    def state(self) -> Path:
        """Folder: registry, keys, scratch checkpoints, leases, logs, running services."""
        return self.root / ".tandem"

    @property
    def scratch(self) -> Path:
        """Folder: step checkpoints, in one folder for each training run's identity."""
        return self.state / "scratch"
