"""The derived DeepSpeed configuration, as golden text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.presets import tiny_language
from models.weights import weight_table
from tasks.train.deepspeed_config import deepspeed_config
from tasks.train.spec import TrainSpec

GOLDEN = Path(__file__).parent / "golden" / "deepspeed.json"


def config(stage: Any) -> dict[str, Any]:
    train = TrainSpec(backend="torch", steps=10, batch=8, workers=2, accumulation=2)
    shapes = [row.shape for row in weight_table(tiny_language()).values()]
    return deepspeed_config(shapes, train, stage=stage)


def test_the_configuration_of_every_stage_is_the_golden_one() -> None:
    text = json.dumps({f"stage {stage}": config(stage) for stage in range(4)}, indent=2) + "\n"
    assert text == GOLDEN.read_text(encoding="utf-8")
