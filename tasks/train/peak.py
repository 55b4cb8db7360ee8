"""What this worker's devices could do at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

# Large enough to keep the cores of a CPU, or the whole of a GPU, busy.
CPU_SIDE, GPU_SIDE = 1536, 8192
MEASURE_S = 0.3


def measured_peak(backend: Literal["flax", "torch"], dtype: str) -> float:
    """FLOP/s that products of square matrices reach on this worker's devices, the fastest of many.

    This is below what a data sheet says, so a utilisation of it is above one of that. Takes about
    half a second.

    Args:
        dtype: in which the model multiplies: `float32`, `bfloat16`, ...
    """
    multiply, side, devices = _torch(dtype) if backend == "torch" else _flax(dtype)
    multiply()
    fastest_s, until_s = float("inf"), time.perf_counter() + MEASURE_S
    while time.perf_counter() < until_s:
        began = time.perf_counter()
        multiply()
        fastest_s = min(fastest_s, time.perf_counter() - began)
    return devices * 2.0 * side**3 / fastest_s


def _torch(dtype: str) -> tuple[Callable[[], Any], int, int]:
    import torch

    gpu = torch.cuda.is_available()
    side = GPU_SIDE if gpu else CPU_SIDE
    kind: torch.dtype = getattr(torch, dtype)
    matrix = torch.ones((side, side), dtype=kind, device="cuda" if gpu else "cpu")

    def multiply() -> None:
        torch.mm(matrix, matrix)
        if gpu:
            torch.cuda.synchronize()

    return multiply, side, 1


def _flax(dtype: str) -> tuple[Callable[[], Any], int, int]:
    import jax
    import jax.numpy as jnp

    side = CPU_SIDE if jax.default_backend() == "cpu" else GPU_SIDE
    with jax.enable_x64(dtype == "float64"):
        matrix = jnp.ones((side, side), dtype)

    def multiply() -> None:
        jnp.matmul(matrix, matrix).block_until_ready()

    return multiply, side, jax.local_device_count()
