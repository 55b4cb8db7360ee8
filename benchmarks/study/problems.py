"""What the study trains on: the standard library's bytes and scikit-learn's digits."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.record import digest_of
from models.spec import (
    AttentionSpec,
    Bidirectional,
    ClassHead,
    DropoutSpec,
    Gated,
    InitSpec,
    LanguageHead,
    LayerNorm,
    LearnedPositions,
    ModelSpec,
    Normal,
    PatchInputs,
    Plain,
    RmsNorm,
    Rope,
    TokenInputs,
)
from tasks.prepare.dataset import Images, Samples, Windows
from tasks.prepare.sources import find_text
from tasks.prepare.spec import StandardLibrary

CONTEXT = 64
# One document in so many is held out, by the digest of its name; one image in so many by its place.
HELD_OUT_TEXT, HELD_OUT_IMAGES = 10, 4


class Problem(NamedTuple):
    """Data, a model for it and a budget.

    Attributes:
        name: in `PROBLEMS`.
        title: for people.
        unit: of the loss.
        data: SHA-256 of all samples.
        batch: samples of a step, B.
        steps: at scale 1.
        validation_batches: what is measured in the end, in batches.
    """

    name: str
    title: str
    unit: str
    model: ModelSpec
    data: str
    training: Samples
    validation: Samples
    batch: int
    steps: int
    validation_batches: int

    @property
    def digest(self) -> str:
        """Of everything that is the same for all rules, 64 hex digits."""
        held = (self.name, self.model.model_dump(mode="json"), self.data)
        return digest_of([*held, self.batch, self.validation_batches])


@functools.cache
def open_problem(name: str) -> Problem:
    """Read the data of a problem, once in a process.

    Raises:
        ValueError: no problem has this name.
    """
    if name not in PROBLEMS:
        raise ValueError(f"a problem is one of {', '.join(PROBLEMS)}; got {name}.")
    return PROBLEMS[name]()


def text() -> Problem:
    """A decoder of 103 thousand weights that reads bytes; a NUL ends each document."""
    found = find_text(StandardLibrary(), root=Path())
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for file in found.files:
        for document in found.read(file):
            number = int(hashlib.sha256(document.name.encode()).hexdigest(), 16)
            parts[number % HELD_OUT_TEXT == 0].append(document.text.encode() + b"\0")
    held_out, trained = (b"".join(parts[which]) for which in (True, False))
    model = ModelSpec(
        inputs=TokenInputs(vocabulary=256, context=CONTEXT),
        width=64,
        layers=2,
        positions=Rope(),
        attention=AttentionSpec(heads=4, key_value_heads=2),
        feed_forward=Gated(hidden=160),
        norm=RmsNorm(),
        head=LanguageHead(tied=True),
    )
    return Problem(
        name="text",
        title=f"bytes of the {found.title}",
        unit="nats per byte",
        model=model,
        data=hashlib.sha256(trained + held_out).hexdigest(),
        training=Windows(np.frombuffer(trained, np.uint8), CONTEXT),
        validation=Windows(np.frombuffer(held_out, np.uint8), CONTEXT),
        batch=16,
        steps=600,
        validation_batches=16,
    )


def digits() -> Problem:
    """A vision transformer of 46 thousand weights, with what the image preset starts from."""
    from sklearn.datasets import load_digits

    found = load_digits()
    # Sixteen grey levels above black: sixteenths are exact in float32.
    pixels = (found.images / 16).astype(np.float32)[..., None]
    labels = found.target.astype(np.int32)
    held_out = np.arange(len(labels)) % HELD_OUT_IMAGES == 0
    model = ModelSpec(
        inputs=PatchInputs(height=8, width=8, channels=1, patch=2),
        width=48,
        layers=2,
        positions=LearnedPositions(),
        attention=AttentionSpec(
            heads=4, key_value_heads=4, mask=Bidirectional(), bias=True, output_bias=True
        ),
        feed_forward=Plain(hidden=128),
        norm=LayerNorm(),
        head=ClassHead(classes=10),
        dropout=DropoutSpec(residual=0.1),
        init=InitSpec(matrix=Normal(std=0.1)),
    )
    return Problem(
        name="digits",
        title="handwritten digits of scikit-learn",
        unit="nats per image",
        model=model,
        data=hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest(),
        training=Images(pixels[~held_out], labels[~held_out]),
        validation=Images(pixels[held_out], labels[held_out]),
        batch=64,
        steps=600,
        validation_batches=7,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {"text": text, "digits": digits}
