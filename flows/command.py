"""The `tandem` command. Libraries that take seconds to import are imported by what needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows import environment, exchange_command, explain_command, keys_command, registry_command
from flows.forms import PresetName
from flows.outcome import TakenBack
from flows.terminal import err, out, print_record, root
from serving.client import Unreachable
from tasks.params import Params

NOTHING_SERVES = 3

command = typer.Typer(
    name="tandem",
    help="From raw data to a served, signed model; trained in JAX/Flax or PyTorch/DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
command.add_typer(registry_command.command, name="registry")
command.add_typer(keys_command.command, name="keys")
command.add_typer(explain_command.command)
command.add_typer(exchange_command.command)

Preset = Annotated[
    PresetName | None,
    typer.Option(help="Put this overlay of params/ on params.yaml first."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of params.yaml; repeatable."),
]


def main() -> None:
    """Entry point: errors of the user are one line and a non-zero exit code."""
    environment.enter(root())
    try:
        command()
    except (ValueError, OSError, Unreachable, TakenBack) as error:
        # Square brackets of a value must not be read as markup.
        err().print("[red]error:[/]", escape(str(error)))
        sys.exit(1)


@command.command()
def run(preset: Preset = None, set_: Changes = None, reason: str = "release") -> None:
    """Run the whole pipeline and leave the model serving.

    Starts a local Prefect server and Ray if they do not run. Stages whose inputs did not change
    are skipped. If the gate does not promote, the champion before goes on answering; exit code 3
    means that there is none, so that nothing serves.
    """
    from flows.forms import ReleaseRequest
    from flows.summary import show

    request = ReleaseRequest(preset=preset, changes=_changes(set_), reason=reason)
    with _services():
        from flows.release import release

        summary = release(request)
    show(summary, out(), root=root())
    if summary.endpoint is None:
        raise typer.Exit(NOTHING_SERVES)


command.command("release", help="The same as `run`.")(run)


@command.command()
def train(preset: Preset = None, set_: Changes = None) -> None:
    """Bring the model up to date: snapshot, prepare, train."""
    from flows.forms import TrainRequest

    request = TrainRequest(preset=preset, changes=_changes(set_))
    with _services():
        from flows.release import train as train_flow

        outcome = train_flow(request)
    print_record(outcome.training.model_dump(mode="json"), title="training")


@command.command()
def evaluate() -> None:
    """Measure the model against the champion and the baseline, and let the gate judge it."""
    from flows.summary import judged, scores
    from tasks.places import Places

    with _services():
        from flows.release import judge

        judge()
    evaluation, verdict = judged(Places(root()))
    rows = scores(evaluation)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out().print(table)
    out().print(f"gate: {verdict.outcome}", *verdict.reasons, sep="\n  ")


@command.command()
def serve() -> None:
    """Serve what was released, after `tandem stop` or a restart of the machine."""
    from flows import services
    from tasks.rollout import resume

    params = Params.read(root() / "params.yaml")
    ray = services.start_ray(root())
    with services.connected(ray):
        endpoint = resume(
            params.serving,
            params.registry,
            root=root(),
            ready_timeout_s=params.rollout.ready_timeout_s,
        )
    out().print(f"serving at {endpoint.url}")


@command.command()
def rollback(reason: Annotated[str, typer.Option(help="Goes to the audit log.")]) -> None:
    """Withdraw the champion; the one before it answers again."""
    from flows.forms import RollbackRequest

    with _services():
        from flows.rollback import rollback as rollback_flow

        outcome = rollback_flow(RollbackRequest(reason=reason))
    out().print(f"champion: {outcome.champion}\nwithdrawn: {outcome.withdrawn}")


@command.command()
def up() -> None:
    """Start the Prefect server, a worker and the deployments: the UI and the schedule."""
    from flows import deployments, services

    prefect = services.start_prefect(root())
    os.environ["PREFECT_API_URL"] = services.prefect_url(prefect)
    deployments.deploy(root())
    services.start_worker(root(), prefect, pool=deployments.POOL)
    out().print(f"Prefect UI: http://127.0.0.1:{prefect.port}/deployments")


@command.command()
def stop() -> None:
    """End every process that `tandem run`, `up` or `serve` started."""
    from flows import services

    stopped = services.stop(root())
    out().print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@command.command()
def status() -> None:
    """What runs now, and where."""
    from flows import services

    table = Table("service", "pid", "port")
    for name in services.GRACE_S:
        service = services.running(root(), name)
        table.add_row(
            name, *(("-", "-") if service is None else (str(service.pid), str(service.port)))
        )
    out().print(table)


@contextmanager
def _services() -> Iterator[None]:
    """A Prefect server for this process to report to; it stays up afterwards."""
    from flows import services

    Params.read(root() / "params.yaml")
    with err().status("starting the Prefect server"):
        prefect = services.start_prefect(root())
    with err().status("starting Ray"):
        services.start_ray(root())
    os.environ["PREFECT_API_URL"] = services.prefect_url(prefect)
    # The stages speak for themselves on a terminal; the whole log is in the UI.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    yield


def _changes(texts: list[str] | None) -> dict[str, Any]:
    from flows.changes import parse_change

    return dict(parse_change(text) for text in texts or ())
