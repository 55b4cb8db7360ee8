"""One randomness: a counter-based generator on 32-bit integers.

Nothing here has a state. A number is a function of its key alone, so a resume, another layout, or
the other framework draws the same bits. `models.flax.random` and `models.torch.random` compute
the same integers with their own arrays; this module is the definition.

A draw has two parts. Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3") turns (seed, layer, site, step, sample) into a 64-bit stream key. Two rounds
of a 32-bit bijective mixer then turn (stream key, index) into one word per element, at a tenth of
the cost.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
GOLDEN = 0x9E3779B9
MIX = (0x7FEB352D, 0x846CA68B)
# A step that looks at its samples twice flips this bit of the step in the second view's keys; no
# run has as many steps.
SECOND_VIEW = 2**31


@unique
class Site(IntEnum):
    """Where a number is used. A site's value is part of its key and never changes."""

    INITIAL_WEIGHT = 1
    DATA_ORDER = 2
    EMBEDDING_DROPOUT = 3
    ATTENTION_DROPOUT = 4
    FEED_FORWARD_DROPOUT = 5
    SAMPLING = 6
    BOOTSTRAP = 7
    TOKEN_DROPOUT = 8
    TEMPORAL_DROPOUT = 9
    SCORE_DROPOUT = 10
    HIDDEN_DROPOUT = 11
    SHARED_DROPOUT = 12
    ATTENTION_PATH = 13
    FEED_FORWARD_PATH = 14
    HEAD_DROPOUT = 15
    ROUTER_JITTER = 16
    CURVATURE_LABEL = 17
    CURVATURE_PROBE = 18
    CROP = 19
    FLIP = 20
    COLOUR = 21
    ERASING = 22
    MIX = 23
    NOISE = 24
    TIME_MASK = 25
    SPAN_MASK = 26
    DISTURBANCE = 27
    GRADIENT_NOISE = 28


def threefry2x32(
    key: tuple[int, int | NDArray[np.int64]], counter: tuple[Words, Words]
) -> tuple[Words, Words]:
    """Threefry-2x32-20: a keyed bijection of two 32-bit words; keys and counters broadcast.

    >>> zero = np.zeros(1, np.uint32)
    >>> [hex(int(word[0])) for word in threefry2x32((0, 0), (zero, zero))]
    ['0x6b200159', '0x99ba4efe']
    """
    given = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    keys = [np.asarray(word & 0xFFFFFFFF).astype(np.uint32) for word in given]
    first, second = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            first = first + second
            second = (second << np.uint32(rotation)) | (second >> np.uint32(32 - rotation))
            second = second ^ first
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3]
        second = second + np.uint32(group + 1)
    return first, second


def mix(words: Words) -> Words:
    """A bijection of 32-bit words with low bias ("lowbias32", C. Wellons 2018)."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(MIX[0])
    words = (words ^ (words >> np.uint32(15))) * np.uint32(MIX[1])
    return words ^ (words >> np.uint32(16))


def stream_keys(
    *, seed: int, step: int, samples: NDArray[np.int64], layer: int | NDArray[np.int64], site: int
) -> tuple[Words, Words]:
    """The stream key of each sample.

    Args:
        seed: 0 .. 2**32 - 1.
        step: training step, 0 .. 2**32 - 1.
        samples: index of each sample in the global batch or data set, (B,), 0 .. 2**32 - 1.
        layer: 0 .. 2**16 - 1; or several of them, (L, 1).
        site: a `Site`.

    Returns:
        Two words for each sample, each (B,); or (L, B).
    """
    counter = (np.full(len(samples), step, np.uint32), samples.astype(np.uint32))
    return threefry2x32((seed, (layer << 16) | site), counter)


def words(keys: tuple[Words, Words], count: int) -> Words:
    """`count` words for each stream, (B, count)."""
    index = np.arange(count, dtype=np.uint32) * np.uint32(GOLDEN)
    return mix(mix(index[None, :] ^ keys[0][:, None]) ^ keys[1][:, None])


def threshold(share: float) -> int:
    """A word below this number is dropped; at most 2**-32 off the share asked for."""
    return min(round(share * 2**32), 2**32 - 1)


def normal(*, seed: int, name: str, count: int) -> NDArray[np.float64]:
    """Standard normal numbers of the stream called `name` (Box & Muller 1958), (count,)."""
    first, second = _pairs(seed=seed, name=name, count=(count + 1) // 2)
    radius, angle = np.sqrt(-2.0 * np.log(first)), 2.0 * np.pi * (second - 0.5 / 2**32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def uniform(*, seed: int, name: str, count: int) -> NDArray[np.float64]:
    """Numbers inside 0..1, never at its ends, of the stream called `name`, (count,)."""
    return np.concatenate(_pairs(seed=seed, name=name, count=(count + 1) // 2))[:count]


def _pairs(*, seed: int, name: str, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    stream = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    counter = (np.arange(count, dtype=np.uint32), np.full(count, stream, np.uint32))
    first, second = threefry2x32((seed, int(Site.INITIAL_WEIGHT)), counter)
    return (first.astype(np.float64) + 0.5) / 2**32, (second.astype(np.float64) + 0.5) / 2**32
