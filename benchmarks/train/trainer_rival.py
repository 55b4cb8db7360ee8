"""`transformers.Trainer` with the Llama of `transformers`; needs `accelerate`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.data import IterableDataset

from benchmarks.models.shapes import Shape
from benchmarks.train.course import (
    LIMIT,
    RATE,
    RULE,
    SEED,
    STEPS,
    Task,
    shape_of,
    steps_of,
    weights_of,
)
from benchmarks.train.turns import Turns
from models.exchange.outgoing import write_model


class Rows(IterableDataset[dict[str, Tensor]]):
    """The samples of all steps, one by one, as `Trainer` collates them."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __iter__(self) -> Any:
        for step in steps_of(self._task):
            for inputs, targets in zip(step.inputs, step.targets, strict=True):
                tokens, wanted = torch.from_numpy(inputs), torch.from_numpy(targets)
                yield {"input_ids": tokens, "labels": wanted, "shift_labels": wanted}


class Told(transformers.Trainer):  # type: ignore[misc]
    """Keeps the loss of the last step, which a callback is not given."""

    loss = float("nan")

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        """Trainer's."""
        loss = super().compute_loss(*given, **named)
        self.loss = float(loss.detach())
        return loss


class Ending(transformers.TrainerCallback):  # type: ignore[misc]
    """Ends the run with the turns."""

    def __init__(self, turns: Turns) -> None:
        self.trainer: Told | None = None
        self._turns = turns

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Count a step."""
        assert self.trainer is not None
        control.should_training_stop = self._turns.after_step(self.trainer.loss)


def train(task: Task, turns: Turns) -> None:
    """Train until the turns end."""
    shape = shape_of(tiny=task.tiny)
    ending = Ending(turns)
    with tempfile.TemporaryDirectory() as scratch:
        ending.trainer = Told(
            model=model_of(shape, Path(scratch) / "model"),
            args=_arguments(task, shape, scratch),
            train_dataset=Rows(task),
            callbacks=[ending],
        )
        ending.trainer.train()


def model_of(shape: Shape, folder: Path) -> Any:
    """The model with the first weights of all contenders, through a folder of its own layout."""
    write_model(folder, spec=shape.spec, weights=weights_of(shape), family="llama")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    model.config.use_cache = False
    return model


def _arguments(task: Task, shape: Shape, folder: str) -> Any:
    return transformers.TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=shape.batch,
        optim="adamw_torch_fused",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=RULE.decay,
        adam_beta1=RULE.beta1,
        adam_beta2=RULE.beta2,
        adam_epsilon=RULE.epsilon,
        max_grad_norm=LIMIT,
        bf16=task.precision == "bfloat16",
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )
