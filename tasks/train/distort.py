"""What augmentation does to a sample by itself: pure functions of samples and keyed words.

Each takes values with the batch first and gives as many back. A row depends on its own sample and
the moment alone, so it is the same bytes in any batch and on any worker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import random
from models.curves import share as share_of
from models.random import SECOND_VIEW, Site
from models.spec import Curve
from tasks.prepare.batch import Batch
from tasks.train.augment_spec import (
    AugmentSpec,
    Colour,
    Crop,
    Erasing,
    Flip,
    Jitter,
    SpanMask,
    TimeMask,
)

Array = NDArray[Any]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """When, and in which view, samples are looked at: what their words are keyed by.

    Attributes:
        seed: 0 .. 2**32 - 1.
        step: training step, 0 .. total_steps - 1.
        total_steps: of the run; curves are laid on it.
        second: another look at the same samples.
    """

    seed: int
    step: int
    total_steps: int
    second: bool = False

    def uniforms(self, samples: Indices, site: Site, count: int) -> NDArray[np.float64]:
        """Numbers inside 0..1, never at its ends, (B, count)."""
        step = self.step ^ (SECOND_VIEW if self.second else 0)
        keys = random.stream_keys(seed=self.seed, step=step, samples=samples, layer=0, site=site)
        return (random.words(keys, count) + 0.5) / 2**32

    def strength(self, curve: Curve) -> float:
        """What a curve is worth now, 0..1."""
        return share_of(curve, step=self.step, total_steps=self.total_steps)


def distorted(spec: AugmentSpec, batch: Batch, moment: Moment) -> Array:
    """The inputs of a batch after everything that needs no other sample."""
    inputs = batch.inputs
    if spec.crop is not None:
        inputs = crop(spec.crop, inputs, batch.samples, moment)
    if spec.flip is not None:
        inputs = flip(spec.flip, inputs, batch.samples, moment)
    if spec.colour is not None:
        inputs = colour(spec.colour, inputs, batch.samples, moment)
    if spec.erasing is not None:
        inputs = erase(spec.erasing, inputs, batch.samples, moment)
    if spec.jitter is not None:
        inputs = jitter(spec.jitter, inputs, batch.samples, moment, batch.lengths)
    if spec.time_mask is not None:
        inputs = mask_time(spec.time_mask, inputs, batch.samples, moment, batch.lengths)
    if spec.span_mask is not None:
        inputs = mask_spans(spec.span_mask, inputs, batch.samples, moment, batch.lengths)
    return inputs


def crop(spec: Crop, images: Array, samples: Indices, moment: Moment) -> Array:
    """Move each image by up to the padding in both directions; zeros come in."""
    padding = round(spec.padding * moment.strength(spec.strength))
    drawn = moment.uniforms(samples, Site.CROP, 2)
    first = _integers(drawn, 2 * padding)
    rows, columns = (first[:, axis, None] + np.arange(images.shape[axis + 1]) for axis in range(2))
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    image = np.arange(len(images))[:, None, None]
    cut: Array = padded[image, rows[:, :, None], columns[:, None, :]]
    return cut


def flip(spec: Flip, images: Array, samples: Indices, moment: Moment) -> Array:
    """Exchange left and right of a share of the images."""
    share = spec.share * moment.strength(spec.strength)
    turned = moment.uniforms(samples, Site.FLIP, 1)[:, 0] < share
    return np.where(turned[:, None, None, None], images[:, :, ::-1], images)


def colour(spec: Colour, images: Array, samples: Indices, moment: Moment) -> Array:
    """Change contrast, then brightness, of each image."""
    strength = moment.strength(spec.strength)
    around = 2.0 * moment.uniforms(samples, Site.COLOUR, 2) - 1.0
    factors = 1.0 + strength * np.array([spec.brightness, spec.contrast]) * around
    brightness, contrast = (factors[:, place, None] for place in range(2))
    values = images.reshape(len(images), -1).astype(np.float64)
    mean = values.mean(axis=1, keepdims=True)
    changed = brightness * (mean + contrast * (values - mean))
    seen: Array = changed.clip(0.0, 1.0).astype(images.dtype).reshape(images.shape)
    return seen


def erase(spec: Erasing, images: Array, samples: Indices, moment: Moment) -> Array:
    """Fill a rectangle in a share of the images with noise."""
    height, width = images.shape[1:3]
    drawn = moment.uniforms(samples, Site.ERASING, 5)
    chosen = np.flatnonzero(drawn[:, 0] < spec.share * moment.strength(spec.strength))
    drawn = drawn[chosen]
    area = (spec.least + (spec.most - spec.least) * drawn[:, 1]) * height * width
    ratio = spec.ratio ** (1.0 - 2.0 * drawn[:, 2])
    tall = np.rint(np.sqrt(area * ratio)).clip(1, height).astype(np.int64)
    wide = np.rint(np.sqrt(area / ratio)).clip(1, width).astype(np.int64)
    top, left = _integers(drawn[:, 3], height - tall), _integers(drawn[:, 4], width - wide)
    inside = rectangles(height, width, top=top, left=left, tall=tall, wide=wide)
    size = math.prod(images.shape[1:])
    noise = moment.uniforms(samples[chosen], Site.ERASING, 5 + size)[:, 5:]
    erased = images.copy()
    erased[chosen] = np.where(
        inside[..., None], noise.astype(images.dtype).reshape(-1, *images.shape[1:]), images[chosen]
    )
    return erased


def jitter(
    spec: Jitter, frames: Array, samples: Indices, moment: Moment, lengths: Array | None
) -> Array:
    """Add normal noise (Box & Muller 1958) to each value; padding stays."""
    size = math.prod(frames.shape[1:])
    pairs = moment.uniforms(samples, Site.NOISE, 2 * size).reshape(len(frames), size, 2)
    normal = np.sqrt(-2.0 * np.log(pairs[..., 0])) * np.cos(2.0 * np.pi * pairs[..., 1])
    noise = spec.deviation * moment.strength(spec.strength) * normal.reshape(frames.shape)
    counted = _counted(frames, lengths)[..., None]
    return np.where(counted, (frames + noise).astype(frames.dtype), frames)


def mask_time(
    spec: TimeMask, frames: Array, samples: Indices, moment: Moment, lengths: Array | None
) -> Array:
    """Set stretches of each sequence to zero."""
    ends = _counted(frames, lengths).sum(axis=1)
    longest = round(spec.longest * moment.strength(spec.strength))
    drawn = moment.uniforms(samples, Site.TIME_MASK, 2 * spec.count)
    frame, hidden = np.arange(frames.shape[1]), np.zeros(frames.shape[:2], bool)
    for place in range(spec.count):
        length = np.minimum(_integers(drawn[:, 2 * place], longest), ends)
        first = _integers(drawn[:, 2 * place + 1], ends - length)[:, None]
        hidden |= (frame >= first) & (frame < first + length[:, None])
    return np.where(hidden[..., None], np.zeros((), frames.dtype), frames)


def mask_spans(
    spec: SpanMask, tokens: Array, samples: Indices, moment: Moment, lengths: Array | None
) -> Array:
    """Put one token in the place of spans of others; padding stays."""
    share = spec.share * moment.strength(spec.strength)
    begins = 1.0 - (1.0 - share) ** (1.0 / spec.span)
    # A span may have begun in front of the row.
    count = tokens.shape[1] + spec.span - 1
    begun = moment.uniforms(samples, Site.SPAN_MASK, count) < begins
    hidden = np.lib.stride_tricks.sliding_window_view(begun, spec.span, axis=1).any(axis=-1)
    hidden &= _counted(tokens, lengths) & ~np.isin(tokens, spec.keep)
    return np.where(hidden, np.asarray(spec.token, tokens.dtype), tokens)


def rectangles(
    height: int, width: int, *, top: Array, left: Array, tall: Array, wide: Array
) -> NDArray[np.bool_]:
    """Which pixels of (B, height, width) lie in each image's rectangle; its corners are (B,)."""
    row, column = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    top, left, tall, wide = (side[:, None, None] for side in (top, left, tall, wide))
    inside: NDArray[np.bool_]
    inside = (row >= top) & (row < top + tall) & (column >= left) & (column < left + wide)
    return inside


def _counted(rows: Array, lengths: Array | None) -> NDArray[np.bool_]:
    """Which places of (B, T, ...) are not padding, (B, T)."""
    ends = np.full(len(rows), rows.shape[1]) if lengths is None else lengths
    counted: NDArray[np.bool_] = np.arange(rows.shape[1]) < ends[:, None]
    return counted


def _integers(drawn: Array, largest: Array | int) -> Indices:
    """From numbers inside 0..1 to 0 .. largest, each alike."""
    whole: Indices = np.floor(drawn * (np.asarray(largest) + 1)).astype(np.int64)
    return whole
