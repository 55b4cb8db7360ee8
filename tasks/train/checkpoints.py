"""Checkpoints: one format for both frameworks, visible only when whole, verified when read.

A checkpoint is a folder `step-00000050/` with safetensors shards (`weights-000-00000.safetensors`,
one series for each part and worker) and `manifest.json`. It is written under a scratch name, synced
and renamed, so that a kill or a power loss at any point leaves the previous one or the new one.
Weights carry the names and shapes of the weight table and slots those of their rule, whichever
framework and however many workers computed or wrote them.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.record import FileDigest, Record, digest_of
from models.spec import Spec
from tasks.folder import replaced
from tasks.train.curves import CurveRow
from tasks.train.engine import EngineState
from tasks.train.events import Events
from tasks.train.identity import Identity, differences
from tasks.train.shards import (
    Arrays,
    Shape,
    Shares,
    bounded,
    check_cover,
    cut_shapes,
    deal,
    join,
    read_shard,
    write_shards,
)

MANIFEST = "manifest.json"
WEIGHTS = "weights"
NAME = re.compile(r"step-(\d{8,})")
# How long a worker that is alive may take longer than another one to write its share.
PATIENCE_S = 600.0
# Values that are looked at together, in the processor's cache.
AT_ONCE = 2**18


class Ledger(Spec):
    """What the loop itself remembers from step to step."""

    seconds: float = Field(0.0, description="time inside the loop so far, killed parts left out")
    curve: tuple[CurveRow, ...] = ()
    losses: tuple[float, ...] = Field((), description="of the steps since the last row")
    tokens: int = Field(0, description="positions trained on so far, padding left out")
    interval_tokens: int = Field(0, description="positions of the steps since the last row")
    interval_s: float = Field(0.0, description="training time of these steps")
    interval_wait_s: float = Field(0.0, description="of it, time that rank 0 waited for samples")
    norms: tuple[float, ...] = Field((), description="of past gradients; `optim.norms` reads them")
    recent: tuple[float, ...] = Field((), description="losses; `train.bad_numbers` reads them")
    loss_scale: float | None = Field(None, description="of the next step")
    loss_scale_steps: int = Field(0, description="steps since it last moved")
    passed_over: int = Field(0, description="batches that bad numbers cost")
    strikes: int = Field(0, description="times that numbers were bad")
    resumed_from_step: int | None = Field(None, description="where the run last went on")
    ended: str | None = Field(None, description="why the run ended before its last step")


class Written(Record):
    """What one worker wrote of a checkpoint."""

    parts: dict[str, tuple[str, ...]] = Field(description="weights or slot -> its shards")
    files: tuple[FileDigest, ...]
    keys: dict[str, tuple[str, ...]] = Field(description="weights or slot -> what is in its shards")
    shapes: dict[str, dict[str, Shape]] = Field(description="of the arrays that were cut")


class CheckpointManifest(Record):
    """`manifest.json` of a checkpoint."""

    format: Literal[2] = 2
    step: int = Field(description="optimizer steps done")
    samples: int = Field(description="samples consumed; the position in the data order")
    identity: Identity = Field(description="what a run must share to go on from here")
    backend: Literal["flax", "torch"] = Field(description="which framework wrote it")
    workers: int
    parts: dict[str, tuple[str, ...]] = Field(description="weights or slot -> its shards")
    files: tuple[FileDigest, ...]
    shapes: dict[str, dict[str, Shape]] = Field(
        description="weights or slot -> shapes of the arrays that lie in several shares"
    )
    validation_loss: float | None = Field(description="at this step; None if not measured here")
    ledger: Ledger
    seal: str = Field(description="SHA-256 of all other fields")

    @classmethod
    def sealed(cls, **fields: Any) -> Self:
        """A manifest with its seal."""
        open_manifest = cls(**fields, seal="")
        return open_manifest.model_copy(update={"seal": open_manifest.expected_seal})

    @property
    def expected_seal(self) -> str:
        """What `seal` must be."""
        return digest_of(self.model_dump(mode="json", exclude={"seal"}))


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    manifest: CheckpointManifest
    state: EngineState


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run. Its workers write together; any process may read.

    Attributes:
        folder: the run's scratch folder.
        identity: of the run that asks.
        keep: newest checkpoints that stay on disk.
        events: where damage is told.
        keep_best: whether the one with the lowest validation loss stays as well.
        patience_s: how long the first worker waits for the others' shares.
    """

    folder: Path
    identity: Identity
    keep: int
    events: Events
    keep_best: bool = False
    patience_s: float = PATIENCE_S

    def save(
        self,
        state: EngineState,
        *,
        step: int,
        samples: int,
        backend: Literal["flax", "torch"],
        workers: int,
        ledger: Ledger,
        validation_loss: float | None = None,
    ) -> None:
        """Write a whole state, durably, then remove checkpoints that are too old.

        Raises:
            FloatingPointError: a value is not finite; nothing is written.
            OSError: the disk refuses; the previous checkpoint is intact.
        """
        check_finite(state)
        self.save_shares(
            deal(parts_of(state), rank=0, workers=1),
            step=step,
            samples=samples,
            backend=backend,
            workers=workers,
            ledger=ledger,
            validation_loss=validation_loss,
        )

    def save_shares(
        self,
        shares: Shares,
        *,
        step: int,
        samples: int,
        backend: Literal["flax", "torch"],
        workers: int,
        ledger: Ledger,
        validation_loss: float | None = None,
        rank: int = 0,
        writers: int = 1,
        abandoned: threading.Event | None = None,
    ) -> None:
        """Write one worker's shares; the first worker waits for the others' and makes all visible.

        Every one of `writers` workers calls this for the same step, from any thread. Together the
        shares hold each value once; they are not held against finiteness.

        Args:
            shares: weights or slot -> this worker's shares.
            workers: that train; told to people.
            rank: of this worker, 0 .. writers - 1.
            abandoned: set by someone who knows that missing shares will not come.

        Raises:
            ValueError: shares are missing or overlap.
            OSError: the disk refuses, or another worker's share does not come. After an error the
                previous checkpoint is intact.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank:
            with replaced(self._share(step, rank)) as scratch:
                _write(scratch, shares, rank=rank).write(scratch / MANIFEST)
            return
        with replaced(self._path(step)) as scratch:
            written = [_write(scratch, shares, rank=0)]
            written += [self._take(step, other, scratch, abandoned) for other in range(1, writers)]
            shapes = _merged(each.shapes for each in written)
            parts = dict.fromkeys(part for each in written for part in each.parts)
            for part in parts:
                keys = (key for each in written for key in each.keys.get(part, ()))
                check_cover(keys, shapes.get(part, {}))
            CheckpointManifest.sealed(
                step=step,
                samples=samples,
                identity=self.identity,
                backend=backend,
                workers=workers,
                parts={
                    part: tuple(file for each in written for file in each.parts.get(part, ()))
                    for part in parts
                },
                files=tuple(file for each in written for file in each.files),
                shapes=shapes,
                validation_loss=validation_loss,
                ledger=ledger,
            ).write(scratch / MANIFEST)
        kept = {*self.steps()[-self.keep :], *self._ranking()[: int(self.keep_best)]}
        for old in self.steps():
            if old not in kept:
                self._discard(self._path(old))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None where none was ever finished.

        A damaged one is told as an event, put aside and passed over.

        Raises:
            ValueError: checkpoints exist and none is readable, or the newest readable one belongs
                to another run; the message names the folder or the fields.
        """
        damaged = []
        for step in reversed(self.steps()):
            checkpoint = self._read_or_tell(step)
            if checkpoint is None:
                damaged.append(step)
                continue
            for bad in damaged:
                self._put_aside(bad)
            return checkpoint
        if damaged or any(self.folder.glob("damaged-step-*")):
            raise ValueError(
                f"{self.folder} holds checkpoints of this run and none of them is readable; "
                "training does not start again from step 0 on its own. Restore the folder from a "
                "backup, or delete it to start anew."
            )
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint with the lowest validation loss that verifies; the earlier of two equals.

        A damaged one is told as an event and passed over. None where none was measured.

        Raises:
            ValueError: it belongs to another run.
        """
        found = (self._read_or_tell(step) for step in self._ranking())
        return next((checkpoint for checkpoint in found if checkpoint is not None), None)

    def read(self, step: int) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            DamagedCheckpoint: a file is missing, cut or altered, or a value is not finite.
            ValueError: it belongs to another run.
        """
        folder = self._path(step)
        manifest = _read_manifest(folder, step)
        changed = differences(manifest.identity, self.identity)
        if changed:
            raise ValueError(
                f"{folder} belongs to another run: {'; '.join(changed)}. Restore these values to "
                "go on from it, or delete the folder to start anew."
            )
        digests = {file.path: file.sha256 for file in manifest.files}
        try:
            parts = {
                part: join(
                    (read_shard(folder / shard, digests.get(shard, "")) for shard in shards),
                    manifest.shapes.get(part, {}),
                )
                for part, shards in manifest.parts.items()
            }
        except ValueError as error:
            raise DamagedCheckpoint(f"{folder} is damaged: {error}") from None
        state = EngineState(weights=parts.pop(WEIGHTS, {}), slots=parts)
        try:
            check_finite(state)
        except FloatingPointError as error:
            raise DamagedCheckpoint(
                f"{folder} is no state to go on from: {error}. Take an earlier checkpoint."
            ) from None
        return Checkpoint(manifest, state)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first, unverified."""
        if not self.folder.is_dir():
            return []
        names = (NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def sweep(self) -> None:
        """Remove what killed saves left behind. Only for the first worker, before all start."""
        for pattern in (".step-*", ".share-*", "share-*"):
            for left_over in self.folder.glob(pattern):
                shutil.rmtree(left_over)

    def remove(self) -> None:
        """Remove every checkpoint of a run whose result is safe elsewhere."""
        self.sweep()
        for step in self.steps():
            self._discard(self._path(step))
        for pattern in ("damaged-step-*", "before-step-*"):
            for left_over in self.folder.glob(pattern):
                shutil.rmtree(left_over)

    def put_all_aside(self) -> None:
        """Take every checkpoint out of the way of a run that starts anew."""
        for path in (*self.folder.glob("step-*"), *self.folder.glob("damaged-step-*")):
            aside = self.folder / f"before-{path.name.removeprefix('damaged-')}"
            if aside.exists():
                shutil.rmtree(aside)
            os.rename(path, aside)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _share(self, step: int, rank: int) -> Path:
        return self.folder / f"share-{rank:03d}-of-step-{step:08d}"

    def _take(
        self, step: int, rank: int, scratch: Path, abandoned: threading.Event | None
    ) -> Written:
        """Move what another worker wrote into the checkpoint."""
        share = self._share(step, rank)
        give_up_s = time.monotonic() + self.patience_s
        while not share.is_dir():
            late = time.monotonic() > give_up_s
            if late or (abandoned is not None and abandoned.is_set()):
                why = f"within {self.patience_s:.0f} s" if late else "before the run ended"
                raise TimeoutError(f"worker {rank} did not write its share of step {step} {why}")
            time.sleep(0.02)
        written = Written.read(share / MANIFEST)
        for file in written.files:
            os.rename(share / file.path, scratch / file.path)
        shutil.rmtree(share)
        return written

    def _ranking(self) -> list[int]:
        """Steps that have a validation loss, unverified, the lowest loss first."""
        losses = []
        for step in self.steps():
            try:
                loss = _read_manifest(self._path(step), step).validation_loss
            except DamagedCheckpoint:
                continue
            if loss is not None:
                losses.append((loss, step))
        return [step for _, step in sorted(losses)]

    def _read_or_tell(self, step: int) -> Checkpoint | None:
        try:
            return self.read(step)
        except DamagedCheckpoint as error:
            self.events.write("checkpoint_damaged", str(error), step=step)
            return None

    def _put_aside(self, step: int) -> None:
        aside = self.folder / f"damaged-{self._path(step).name}"
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(self._path(step), aside)

    def _discard(self, path: Path) -> None:
        # Renamed first, so that a kill halfway leaves no checkpoint that looks damaged.
        scratch = path.with_name(f".{path.name}.discarded")
        os.rename(path, scratch)
        shutil.rmtree(scratch)


class DamagedCheckpoint(Exception):
    """A checkpoint whose bytes are not those that were written, or whose numbers are none."""


def parts_of(state: EngineState) -> dict[str, Arrays]:
    """Weights and slots under the names that a checkpoint gives them."""
    return {WEIGHTS: state.weights, **state.slots}


def check_finite(state: EngineState) -> None:
    """Refuse a state that must not reach a checkpoint, nor come from one.

    One pass; beside the state it needs `AT_ONCE` bytes.

    Raises:
        FloatingPointError: a value is not finite; the message names the array.
    """
    for part, arrays in parts_of(state).items():
        for name, array in arrays.items():
            if not _is_finite(array):
                raise FloatingPointError(f"{part} of {name} hold values that are not finite")


def _is_finite(array: NDArray[Any]) -> bool:
    values = array.ravel(order="K")
    return all(
        np.isfinite(values[at : at + AT_ONCE]).all() for at in range(0, len(values), AT_ONCE)
    )


def held_identity(folder: Path) -> Identity | None:
    """Whose checkpoints a scratch folder holds; None if it holds no readable one."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        name = NAME.fullmatch(path.name)
        if name is None:
            continue
        try:
            return _read_manifest(path, int(name[1])).identity
        except DamagedCheckpoint:
            continue
    return None


def _read_manifest(folder: Path, step: int) -> CheckpointManifest:
    try:
        manifest = CheckpointManifest.read(folder / MANIFEST)
    except (ValueError, OSError) as error:
        raise DamagedCheckpoint(f"{folder} is damaged: {error}") from None
    if manifest.seal != manifest.expected_seal:
        raise DamagedCheckpoint(f"{folder / MANIFEST} is damaged: its seal does not fit.")
    if manifest.step != step:
        raise DamagedCheckpoint(f"{folder} is damaged: its manifest is of step {manifest.step}.")
    return manifest


def _write(folder: Path, shares: Shares, *, rank: int) -> Written:
    pieces = {part: bounded(held) for part, held in shares.items()}
    files = {part: write_shards(folder, part, held, rank=rank) for part, held in pieces.items()}
    cut = {part: cut_shapes(held) for part, held in pieces.items()}
    return Written(
        parts={part: tuple(file.path for file in group) for part, group in files.items()},
        files=tuple(file for group in files.values() for file in group),
        keys={part: tuple(share.key for share in held) for part, held in pieces.items()},
        shapes={part: shapes for part, shapes in cut.items() if shapes},
    )


def _merged(tables: Iterable[dict[str, dict[str, Shape]]]) -> dict[str, dict[str, Shape]]:
    merged: dict[str, dict[str, Shape]] = {}
    for table in tables:
        for part, shapes in table.items():
            merged.setdefault(part, {}).update(shapes)
    return merged
