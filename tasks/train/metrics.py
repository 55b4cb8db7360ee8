"""The figures of a running run as Prometheus reads them: a file, and a port if one is asked for."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import psutil
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Summary,
    start_http_server,
    write_to_textfile,
)

from tasks.train.callbacks import Step
from tasks.train.saving import Saved
from tasks.train.speed import Peak

Metric = TypeVar("Metric", Counter, Gauge, Summary)

FILE = "metrics.prom"
HOST = "127.0.0.1"
WRITE_EVERY_S = 5.0

# Name -> meaning. Each begins with `tandem_train_`; one that was never measured is not there.
GAUGES = {
    "step": "Optimizer steps done.",
    "loss": "Loss of the last step, nats per target.",
    "validation_loss": "Last validation, nats per target.",
    "objective": "What the last step minimised, per target.",
    "gradient_norm": "Of the last step, before clipping.",
    "learning_rate": "Of the last step.",
    "tokens_per_second": "Positions, padding left out, of all workers per second of the last step.",
    "mfu": "Model FLOPs utilisation of the last step, 0 to 1 (Chowdhery et al. 2022).",
    "expert_imbalance": "Load of the busiest expert over the mean, last step, worst layer.",
    "expert_dropped": "Share of the last step's choices that no expert took.",
    "memory_resident_bytes": "Memory of the first worker.",
    "memory_device_bytes": "Memory that arrays hold on the first worker's accelerators.",
    "checkpoint_step": "Steps in the newest checkpoint that is safe.",
}
COUNTERS = {
    "tokens": "Positions, padding left out, trained on since this process began, all workers.",
    "skipped_steps": "Steps since this process began that changed nothing.",
    "data_wait_seconds": "Time that the first worker waited for samples.",
}
SUMMARIES = {
    "step_seconds": "Time of a step, validation and checkpoints left out.",
    "checkpoint_blocked_seconds": "Time that a checkpoint kept the training waiting.",
    "checkpoint_writing_seconds": "Time that a checkpoint was written behind the training.",
}


class Metrics:
    """A callback that measures; the first worker has one.

    `metrics.prom` in the run's folder is always written, whole or not at all, for the textfile
    collector of a node exporter. The label `run` tells runs apart.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: str,
        backend: Literal["flax", "torch"],
        peak: Peak,
        port: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Register the metrics and open the port.

        Args:
            folder: of the run.
            port: of the loopback interface, for a scrape.

        Raises:
            ValueError: the port is taken.
        """
        self._path, self._run, self._backend, self._clock = folder / FILE, run, backend, clock
        self._peak, self._write_at_s = peak, 0.0
        self._registry = CollectorRegistry()
        self._gauges = self._register(Gauge, GAUGES)
        self._counters = self._register(Counter, COUNTERS)
        self._summaries = self._register(Summary, SUMMARIES)
        self._server = None if port is None else self._listen(port)

    def after_step(self, step: Step) -> None:
        """Take a step's figures."""
        result, speed = step.result, step.positions / max(step.seconds, 1e-9)
        self._set("step", step.done)
        self._set("loss", result.loss)
        self._set("objective", result.objective)
        self._set("gradient_norm", result.gradient_norm)
        self._set("learning_rate", step.rate)
        self._set("tokens_per_second", speed)
        self._set("mfu", self._peak.utilisation(speed))
        if result.load is not None:
            self._set("expert_imbalance", result.load.imbalance)
            self._set("expert_dropped", result.load.dropped)
        self._count("tokens", step.positions)
        self._count("skipped_steps", not result.taken)
        self._count("data_wait_seconds", step.data_wait_s)
        self._observe("step_seconds", step.seconds)
        if self._clock() >= self._write_at_s:
            self.write()

    def after_validation(self, done: int, loss: float) -> bool:
        """Take a validation loss; metrics end no run."""
        self._set("validation_loss", loss)
        return False

    def after_save(self, saved: Saved) -> None:
        """Take the times of a checkpoint; called from the thread that wrote it."""
        self._set("checkpoint_step", saved.step)
        self._observe("checkpoint_blocked_seconds", saved.blocked_s)
        self._observe("checkpoint_writing_seconds", saved.writing_s)

    def write(self) -> None:
        """Write the file now. A disk that refuses ends no run."""
        self._write_at_s = self._clock() + WRITE_EVERY_S
        self._set("memory_resident_bytes", psutil.Process().memory_info().rss)
        if (device := device_memory(self._backend)) is not None:
            self._set("memory_device_bytes", device)
        with contextlib.suppress(OSError):
            write_to_textfile(str(self._path), self._registry)

    def close(self) -> None:
        """Write the last figures and close the port."""
        self.write()
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _register(self, kind: type[Metric], names: Mapping[str, str]) -> dict[str, Metric]:
        return {
            name: kind(f"tandem_train_{name}", meaning, ["run"], registry=self._registry)
            for name, meaning in names.items()
        }

    def _set(self, name: str, value: float) -> None:
        self._gauges[name].labels(self._run).set(value)

    def _count(self, name: str, value: float) -> None:
        self._counters[name].labels(self._run).inc(value)

    def _observe(self, name: str, value: float) -> None:
        self._summaries[name].labels(self._run).observe(value)

    def _listen(self, port: int) -> Any:
        try:
            return start_http_server(port, addr=HOST, registry=self._registry)
        except OSError as error:
            raise ValueError(
                f"train.metrics_port must be a free port of {HOST}; got {port}: "
                f"{error.strerror}. Try another one, or null for the file alone."
            ) from None


def device_memory(backend: Literal["flax", "torch"]) -> int | None:
    """Bytes of the accelerators of this process that arrays hold; None on a CPU."""
    if backend == "torch":
        torch = sys.modules.get("torch")
        held = torch is not None and torch.cuda.is_available()
        return int(torch.cuda.memory_allocated()) if held and torch is not None else None
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    stats = [device.memory_stats() for device in jax.local_devices()]
    used = [each["bytes_in_use"] for each in stats if each]
    return sum(used) if used else None
