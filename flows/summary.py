"""What a run came to: one record, shown in the terminal, in the Prefect UI and in a file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from models.record import Record
from models.spec import Spec
from models.store import MANIFEST, ModelManifest
from tasks.artifacts import DataManifest, Evaluation, Rollout, TrainingReport, Verdict
from tasks.places import Places

UNITS = {
    "bits_per_byte": "bits per byte",
    "nats_per_image": "nats per image",
    "nats_per_sample": "nats per sample",
}


class StageLine(Spec):
    """How one stage was brought up to date."""

    name: str
    how: str
    seconds: float


class Sample(Spec):
    """One answer of the endpoint, obtained over HTTP."""

    question: str
    answer: str
    version: str = Field(description="digest in the answer's x-tandem-model header")


class Summary(Record):
    """A release from the data to the answer: `.tandem/summary.json`."""

    stages: tuple[StageLine, ...]
    data: DataManifest
    data_digest: str
    model_digest: str
    training: TrainingReport
    evaluation: Evaluation
    verdict: Verdict
    version: str = Field(description="registry digest of this model")
    version_number: int
    champion: str | None = Field(description="registry digest of the champion after the run")
    rollout: Rollout | None = Field(description="None where the gate did not promote")
    endpoint: str | None
    sample: Sample | None
    prefect: str | None = Field(description="URL of this run in the Prefect UI")
    report: str = Field(description="the HTML report")

    @property
    def released(self) -> bool:
        """Whether this model answers all requests now."""
        rolled = self.rollout
        return rolled is not None and (rolled.outcome, rolled.version) == ("RELEASED", self.version)


def measured(places: Places) -> tuple[DataManifest, ModelManifest, TrainingReport]:
    """What the stages up to the model left behind."""
    return (
        DataManifest.read(places.data / MANIFEST),
        ModelManifest.read(places.model / MANIFEST),
        TrainingReport.read(places.training),
    )


def judged(places: Places) -> tuple[Evaluation, Verdict]:
    """What the stages after the model left behind."""
    return Evaluation.read(places.evaluation / "evaluation.json"), Verdict.read(places.verdict)


def scores(evaluation: Evaluation) -> list[dict[str, str | float]]:
    """A row for each candidate, the best first."""
    rows: list[dict[str, str | float]] = []
    for name, score in sorted(evaluation.scores.items(), key=lambda item: item[1]):
        row: dict[str, str | float] = {
            "candidate": name,
            UNITS[evaluation.unit]: round(score, 4),
            "challenger against it": _share(evaluation.scores["challenger"], score),
        }
        if evaluation.accuracy is not None:
            row["accuracy"] = round(evaluation.accuracy[name], 4)
        rows.append(row)
    return rows


def card(summary: Summary) -> str:
    """The model card, as markdown."""
    data, training = summary.data, summary.training
    lines = [
        f"# Version {summary.version_number} · `{summary.version[:12]}`",
        "",
        f"Trained on {data.source} with {training.backend}: {training.parameters:,} parameters, "
        f"{training.tokens:,} positions in {training.seconds:.0f} s.",
        "",
        "| candidate | " + UNITS[summary.evaluation.unit] + " |",
        "|---|---|",
        *(f"| {name} | {score:.4f} |" for name, score in sorted(summary.evaluation.scores.items())),
        "",
        f"**Gate: {summary.verdict.outcome}** at confidence {summary.verdict.confidence}.",
        "",
        *(f"- {reason}" for reason in summary.verdict.reasons),
        "",
        "| what | digest |",
        "|---|---|",
        f"| version | `{summary.version}` |",
        f"| model | `{summary.model_digest}` |",
        f"| data | `{summary.data_digest}` |",
        f"| snapshot | `{data.snapshot}` |",
        "",
        f"Full line back to the data: `tandem registry lineage {summary.version[:12]}`",
    ]
    return "\n".join(lines)


def show(summary: Summary, console: Console, *, root: Path) -> None:
    """Print a summary for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    data, training, verdict = summary.data, summary.training, summary.verdict
    splits = ", ".join(f"{name} {split.documents:,}" for name, split in data.splits.items())
    table.add_row("data", f"{data.source} ({splits} documents)")
    table.add_row("", f"[dim]sha256 {summary.data_digest}")
    table.add_row("model", f"{training.parameters:,} parameters, trained with {training.backend}")
    table.add_row(
        "training",
        f"{training.steps:,} steps in {training.seconds:.0f} s, "
        f"{training.tokens_per_s:,.0f} positions/s, loss {training.train_loss:.3f}, "
        f"validation {training.validation_loss:.3f} nats",
    )
    for row in scores(summary.evaluation):
        figures = ", ".join(f"{value} {name}" for name, value in row.items() if name != "candidate")
        table.add_row(f"  {row['candidate']}", figures)
    colour = {"PROMOTE": "green", "REJECT": "red", "INCONCLUSIVE": "yellow"}[verdict.outcome]
    table.add_row("gate", f"[{colour}]{verdict.outcome}[/]")
    for reason in verdict.reasons:
        table.add_row("", reason)
    table.add_row("version", f"v{summary.version_number} {summary.version}")
    if summary.rollout is not None:
        table.add_row("rollout", f"{summary.rollout.outcome}: {summary.rollout.reason}")
    if summary.endpoint is not None:
        table.add_row("endpoint", summary.endpoint)
    if summary.sample is not None:
        table.add_row("asked", repr(summary.sample.question))
        table.add_row("answered", f"{summary.sample.answer!r}")
        table.add_row("", f"[dim]x-tandem-model {summary.sample.version}")
    table.add_row("report", summary.report)
    if summary.prefect is not None:
        table.add_row("Prefect", summary.prefect)
    table.add_row("API key", str(root / ".tandem" / "keys" / "local_api_key"))
    if summary.released:
        title = "released"
    elif summary.champion is not None:
        title = f"not released; {summary.champion[:12]} goes on answering"
    else:
        title = "not released; nothing serves"
    console.print(Panel(table, title=f"[bold]{title}[/]", border_style=colour, expand=False))


def _share(challenger: float, other: float) -> str:
    return f"{challenger / other - 1:+.1%}" if other else "n/a"
