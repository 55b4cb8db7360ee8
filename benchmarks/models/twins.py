"""The same shapes in both twins, as training and serving run them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.models.shapes import Shape, example
from models.spec import ModelSpec, Precision
from models.weights import initial_weights

Backend = Literal["flax", "torch"]


def training(backend: Backend, shape: Shape, precision: Precision) -> Callable[[], None]:
    """A forward and backward pass."""
    return (_torch if backend == "torch" else _flax)(shape, precision)


def decoding(
    backend: Backend, spec: ModelSpec, precision: Precision, *, batch: int, prompt: int, tokens: int
) -> Callable[[], None]:
    """Greedy generation of `tokens` tokens for each of `batch` prompts."""
    assert spec.inputs.kind == "tokens"
    decoder: Any
    if backend == "torch":
        from models.torch.decoder import Decoder as TorchDecoder

        decoder = TorchDecoder(spec, initial_weights(spec, seed=0), precision=precision)
    else:
        from models.flax.decoder import Decoder as FlaxDecoder

        decoder = FlaxDecoder(spec, initial_weights(spec, seed=0), precision=precision)
    prompts = np.arange(batch * prompt).reshape(batch, prompt) % spec.inputs.vocabulary

    def step() -> None:
        session = decoder.open(prompts)
        for _ in range(tokens - 1):
            session.feed(session.logits.argmax(axis=-1))

    return step


def compile_seconds(shape: Shape) -> float:
    """What JAX takes to trace and compile a training step."""
    lowered, arguments = _program(shape, "float32")
    begun = time.perf_counter()
    lowered.lower(*arguments).compile()
    return time.perf_counter() - begun


def memory(backend: Backend, shape: Shape, precision: Precision) -> Callable[[], float]:
    """Bytes that the first step of a process holds at most, beside weights and inputs.

    A later step of PyTorch reuses what the first one has left.
    """
    if backend == "flax":
        return lambda: _planned_bytes(shape, precision)
    step = _torch(shape, precision)

    def grown() -> float:
        before = _reset_peak()
        step()
        return _resident("VmHWM") - before

    return grown


def _torch(shape: Shape, precision: Precision) -> Callable[[], None]:
    import torch

    from models.torch.model import Model
    from models.torch.weights import load_weights

    model = Model(shape.spec, precision=precision)
    load_weights(model, initial_weights(shape.spec, seed=0))
    batch = example(shape)
    inputs, targets = torch.tensor(batch.inputs), torch.tensor(batch.targets)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        tally = model(inputs, targets)
        torch.autograd.backward(tally.objective / tally.count)

    return step


def _flax(shape: Shape, precision: Precision) -> Callable[[], None]:
    import jax

    program, (arrays, *batch) = _program(shape, precision)
    placed = [jax.device_put(each) for each in batch]

    def step() -> None:
        jax.block_until_ready(program(arrays, *placed))  # type: ignore[no-untyped-call]

    return step


def _program(shape: Shape, precision: Precision) -> tuple[Any, tuple[Any, ...]]:
    """A jitted step and what it takes: weights, inputs, targets."""
    import jax

    from models.flax.model import Model
    from models.flax.weights import load_weights, merge, split

    model = Model(shape.spec, precision=precision)
    load_weights(model, initial_weights(shape.spec, seed=0))
    graph, arrays = split(model)

    def mean(arrays: Any, inputs: Any, targets: Any) -> Any:
        tally = merge(graph, arrays)(inputs, targets)
        return tally.objective / tally.count

    batch = example(shape)
    inputs = batch.inputs.astype(np.int32) if batch.inputs.dtype.kind == "i" else batch.inputs
    return jax.jit(jax.value_and_grad(mean)), (arrays, inputs, batch.targets.astype(np.int32))


def _planned_bytes(shape: Shape, precision: Precision) -> float:
    """What XLA sets aside for a step's values."""
    program, arguments = _program(shape, precision)
    planned = program.lower(*arguments).compile().memory_analysis()
    return float(planned.temp_size_in_bytes)


def _reset_peak() -> float:
    """Forget the most bytes that were resident; what is now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _resident(key: str) -> float:
    """Bytes of a row of the process's own status (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return float(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no row {key}.")
