"""DeepSpeed's configuration, derived from our Specs; nobody writes one by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from tasks.train.spec import TrainSpec

MAX_BUCKET = 500_000_000


def deepspeed_config(
    shapes: Sequence[tuple[int, ...]], train_spec: TrainSpec, *, stage: Literal[0, 1, 2, 3]
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    Clipping is not DeepSpeed's to decide: its stage 0 forgets the norm that it clipped by, and
    from stage 1 on every step brings a limit of its own. A bucket holds all gradients of a small
    model. At stage 3, vectors (gains, biases) stay whole on every worker: gathering one costs more
    than holding it.

    Args:
        shapes: of the weights.
        stage: of ZeRO.
    """
    parameters = sum(map(math.prod, shapes))
    zero: dict[str, Any] = {"stage": stage}
    if stage > 0:
        bucket = min(parameters, MAX_BUCKET)
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3:
        vectors = [math.prod(shape) for shape in shapes if len(shape) == 1]
        zero["stage3_param_persistence_threshold"] = max(vectors, default=0)
    parts = train_spec.workers * train_spec.accumulation
    return {
        "train_batch_size": train_spec.batch,
        "train_micro_batch_size_per_gpu": train_spec.batch // parts,
        "gradient_accumulation_steps": train_spec.accumulation,
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
