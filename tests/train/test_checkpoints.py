"""Checkpoints: whole or invisible, verified when read, and never another run's."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.presets import tiny_language
from tasks.train import checkpoints as held_checkpoints
from tasks.train import shards as module
from tasks.train.checkpoints import (
    Checkpoint,
    Checkpoints,
    DamagedCheckpoint,
    Ledger,
    check_finite,
    parts_of,
)
from tasks.train.curves import CurveRow
from tasks.train.engine import EngineState
from tasks.train.identity import CHOOSING_FIELDS, TRAIN_FIELDS, differences, run_identity
from tasks.train.run_spec import EarlyStopping, ProfileSpec, Require
from tasks.train.shards import deal
from tasks.train.spec import TrainSpec
from tests.train.bigram import OPTIM, TRAIN, checkpoints
from tests.train.writer import STEPS, state

ROW = CurveRow(
    step=5,
    tokens=80,
    loss=1 / 3,
    validation_loss=None,
    rate=1e-3 / 7,
    gradient_norm=2.0**-40,
    objective=2 / 3,
    expert_imbalance=1.5,
    expert_dropped=None,
    tokens_per_s=123.4,
)
LEDGER = Ledger(seconds=1.5, curve=(ROW,), losses=(0.1, 0.2), interval_s=0.25)


def save(
    held: Checkpoints, step: int, state_: EngineState | None = None, loss: float | None = None
) -> None:
    held.save(
        state_ or state(step),
        step=step,
        samples=4 * step,
        backend="torch",
        workers=2,
        ledger=LEDGER,
        validation_loss=loss,
    )


def newest(held: Checkpoints) -> Checkpoint:
    found = held.newest()
    assert found is not None
    return found


def same(found: EngineState, wanted: EngineState) -> bool:
    parts = [(found.weights, wanted.weights)]
    parts += [(found.slots[slot], wanted.slots[slot]) for slot in wanted.slots]
    return found.slots.keys() == wanted.slots.keys() and all(
        held.keys() == asked.keys()
        and all(
            held[name].dtype == asked[name].dtype and np.array_equal(held[name], asked[name])
            for name in asked
        )
        for held, asked in parts
    )


@pytest.mark.parametrize(
    ("dtype", "shard_bytes", "files"),
    # A row of the first array has 16 or 32 bytes, the second array 8 or 16.
    [(np.float32, 1, 5), (np.float32, 40, 2), (np.float64, 40, 4), (np.float64, 2**20, 1)],
)
def test_what_is_saved_is_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, shard_bytes: int, files: int
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", shard_bytes)
    draw = np.random.default_rng(0)
    # A transposed array is not contiguous: its values must be saved, not its memory.
    weights: dict[str, NDArray[Any]] = {
        "a": draw.normal(size=(4, 3)).astype(dtype).T,
        "b": draw.normal(size=2).astype(dtype),
    }
    # A rule's slots have shapes of their own.
    slots: dict[str, dict[str, NDArray[Any]]] = {
        "row_moment": {"a": weights["a"].sum(1), "b": weights["b"]},
        "basis": {"a": np.eye(4, dtype=dtype)},
        "scale": {"a": np.asarray(0.5, dtype), "b": np.asarray(3, np.int64)},
        "average": weights,
        "empty": {},
    }
    wanted = EngineState(weights, slots)
    held = checkpoints(tmp_path)
    save(held, 50, wanted)
    found = newest(held)
    assert same(found.state, wanted)
    assert found.manifest.ledger == LEDGER
    assert (found.manifest.step, found.manifest.samples) == (50, 200)
    assert (found.manifest.backend, found.manifest.workers) == ("torch", 2)
    assert len(found.manifest.parts["weights"]) == files
    assert (tmp_path / "step-00000050" / "weights-000-00000.safetensors").is_file()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    for step in (1, 2, 3, 10):
        save(held, step)
    assert held.steps() == [3, 10]
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000003", "step-00000010"}


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    held = replace(checkpoints(tmp_path), keep_best=True)
    for step, loss in enumerate([3.0, None, 1.0, 1.0, 2.0, None], start=1):
        save(held, step, loss=loss)
    assert held.steps() == [3, 5, 6]
    best = held.best()
    assert best is not None and best.manifest.step == 3
    assert same(best.state, state(3))
    # A run that goes on from here goes on from the newest.
    assert newest(held).manifest.step == 6
    save(held, 7, loss=0.5)
    assert held.steps() == [6, 7]


def test_a_damaged_best_is_told_and_the_next_best_used(tmp_path: Path) -> None:
    held = replace(checkpoints(tmp_path), keep=3)
    for step, loss in ((1, 1.0), (2, 2.0), (3, 3.0)):
        save(held, step, loss=loss)
    truncate(tmp_path / "step-00000001")
    best = held.best()
    assert best is not None and best.manifest.step == 2
    assert [event["event"] for event in held.events.read()] == ["checkpoint_damaged"]
    assert checkpoints(tmp_path / "absent").best() is None


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "absent").newest() is None


@pytest.mark.parametrize("how", ["at_once", "behind"])
def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, how: str
) -> None:
    """Four saves are killed before every call that touches the disk, one after the other."""
    series = subprocess.run(
        [sys.executable, "-m", "tests.train.writer", str(tmp_path), how],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert series.returncode == 0, series.stderr
    saved = [int(line) for line in series.stdout.split()]
    assert len(saved) > 60 and saved[-1] == STEPS[-1]
    seen = set()
    for fatal, returned in enumerate(saved, start=1):
        folder = tmp_path / str(fatal)
        held = checkpoints(folder)
        for step in held.steps():
            assert same(held.read(step).state, state(step)), f"call {fatal}: damaged step {step}"
        found = held.newest()
        step = found.manifest.step if found else 0
        assert step in (returned, returned + 1), f"call {fatal}: step {returned} was saved"
        assert held.events.read() == []
        seen.add((returned, step))
        # The next start cleans up and goes on.
        held.sweep()
        assert all(path.name.startswith("step-") for path in folder.glob("*"))
        save(held, 9)
        assert newest(held).manifest.step == 9
    assert seen >= {(0, 0), (0, 1), (1, 1), (1, 2), (3, 3), (3, 4), (4, 4)}


FAULTS: set[str] = set()
FAULT = OSError()
CALLS = {"open": 0, "fsync": 0, "os.mkdir": 0, "os.rename": 0}
FATAL = 0


def meet(call: str) -> None:
    """Count a call, and refuse the one that is to fail."""
    if call in FAULTS:
        CALLS[call] += 1
        if CALLS[call] == FATAL:
            raise FAULT


sys.addaudithook(lambda event, arguments: meet(event))


@contextmanager
def refused(call: str, *, number: int, error: OSError) -> Iterator[None]:
    """Let the `number`-th call of a kind fail, as the disk would."""
    global FATAL, FAULT
    really = os.fsync

    def sync(file: Any) -> None:
        meet("fsync")
        really(file)

    FATAL, FAULT, CALLS[call] = number, error, 0
    FAULTS.add(call)
    os.fsync = sync  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = really
        FAULTS.clear()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_refuses_leaves_the_previous_checkpoint(
    tmp_path: Path, call: str, fault: int
) -> None:
    held = checkpoints(tmp_path)
    save(held, 1)
    failed = 0
    for number in range(1, 40):
        try:
            with refused(call, number=number, error=OSError(fault, os.strerror(fault))):
                save(held, 2)
        except OSError as error:
            assert error.errno == fault
            failed += 1
            # What fails after the rename: the new one is there, and whole.
            assert held.steps() in ([1], [1, 2])
            assert same(newest(held).state, state(newest(held).manifest.step))
            assert held.events.read() == []
        else:
            assert newest(held).manifest.step == 2
            if CALLS[call] < number:
                break
        shutil.rmtree(tmp_path / "step-00000002", ignore_errors=True)
    assert failed > 0


@pytest.mark.parametrize("most_bytes", [0, 10, 300])
def test_a_disk_that_is_full_leaves_the_previous_checkpoint(
    tmp_path: Path, most_bytes: int
) -> None:
    """A limit of the system on the size of files cuts every longer write, as a full disk does."""
    held = checkpoints(tmp_path)
    save(held, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        with pytest.raises(OSError):
            save(held, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert held.steps() == [1]
    assert newest(held).manifest.step == 1
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001"}


def flip(folder: Path, file: str, *, at: int) -> None:
    path = folder / file
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << (at % 8)
    path.write_bytes(content)


def swap(folder: Path) -> None:
    first, second = (
        folder / "weights-000-00000.safetensors",
        folder / "momentum-000-00000.safetensors",
    )
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def replay(folder: Path) -> None:
    """An older checkpoint under the newer name."""
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)


def edit(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["samples"] += 1
    path.write_text(json.dumps(manifest))


def truncate(folder: Path) -> None:
    os.truncate(folder / "weights-000-00000.safetensors", 50)


def pickle(folder: Path) -> None:
    (folder / "weights-000-00000.safetensors").write_bytes(b"\x80\x04\x8c\x02os\x8c\x06system\x93.")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit flipped in the first shard": lambda folder: flip(
        folder, "weights-000-00000.safetensors", at=-3
    ),
    "a bit flipped in a header": lambda folder: flip(
        folder, "momentum-000-00000.safetensors", at=20
    ),
    "a shard cut short": truncate,
    "a shard emptied": lambda folder: os.truncate(folder / "momentum-000-00000.safetensors", 0),
    "a shard deleted": lambda folder: (folder / "momentum-000-00000.safetensors").unlink(),
    "two shards swapped": swap,
    "a pickle in the place of a shard": pickle,
    "the manifest deleted": lambda folder: (folder / "manifest.json").unlink(),
    "the manifest cut short": lambda folder: os.truncate(folder / "manifest.json", 99),
    "the manifest edited": edit,
    "an older checkpoint under its name": replay,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_previous_one_used(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    held = checkpoints(tmp_path)
    save(held, 1)
    save(held, 2)
    damage(tmp_path / "step-00000002")
    found = newest(held)
    assert found.manifest.step == 1
    assert same(found.state, state(1))
    (event,) = held.events.read()
    assert event["event"] == "checkpoint_damaged"
    assert "step-00000002" in event["message"]
    # It is out of the way: it neither counts as new, nor is it told again.
    save(held, 3)
    assert held.steps() == [1, 3]
    assert newest(held).manifest.step == 3
    assert len(held.events.read()) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["weights", "momentum"])
def test_a_checkpoint_of_bad_numbers_is_told_and_the_previous_one_used(
    part: str, bad: float, tmp_path: Path
) -> None:
    """Its bytes are those that were written: only the numbers tell."""
    held = checkpoints(tmp_path)
    save(held, 1, loss=2.0)
    sick = state(2)
    parts_of(sick)[part]["a"].flat[-1] = bad
    shares = deal(parts_of(sick), rank=0, workers=1)
    about: dict[str, Any] = {"samples": 8, "backend": "torch", "workers": 1, "ledger": LEDGER}
    held.save_shares(shares, step=2, validation_loss=1.0, **about)
    with pytest.raises(DamagedCheckpoint, match=f"{part} of a hold .*Take an earlier checkpoint"):
        held.read(2)
    best = replace(held, keep_best=True).best()
    assert best is not None and best.manifest.step == 1
    assert newest(held).manifest.step == 1
    for event in held.events.read():
        assert (event["event"], event["step"]) == ("checkpoint_damaged", 2)
        assert f"{part} of a hold values that are not finite" in event["message"]
    assert held.steps() == [1]


def test_values_are_found_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an array is looked at in pieces, has no axis, or holds integers."""
    monkeypatch.setattr(held_checkpoints, "AT_ONCE", 4)
    whole = {"a": np.zeros((3, 3)), "b": np.zeros(()), "c": np.zeros(8, np.int64)}
    check_finite(EngineState(whole))
    for name, at in (*(("a", at) for at in range(9)), ("b", 0)):
        whole[name].flat[at] = np.inf
        for arrays in (whole, {each: array.T for each, array in whole.items()}):
            with pytest.raises(FloatingPointError, match=f"weights of {name} hold"):
                check_finite(EngineState(arrays))
        whole[name].flat[at] = 0


def test_no_flipped_bit_of_a_checkpoint_is_overlooked(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    save(held, 1)
    folder = tmp_path / "step-00000001"
    sound = held.read(1)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for at in range(0, len(content), max(1, len(content) // 97)):
            flip(folder, path.name, at=at)
            try:
                found = held.read(1)
            except (DamagedCheckpoint, ValueError):
                pass
            else:
                # Only white space of the manifest carries no meaning.
                assert path.name == "manifest.json"
                assert found.manifest == sound.manifest
            path.write_bytes(content)
    assert held.read(1).manifest == sound.manifest


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_zero(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    for step in (1, 2):
        save(held, step)
        truncate(tmp_path / f"step-{step:08d}")
    for _ in range(2):
        with pytest.raises(ValueError, match="none of them is readable.*delete it to start anew"):
            held.newest()
    assert held.steps() == [1, 2]


def test_a_run_left_with_what_was_put_aside_does_not_start_from_zero(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    save(held, 1)
    save(held, 2)
    truncate(tmp_path / "step-00000002")
    assert newest(held).manifest.step == 1
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(ValueError, match=str(tmp_path)):
        held.newest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.width", 64),
        ("optim.schedule.peak", 0.25),
        ("train.seed", 8),
        ("train.batch", 8),
        ("data", "e" * 64),
        ("code", "f" * 64),
    ],
)
def test_another_runs_checkpoint_is_refused_by_the_name_of_the_field(
    tmp_path: Path, field: str, value: Any
) -> None:
    save(checkpoints(tmp_path), 1)
    with pytest.raises(ValueError, match=rf"{field}: .* -> {value}[.;]"):
        checkpoints(tmp_path, changed={field: value}).newest()


def test_framework_workers_and_cadence_do_not_make_another_run() -> None:
    other = TRAIN.model_copy(
        update={
            "backend": "flax",
            "accumulation": 2,
            "workers": 2,
            "zero_stage": 3,
            "compile": True,
            "log_every_steps": 1,
            "validate_every_steps": 2,
            "validation_batches": 1,
            "checkpoint": TRAIN.checkpoint.model_copy(update={"every_steps": 1}),
            "compare_replicas_every_steps": None,
            "restarts": 0,
            "hang_timeout_s": None,
            "resume": Require(),
            "profile": ProfileSpec(start=1),
            "metrics_port": 9000,
            "peak_flops": 1e12,
        }
    )
    identities = [
        run_identity(tiny_language(), OPTIM, train, data="d" * 64) for train in (TRAIN, other)
    ]
    assert differences(*identities) == []


def test_every_field_of_train_is_sorted_into_changing_the_result_or_not() -> None:
    harmless = {
        "backend",
        "accumulation",
        "workers",
        "zero_stage",
        "compile",
        "log_every_steps",
        "validate_every_steps",
        "validation_batches",
        "checkpoint",
        "compare_replicas_every_steps",
        "restarts",
        "hang_timeout_s",
        "resume",
        "profile",
        "metrics_port",
        "peak_flops",
    }
    assert set(TrainSpec.model_fields) == harmless | set(TRAIN_FIELDS) | set(CHOOSING_FIELDS)


def test_what_chooses_the_result_makes_another_run_where_something_is_chosen() -> None:
    def identity(**changes: Any) -> dict[str, Any]:
        train = TRAIN.model_copy(update=changes)
        return run_identity(tiny_language(), OPTIM, train, data="d" * 64)

    def changed(**changes: Any) -> set[str]:
        before, after = identity(**changes), identity(**changes, validate_every_steps=3)
        return {line.split(":")[0] for line in differences(before, after)}

    best = TRAIN.checkpoint.model_copy(update={"best": True})
    assert changed() == set()
    assert changed(early_stopping=EarlyStopping(patience=1)) == {"train.validate_every_steps"}
    assert changed(checkpoint=best) == {"train.validate_every_steps"}
    assert differences(
        identity(early_stopping=EarlyStopping(patience=1)),
        identity(early_stopping=EarlyStopping(patience=2)),
    ) == ["train.early_stopping.patience: 1 -> 2"]
    assert "train.checkpoint.best: absent -> True" in differences(
        identity(), identity(checkpoint=best)
    )


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    held = checkpoints(tmp_path)
    for bad in (np.nan, np.inf, -np.inf):
        sick = state(1)
        sick.slots["momentum"]["a"][1, 1] = bad
        with pytest.raises(FloatingPointError, match="momentum of a"):
            save(held, 1, sick)
    assert list(tmp_path.glob("*")) == []
