"""The profiler switch: some steps traced by the framework's own profiler, for its own viewer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tasks.train.callbacks import Step
from tasks.train.events import Events
from tasks.train.run_spec import ProfileSpec

FOLDER = "profile"


class Profiler:
    """A callback that traces; every worker has its own folder, `profile/rank-000` in the run's.

    PyTorch leaves a Chrome trace (`chrome://tracing`, Perfetto), JAX a trace for XProf and
    Perfetto.
    """

    def __init__(
        self,
        spec: ProfileSpec,
        folder: Path,
        *,
        backend: Literal["flax", "torch"],
        rank: int,
        done: int,
        events: Events,
    ) -> None:
        """Begin at once where the first step is to be traced.

        Args:
            folder: of the run.
            done: steps done before this process began.
        """
        self._spec, self._backend, self._events, self._rank = spec, backend, events, rank
        self._folder = folder / FOLDER / f"rank-{rank:03d}"
        self._finish: Callable[[], None] | None = None
        self._switch(done)

    def after_step(self, step: Step) -> None:
        """Begin or end the trace."""
        self._switch(step.done)

    def after_validation(self, done: int, loss: float) -> bool:
        """A trace ends no run."""
        return False

    def close(self) -> None:
        """Write a trace that the end of the run cuts short."""
        if self._finish is not None:
            self._finish()
            self._finish = None
            if self._rank == 0:
                message = f"a trace of the steps from {self._spec.start} is in {self._folder}"
                self._events.write("profiled", message, folder=str(self._folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _switch(self, done: int) -> None:
        first, end = self._spec.start, self._spec.start + self._spec.steps
        if not first <= done < end:
            self.close()
        elif self._finish is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            begin = _torch if self._backend == "torch" else _flax
            self._finish = begin(self._folder / f"steps-{done}-{end}")


def _torch(path: Path) -> Callable[[], None]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(ProfilerActivity.CUDA)
    tracer = profile(activities=kinds)
    tracer.start()

    def finish() -> None:
        tracer.stop()
        tracer.export_chrome_trace(str(path.with_suffix(".json")))

    return finish


def _flax(path: Path) -> Callable[[], None]:
    import jax

    jax.profiler.start_trace(str(path))
    return jax.profiler.stop_trace
