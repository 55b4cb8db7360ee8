"""How a model is computed: choices that change no result beyond rounding."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from models.spec.base import Spec

Precision = Literal["float64", "float32", "mixed_bfloat16", "mixed_float16", "bfloat16"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]


class Policy(NamedTuple):
    """Types of numbers.

    Attributes:
        parameters: weights at rest and the update.
        compute: activations and both sides of a matrix product, whose sums are at least float32.
        reduce: norm statistics, softmax, router, logits and loss.
    """

    parameters: Dtype
    compute: Dtype
    reduce: Dtype


POLICIES: dict[Precision, Policy] = {
    "float64": Policy("float64", "float64", "float64"),
    "float32": Policy("float32", "float32", "float32"),
    "mixed_bfloat16": Policy("float32", "bfloat16", "float32"),
    "mixed_float16": Policy("float32", "float16", "float32"),
    "bfloat16": Policy("bfloat16", "bfloat16", "float32"),
}


class ExecutionSpec(Spec):
    """Memory against time."""

    kernel: Literal["auto", "reference", "fused"] = Field(
        "auto",
        description="of attention: reference holds all scores; fused never does; auto takes the "
        "fused one wherever it computes what the spec asks for",
    )
    checkpointing: Literal["none", "matmuls", "blocks"] = Field(
        "none",
        description="what the backward pass computes again: nothing, all but matrix products, "
        "whole blocks (Chen et al. 2016, arXiv:1604.06174)",
    )
    scan: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Flax compiles equal layers once and loops over them; auto: from 4 repeats on",
    )
