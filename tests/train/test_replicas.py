"""A worker or device whose copy has changed is found, named, and nothing of it is saved."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import distributed

from tasks.prepare.batch import Batch
from tasks.prepare.dataset import Windows
from tasks.train.engine import EngineState, StepResult
from tasks.train.flax_step import FlaxEngine
from tasks.train.loop import Seat, run_loop
from tasks.train.replicas import CorruptReplica, check_replicas, odd_ones
from tasks.train.stopping import Stopping
from tasks.train.torch_step import TorchEngine
from tests.train.bigram import CONTEXT, TRAIN, Bigram, checkpoints, tokens
from tests.train.engines import MODELS, OPTIM, train_spec
from tests.train.engines import run as run_real
from tests.train.processes import in_two_processes

WORKERS = 3
MODEL = "tiny_language"
FLIPPED = "norm.weight"


@pytest.mark.parametrize(
    ("sums", "odd"),
    [([5], []), ([5, 5, 5], []), ([5, 6, 5], [1]), ([5, 6], [0, 1]), ([6, 6, 5, 5], [0, 1, 2, 3])],
)
def test_the_odd_one_is_who_is_outside_of_the_majority(sums: list[int], odd: list[int]) -> None:
    assert odd_ones(np.array(sums)) == odd


def test_the_message_names_ranks_devices_and_arrays() -> None:
    same, other = np.array([1, 1, 1, 1]), np.array([1, 1, 1, 2])
    with pytest.raises(CorruptReplica) as raised:
        check_replicas({"a": same, "b": other}, step=50, workers=2, events=None)
    assert str(raised.value).startswith(
        "after step 50 rank 1 (device 3 of 4) holds other values of b than the others. Nothing"
    )
    with pytest.raises(CorruptReplica, match="rank 0, 1 holds .*; which of them is right cannot"):
        check_replicas({"b": np.array([1, 2])}, step=50, workers=2, events=None)


class Exchange:
    """Gives every thread what all of them brought."""

    def __init__(self) -> None:
        self._sums = np.zeros(WORKERS, np.int64)
        self._barrier = threading.Barrier(WORKERS, timeout=20)

    def gathered(self, rank: int, weight: NDArray[Any]) -> NDArray[np.int64]:
        self._sums[rank] = weight.view(np.int32).sum(dtype=np.int64)
        self._barrier.wait()
        found = self._sums.copy()
        self._barrier.wait()
        return found


class Flipped(Bigram):
    """One of three; the last one's weight changes by itself after a step."""

    def __init__(self, rank: int, exchange: Exchange, *, after: int) -> None:
        super().__init__()
        self.rank, self.exchange, self.after = rank, exchange, after
        self.saved_after: list[int] = []

    def step(self, *given: Any, **named: Any) -> StepResult:
        result = super().step(*given, **named)
        if len(self.trained_on) == self.after and self.rank == WORKERS - 1:
            self.weight.view(np.uint32)[0, 0] ^= 1
        return result

    def state(self) -> EngineState:
        self.saved_after.append(len(self.trained_on))
        return super().state()

    def replicas(self) -> dict[str, NDArray[np.int64]]:
        return {"weight": self.exchange.gathered(self.rank, self.weight)}


class Same:
    """Gives every worker the same rows, so that weights are alike without a reduction."""

    def __init__(self, samples: Windows) -> None:
        self._samples = samples
        self.shares = samples.shares

    def __len__(self) -> int:
        return len(self._samples)

    def lengths(self, indices: NDArray[np.int64]) -> None:
        return None

    def read(self, indices: NDArray[np.int64]) -> Batch:
        return self._samples.read(np.arange(len(indices)))


@pytest.mark.parametrize(("after", "every", "found", "saved"), [(7, 5, 10, 6), (7, None, 12, 6)])
def test_a_flipped_bit_is_found_before_it_is_saved(
    tmp_path: Path, after: int, every: int | None, found: int, saved: int
) -> None:
    train = TRAIN.model_copy(
        update={"workers": WORKERS, "batch": 6, "compare_replicas_every_steps": every}
    )
    held, exchange = checkpoints(tmp_path, train=train), Exchange()

    engines = [Flipped(rank, exchange, after=after) for rank in range(WORKERS)]

    def work(rank: int) -> str:
        with pytest.raises(CorruptReplica) as raised:
            run_loop(
                engines[rank],
                train=train,
                optim=OPTIM,
                training=Same(tokens(31)),
                validation=tokens(9, seed=1),
                positions=CONTEXT,
                checkpoints=held,
                start=None,
                stopping=Stopping(tmp_path, rank, WORKERS),
                seat=Seat(rank, WORKERS),
            )
        return str(raised.value)

    with ThreadPoolExecutor(WORKERS) as pool:
        messages = list(pool.map(work, range(WORKERS)))
    assert len(set(messages)) == 1
    (event,) = (event for event in held.events.read() if event["event"] == "corrupt")
    assert (event["step"], event["ranks"], event["arrays"]) == (found, [WORKERS - 1], ["weight"])
    assert [engine.saved_after for engine in engines] == [[saved]] * WORKERS


Sums = dict[str, list[int]]


def flipped(engine: TorchEngine | FlaxEngine, *, rank: int, workers: int) -> list[Sums]:
    """The checksums after two steps, after a bit of the last copy flipped, and a step later."""
    spec, found = MODELS[MODEL], []
    run_real(engine, spec, steps=2, rank=rank, workers=workers)
    found.append(engine.replicas())
    if isinstance(engine, TorchEngine):
        if rank == workers - 1:
            with torch.no_grad():
                weight = dict(engine._model.named_parameters())[FLIPPED]
                weight.view(torch.int32)[0] ^= 1
    else:
        array = engine._carry.weights[FLIPPED]
        copies = [np.array(shard.data) for shard in array.addressable_shards]
        if rank == workers - 1:
            copies[-1].view(np.uint32)[0] ^= 1
        parts = [
            jax.device_put(copy, shard.device)
            for copy, shard in zip(copies, array.addressable_shards, strict=True)
        ]
        changed = jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
        engine._carry.weights[FLIPPED] = changed
    found.append(engine.replicas())
    run_real(engine, spec, start=2, steps=3, rank=rank, workers=workers)
    found.append(engine.replicas())
    engine.close()
    return [{name: sums.tolist() for name, sums in each.items()} for each in found]


def torch_rank(rank: int, port: int, runs: list[dict[str, Any]]) -> list[list[Sums]]:
    """One of two gloo ranks."""
    os.environ["LOCAL_RANK"] = str(rank)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        return [
            flipped(
                TorchEngine(MODELS[MODEL], OPTIM, train_spec(workers=2, **each)),
                rank=rank,
                workers=2,
            )
            for each in runs
        ]
    finally:
        distributed.destroy_process_group()


def jax_rank(rank: int, port: int, runs: list[dict[str, Any]]) -> list[list[Sums]]:
    """One of two JAX processes with two devices each."""
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    try:
        return [
            flipped(
                FlaxEngine(MODELS[MODEL], OPTIM, train_spec("flax", workers=2, **each)),
                rank=rank,
                workers=2,
            )
            for each in runs
        ]
    finally:
        jax.distributed.shutdown()  # type: ignore[no-untyped-call]


def odd_names(sums: Sums) -> dict[str, list[int]]:
    """The names whose copies differ, and whose they are."""
    odd = {name: odd_ones(np.array(each)) for name, each in sums.items()}
    return {name: copies for name, copies in odd.items() if copies}


@pytest.mark.slow
def test_torch_workers_tell_what_they_hold_alike() -> None:
    runs: list[dict[str, Any]] = [
        {"precision": "float64"},
        *({"precision": "float32", "zero_stage": stage} for stage in (0, 1, 3)),
    ]
    first, second = in_two_processes(torch_rank, runs)
    assert first == second
    *whole, cut, shared = first
    for before, after, later in whole:
        assert f"first_moment of {FLIPPED}" in before and odd_names(before) == {}
        assert odd_names(after) == {FLIPPED: [0, 1]}
        assert FLIPPED in odd_names(later)
    before, after, later = cut
    assert odd_names(before) == {} and odd_names(after) == {FLIPPED: [0, 1]}
    # The owner's share overwrites it.
    assert odd_names(later) == {} and later.keys() == before.keys() > {FLIPPED}
    assert shared == [{}, {}, {}]


@pytest.mark.slow
def test_jax_devices_tell_what_they_hold_alike() -> None:
    runs: list[dict[str, Any]] = [{"precision": "float32", "zero_stage": s} for s in (0, 1)]
    first, second = in_two_processes(jax_rank, runs)
    assert first == second
    for before, after, later in first:
        assert odd_names(before) == {} and odd_names(after) == {FLIPPED: [3]}
        assert {len(each) for each in before.values()} == {4}
    assert FLIPPED in odd_names(first[0][2])
