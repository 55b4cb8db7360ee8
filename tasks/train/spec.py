"""How a model is trained: the `train` section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.spec import Spec
from tasks.train.recovery import BadNumbers
from tasks.train.run_spec import CheckpointSpec, EarlyStopping, GoOn, ProfileSpec, Resume
from tasks.train.scaling import LossScaleSpec


class TrainSpec(Spec):
    """The loop, the engine and the workers."""

    backend: Literal["flax", "torch"] = Field(description="the framework that computes")
    steps: int = Field(ge=1, lt=2**31, description="optimizer steps")
    batch: int = Field(ge=1, description="samples of one step, over all workers, B")
    accumulation: int = Field(
        1,
        ge=1,
        description="parts of a worker's batch, one after the other; their gradients add up",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, data order and dropout")
    precision: Literal["float32", "float64", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32",
        description="of the arithmetic; mixed: float32 weights and update, 16 bits in between",
    )
    loss_scale: LossScaleSpec = Field(LossScaleSpec(), description="of mixed_float16")
    workers: int = Field(1, ge=1, description="processes that share each batch")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="what workers share out instead of copying: "
        "1 optimizer state, 2 and gradients, 3 and weights (Rajbhandari et al. 2020)",
    )
    compile: bool = Field(
        False,
        description="PyTorch: fuse each layer with torch.compile; half a minute before the first "
        "step, and a C++ compiler (Triton on CUDA). Flax compiles the whole step, always",
    )
    log_every_steps: int = Field(10, ge=1, description="steps between two rows of the curve")
    validate_every_steps: int = Field(100, ge=1, description="steps between two validations")
    validation_batches: int = Field(8, ge=1, description="batches of one validation")
    early_stopping: EarlyStopping | None = Field(None, description="end when nothing is gained")
    bad_numbers: BadNumbers = BadNumbers()
    compare_replicas_every_steps: int | None = Field(
        50,
        ge=1,
        description="steps between two comparisons of what workers or devices hold alike; always "
        "before a checkpoint; null: only then",
    )
    checkpoint: CheckpointSpec = CheckpointSpec()
    resume: Annotated[Resume, Field(discriminator="kind")] = Field(
        GoOn(), description="what a run goes on from"
    )
    restarts: int = Field(
        3,
        ge=0,
        description="times that dead or hanging workers are replaced; one that leaves on SIGTERM "
        "counts only where nothing new was saved, and the count of the others starts anew",
    )
    hang_timeout_s: float | None = Field(
        600.0,
        gt=0,
        description="seconds without a step or a validation after which a worker is replaced; the "
        "first step compiles within them; null: waits for ever",
    )
    peak_flops: float | None = Field(
        None, gt=0, description="FLOP/s of all workers that MFU is a share of; null: measured"
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="loopback port for Prometheus; null: the file alone"
    )
    profile: ProfileSpec | None = Field(None, description="steps that the profiler traces")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        parts = self.workers * self.accumulation
        if self.batch % parts:
            raise ValueError(
                "train.batch must be a multiple of train.workers x train.accumulation; "
                f"got batch={self.batch}, workers={self.workers}, "
                f"accumulation={self.accumulation}. Try batch={-(-self.batch // parts) * parts}."
            )
        return self
