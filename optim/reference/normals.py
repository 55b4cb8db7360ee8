"""Normal numbers for the values of one weight."""

from __future__ import annotations

import hashlib

import numpy as np

from models import random
from models.random import Words
from optim.reference.now import Array


def stream_of(name: str) -> int:
    """The number of a weight's stream, 0 .. 2**32 - 1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def normals(keys: tuple[Words, Words], shape: tuple[int, ...]) -> Array:
    """Standard normal numbers of one stream (Box & Muller 1958, eq. 2)."""
    count = int(np.prod(shape))
    half = (count + 1) // 2
    first, second = random.words(keys, 2 * half)[0].reshape(2, half)
    radius = np.sqrt(-2 * np.log((first + 0.5) / 2**32))
    angle = 2 * np.pi * second / 2**32
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return both[:count].reshape(shape)
