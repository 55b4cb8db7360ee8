"""What `train.compile` needs."""

from __future__ import annotations

import os
import shutil

from models.spec import ModelSpec
from tasks.train.spec import TrainSpec


def check_compiled(model: ModelSpec, train: TrainSpec) -> None:
    """Refuse to compile what PyTorch's compiler cannot.

    Raises:
        ValueError: naming the key, the reason and what works.
    """
    if train.backend == "flax" or not train.compile:
        return
    if train.zero_stage == 3 and train.workers > 1:
        raise ValueError(
            "train.compile must be false where train.zero_stage=3 gathers weights layer by layer, "
            f"which compiled layers do not wait for; got workers={train.workers}. "
            "Try train.zero_stage=2."
        )
    if model.execution.checkpointing == "matmuls":
        raise ValueError(
            "train.compile must be false with model.execution.checkpointing=matmuls: a compiled "
            "layer does not show which of its operations are products. Try blocks, or none."
        )


def check_compiler() -> None:
    """Refuse to compile for a CPU where there is nothing to compile with.

    Raises:
        ValueError: naming the key, what is missing and the remedy.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"train.compile=true needs a C++ compiler, and there is no {compiler!r} on this "
            "machine. Install one (Debian: apt install g++), name it in CXX, or set "
            "train.compile=false."
        )
