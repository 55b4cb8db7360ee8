"""Holds a task against a model before any work starts."""

from __future__ import annotations

from models.spec import ModelSpec, TokenInputs
from tasks.prepare.spec import END_TOKEN, DataSpec, Language, TextClasses

# What a model of each task reads and answers.
INPUTS = {"language": "tokens", "text_classes": "tokens", "images": "patches", "frames": "frames"}


def check_task(data: DataSpec, model: ModelSpec) -> None:
    """Hold the `data` section against the `model` section.

    What only the data itself can tell is held against the model when it is prepared.

    Raises:
        ValueError: they do not fit; key, rule, value and remedy are named.
    """
    task, inputs, head = data.task, model.inputs, model.head
    if inputs.kind != INPUTS[task.kind]:
        raise ValueError(
            f"model.inputs.kind must be {INPUTS[task.kind]} for data.task.kind={task.kind}; "
            f"got {inputs.kind}."
        )
    answers = "language" if task.kind == "language" else "classes"
    if head.kind != answers:
        raise ValueError(
            f"model.head.kind must be {answers} for data.task.kind={task.kind}; got {head.kind}."
        )
    if task.kind == "language" and model.attention.mask.kind != "causal":
        raise ValueError(
            "model.attention.mask.kind must be causal for data.task.kind=language: every token of "
            f"a document is predicted and scored, and {model.attention.mask.kind} shows some of "
            "them."
        )
    if isinstance(inputs, TokenInputs):
        if task.kind == "language" or task.kind == "text_classes":
            _check_tokenizer(task, inputs)
        if task.kind == "language":
            _check_packing(task, inputs)
    if inputs.kind == "patches" and data.source.kind == "image_folder":
        source = data.source
        given = (source.height, source.width, source.channels)
        if (inputs.height, inputs.width, inputs.channels) != given:
            raise ValueError(
                "model.inputs.height, width and channels must be those of data.source; got "
                f"{(inputs.height, inputs.width, inputs.channels)}, the images become {given}."
            )


def _check_tokenizer(task: Language | TextClasses, inputs: TokenInputs) -> None:
    if task.tokenizer.kind == "byte_bpe" and inputs.vocabulary < task.tokenizer.vocabulary:
        asked = task.tokenizer.vocabulary
        raise ValueError(
            "model.inputs.vocabulary must be at least data.task.tokenizer.vocabulary; "
            f"got {inputs.vocabulary} < {asked}. Try model.inputs.vocabulary={asked}."
        )


def _check_packing(task: Language, inputs: TokenInputs) -> None:
    if task.packing.kind == "windows":
        return
    if task.packing.length > inputs.context:
        raise ValueError(
            "data.task.packing.length must be at most model.inputs.context; "
            f"got {task.packing.length} > {inputs.context}. "
            f"Try data.task.packing.length={inputs.context}."
        )
    trained = task.tokenizer.kind == "byte_bpe"
    wrong = inputs.separator != END_TOKEN if trained else inputs.separator is None
    if task.packing.kind == "packed" and wrong:
        raise ValueError(
            "model.inputs.separator must be the end mark for data.task.packing.kind=packed, or "
            f"documents of a row would see one another; got {inputs.separator}. Try "
            f"{f'model.inputs.separator={END_TOKEN}' if trained else 'the number of its token'}."
        )
