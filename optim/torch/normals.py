"""Normal numbers for the values of one weight; definition in `optim.reference.normals`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.torch.random import Keys, words


def normals(keys: Keys, weight: Tensor) -> Tensor:
    """Standard normal numbers of one stream, in the shape and type of a weight."""
    size = weight.numel()
    half = (size + 1) // 2
    wide = torch.promote_types(weight.dtype, torch.float32)
    first, second = unsigned(words(keys, 2 * half)[0]).reshape(2, half).to(wide)
    radius = torch.sqrt(-2 * torch.log((first + 0.5) / 2**32))
    angle = 2 * math.pi * second / 2**32
    both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
    return both[:size].reshape(weight.shape).to(weight.dtype)


def unsigned(words: Tensor) -> Tensor:
    """Words as they are counted, 0 .. 2**32 - 1, in int64."""
    return words.to(torch.int64) & 0xFFFFFFFF
