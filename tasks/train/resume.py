"""What a run goes on from: decided once, before any worker starts, and never in silence."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from tasks.train.checkpoints import Checkpoints, held_identity
from tasks.train.identity import Identity, changed_names, differences
from tasks.train.run_spec import Across, Fresh, Require, Resume

LOG = logging.getLogger("tandem.train")


def settle(resume: Resume, checkpoints: Checkpoints) -> None:
    """Bring a run's folder into the state from which its workers begin.

    A run's folder is named by its identity, so other data, another spec or other code never find
    these checkpoints. What lies beside it, unfinished, is told field by field.

    Args:
        resume: what the config asks for.
        checkpoints: of the run; its folder stands among those of the other runs.

    Raises:
        ValueError: the run would start at step 0 and must not, or no other run fits; the message
            names the fields that differ.
    """
    steps = checkpoints.steps()
    if steps or any(checkpoints.folder.glob("damaged-step-*")):
        if isinstance(resume, Fresh):
            checkpoints.put_all_aside()
            _tell(
                checkpoints,
                "fresh",
                f"starts anew as train.resume.kind=fresh asks; what was saved up to step "
                f"{steps[-1] if steps else 0} is put aside in {checkpoints.folder}",
            )
        return
    others = _others(checkpoints.folder)
    if isinstance(resume, Require):
        raise ValueError(
            "train.resume.kind=require needs a checkpoint of this very run, and "
            f"{checkpoints.folder} holds none. {_compared(others, checkpoints.identity)} "
            "Restore these values, or set train.resume.kind to auto to start at step 0."
        )
    if isinstance(resume, Across):
        _adopt(resume, checkpoints, others)
        return
    for other, held in others.items():
        changed = "; ".join(differences(held, checkpoints.identity))
        _tell(
            checkpoints,
            "new_run",
            f"starts a new run; {other} holds checkpoints of another one, which differs in "
            f"{changed}",
        )


def _adopt(resume: Across, checkpoints: Checkpoints, others: dict[Path, Identity]) -> None:
    """Copy the newest checkpoint of a run that differs where it may, under this run's identity."""
    fitting = {
        other: held
        for other, held in others.items()
        if all(_named(name, resume.fields) for name in changed_names(held, checkpoints.identity))
    }
    if not fitting:
        raise ValueError(
            f"train.resume.fields={list(resume.fields)} must name everything in which the run to "
            f"go on from differs. {_compared(others, checkpoints.identity)} Add these names, or "
            "set train.resume.kind to auto to start at step 0."
        )
    sources = [
        Checkpoints(other, held, checkpoints.keep, checkpoints.events)
        for other, held in fitting.items()
    ]
    source = max(sources, key=lambda each: each.steps()[-1])
    found = source.newest()
    assert found is not None, "its manifest was read a moment ago"
    manifest = found.manifest
    checkpoints.save(
        found.state,
        step=manifest.step,
        samples=manifest.samples,
        backend=manifest.backend,
        workers=manifest.workers,
        ledger=manifest.ledger.model_copy(update={"ended": None}),
        validation_loss=manifest.validation_loss,
    )
    changed = "; ".join(differences(source.identity, checkpoints.identity))
    _tell(
        checkpoints,
        "adopted",
        f"goes on from step {manifest.step} of {source.folder} as train.resume.kind=across asks; "
        f"that run differs in {changed}",
    )


def _others(folder: Path) -> dict[Path, Identity]:
    """The other runs that left checkpoints, by their folders."""
    found = {}
    for other in sorted(folder.parent.iterdir()):
        held = held_identity(other) if other != folder and other.is_dir() else None
        if held is not None:
            found[other] = held
    return found


def _compared(others: dict[Path, Identity], identity: Identity) -> str:
    if not others:
        return "No other run left a checkpoint either."
    told = (
        f"{other} differs in {'; '.join(differences(held, identity))}"
        for other, held in sorted(
            others.items(), key=lambda item: len(changed_names(item[1], identity))
        )
    )
    return ". ".join(told) + "."


def _named(name: str, fields: Iterable[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _tell(checkpoints: Checkpoints, event: str, message: str) -> None:
    LOG.warning(message)
    checkpoints.events.write(event, message)
