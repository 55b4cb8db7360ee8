"""The verb: prepared data in, a finished model out, however often it is killed in between."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from models.record import digest_of, verify_files
from models.spec import ModelSpec, TokenInputs
from models.store import TOKENIZER, save_model
from models.weights import parameter_count
from optim.spec import OptimSpec
from optim.state import judged
from tasks.artifacts import DataManifest, TrainingReport
from tasks.folder import replaced
from tasks.lease import lease
from tasks.prepare.dataset import MANIFEST
from tasks.progress import Progress, silent
from tasks.train.augment_spec import AugmentSpec
from tasks.train.checkpoints import Checkpoint
from tasks.train.curves import write_curves
from tasks.train.group import run_group
from tasks.train.identity import identity_digest, run_identity
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.report import write_training_page
from tasks.train.resume import settle
from tasks.train.spec import TrainSpec
from tasks.train.worker import Job, is_finished

# What a model of each kind of data reads.
READ_BY = {"tokens": "tokens", "text_classes": "tokens", "images": "patches", "frames": "frames"}
LOG = logging.getLogger("tandem.train")


def train(
    model: ModelSpec,
    optim: OptimSpec,
    train: TrainSpec,
    augment: AugmentSpec = AugmentSpec(),
    regularise: RegulariseSpec = RegulariseSpec(),
    *,
    data: Path,
    out: Path,
    report: Path,
    curves: Path,
    page: Path,
    scratch: Path,
    progress: Progress = silent,
) -> TrainingReport:
    """Train a model, going on from the run's newest checkpoint if it was interrupted.

    Args:
        data: folder of the prepared data set.
        out: folder for the finished model; replaced as a whole.
        report: file for the TrainingReport.
        curves: CSV file for the curve.
        page: HTML file for people: curves and what happened.
        scratch: folder for step checkpoints, one folder inside for each run; on several machines
            it is on a shared file system.

    Raises:
        ValueError: model and data do not fit, no checkpoint of the run is readable, or the numbers
            blew up.
        ChildProcessError: workers died more often than `train.restarts`.
    """
    manifest = DataManifest.read(data / MANIFEST)
    check_fit(model, manifest)
    identity = run_identity(model, optim, train, augment, regularise, data=manifest.digest)
    folder = scratch.resolve() / identity_digest(identity)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(
        model=model,
        optim=optim,
        train=train,
        augment=augment,
        regularise=regularise,
        data=str(data.resolve()),
        folder=str(folder),
        identity=identity,
    )
    with lease(folder / "lock", on_wait=_tell_of_holder):
        settle(train.resume, job.checkpoints)
        run_group(job, progress=progress)
        last = job.checkpoints.newest()
        if last is None or not is_finished(last, train):
            raise ValueError(
                f"the last checkpoint in {folder} is damaged; run the same command again to "
                "train its steps once more."
            )
        chosen = (job.checkpoints.best() if train.checkpoint.best else None) or last
        result = _report(job, last, chosen)
        _save(job, chosen, manifest, data=data, out=out)
        curve = last.manifest.ledger.curve
        write_curves(curves, curve)
        write_training_page(page, report=result, curve=curve, events=job.events.read())
        result.write(report)
        # Only now: until here a kill would have cost the run.
        job.checkpoints.remove()
        for attempt in folder.glob("attempt-*"):
            shutil.rmtree(attempt)
        steps = last.manifest.step
        job.events.write("finished", f"finished after {steps} steps", step=steps)
    return result


def check_fit(model: ModelSpec, data: DataManifest) -> None:
    """Hold a model against the data that it is to learn.

    Raises:
        ValueError: they do not fit; the message names the parameter and a value that does.
    """
    inputs = model.inputs
    kind = READ_BY[data.kind]
    if inputs.kind != kind:
        raise ValueError(
            f"model.inputs.kind must be {kind} for a data set of {data.kind}; got {inputs.kind}."
        )
    if inputs.kind == "tokens":
        _check_tokens(inputs, data)
    elif inputs.kind == "frames":
        longest, features = data.shape or (0, 0)
        if inputs.features != features:
            raise ValueError(
                "model.inputs.features must be those of a frame of the data; "
                f"got {inputs.features}. Try features={features}."
            )
        if inputs.context < longest:
            raise ValueError(
                "model.inputs.context must be at least the longest sequence of the data; "
                f"got {inputs.context}. Try context={longest}."
            )
    else:
        shape = (inputs.height, inputs.width, inputs.channels)
        if data.shape != shape:
            raise ValueError(
                "model.inputs.height, width and channels must be those of the images; "
                f"got {shape}, the images have {data.shape}."
            )
    head = "language" if data.kind == "tokens" else "classes"
    if model.head.kind != head:
        raise ValueError(
            f"model.head.kind must be {head} for a data set of {data.kind}; got {model.head.kind}."
        )
    classes = len(data.classes or ())
    if model.head.kind == "classes" and model.head.classes != classes:
        raise ValueError(
            "model.head.classes must be the number of classes of the data; "
            f"got {model.head.classes}. Try classes={classes}."
        )


def _check_tokens(inputs: TokenInputs, data: DataManifest) -> None:
    vocabulary = data.vocabulary or 0
    if inputs.vocabulary < vocabulary:
        raise ValueError(
            "model.inputs.vocabulary must be at least the tokenizer's; "
            f"got {inputs.vocabulary} < {vocabulary}. Try vocabulary={vocabulary}."
        )
    if data.rows is not None and data.rows.length > inputs.context:
        raise ValueError(
            "model.inputs.context must be at least the rows' length; "
            f"got {inputs.context} < {data.rows.length}. Try context={data.rows.length}."
        )
    packed = data.rows is not None and data.rows.several
    if inputs.separator != data.end and (packed or inputs.separator is not None):
        raise ValueError(
            f"model.inputs.separator must be the end mark of the data{'' if packed else ' or null'}"
            f"; got {inputs.separator}. Try separator={data.end}."
        )


def _report(job: Job, last: Checkpoint, chosen: Checkpoint) -> TrainingReport:
    ledger = last.manifest.ledger
    until = chosen.manifest.ledger.curve
    validation = [row.validation_loss for row in until if row.validation_loss is not None]
    return TrainingReport(
        backend=job.train.backend,
        steps=last.manifest.step,
        samples=last.manifest.samples,
        tokens=ledger.tokens,
        parameters=parameter_count(job.model),
        seconds=ledger.seconds,
        tokens_per_s=ledger.tokens / max(ledger.seconds, 1e-9),
        train_loss=ledger.curve[-1].loss,
        validation_loss=validation[-1],
        resumed_from_step=ledger.resumed_from_step,
    )


def _save(job: Job, last: Checkpoint, manifest: DataManifest, *, data: Path, out: Path) -> None:
    tokenizer = tuple(file for file in manifest.files if file.path == TOKENIZER)
    verify_files(data, tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replaced(out) as folder:
        for file in tokenizer:
            shutil.copyfile(data / file.path, folder / file.path)
        save_model(
            folder,
            spec=job.model,
            weights=judged(job.optim, last.state.weights, last.state.slots),
            extra_files=tuple(file.path for file in tokenizer),
            classes=manifest.classes,
            data=manifest.digest,
            training=digest_of(
                {
                    "optim": job.optim.model_dump(mode="json"),
                    "train": job.train.model_dump(mode="json"),
                    "augment": job.augment.model_dump(mode="json"),
                    "regularise": job.regularise.model_dump(mode="json"),
                }
            ),
            backend=job.train.backend,
            steps=last.manifest.step,
        )


def _tell_of_holder(holder: str) -> None:
    LOG.warning("waits: %s trains the same model", holder)
