"""What augmentation does to the samples of a step, on the host, for both frameworks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from models.random import Site
from models.spec import ModelSpec
from tasks.prepare.batch import Batch
from tasks.train.augment_spec import AugmentSpec
from tasks.train.distort import Array, Indices, Moment, distorted, rectangles

# The sections that each kind of inputs knows.
SECTIONS = {
    "patches": {"crop", "flip", "colour", "erasing", "mixup", "cutmix"},
    "frames": {"jitter", "time_mask", "mixup"},
    "tokens": {"span_mask"},
}


@dataclass(frozen=True)
class Mixing:
    """Which rows of a batch are mixed, and how.

    Attributes:
        rows: that get a partner, (M,).
        partners: sample of each, (M,).
        shares: of the row's own sample, 0..1, (M,).
        pasted: pixels that are the partner's, (M, height, width), where a piece is pasted in;
            None: no row of the batch has one.
        blended: rows that are laid over each other instead, (M,).
    """

    rows: Indices
    partners: Indices
    shares: NDArray[np.float64]
    pasted: NDArray[np.bool_] | None
    blended: NDArray[np.bool_]


def augment(
    spec: AugmentSpec,
    batch: Batch,
    *,
    seed: int,
    step: int,
    total_steps: int,
    together: Indices,
    read: Callable[[Indices], Batch],
    twice: bool = False,
) -> Batch:
    """The batch that training sees.

    A row is a function of the seed, the step, its sample and the samples of the step alone: any
    split of the step's batch over workers gives the same bytes.

    Args:
        batch: rows of the step's batch, all of them or one worker's.
        total_steps: of the run; curves are laid on it.
        together: every sample of the step's batch over all workers, in order.
        read: gives samples as the data set holds them; asked for partners on other workers, too.
        twice: show the samples a second time, as `again`, with words of its own; partners, shares
            and pieces are those of the first view.

    Returns:
        The batch with changed inputs. Where samples are mixed at all it has `others` and `shares`;
        a row that is not mixed has its own target as the other. Two sequences laid over each other
        are as long as the longer one.
    """
    first = Moment(seed, step, total_steps)
    looks = (first, replace(first, second=True)) if twice else (first,)
    shown = [distorted(spec, batch, look) for look in looks]
    others, shares, lengths = batch.others, batch.shares, batch.lengths
    if spec.mixup is not None or spec.cutmix is not None:
        mixing = _mixing(spec, batch, first, together=together)
        others, shares = batch.targets.copy(), np.ones(len(batch.samples))
        if len(mixing.rows):
            beside = read(mixing.partners)
            shown = [
                _mixed(inputs, distorted(spec, beside, look), mixing)
                for inputs, look in zip(shown, looks, strict=True)
            ]
            others[mixing.rows], shares[mixing.rows] = beside.targets, mixing.shares
            if lengths is not None and beside.lengths is not None:
                lengths = lengths.copy()
                lengths[mixing.rows] = np.maximum(lengths[mixing.rows], beside.lengths)
    return replace(
        batch,
        inputs=shown[0],
        lengths=lengths,
        others=others,
        shares=shares,
        again=shown[1] if twice else None,
    )


def check_augment(spec: AugmentSpec, model: ModelSpec) -> None:
    """Hold the section against the model that reads the samples.

    Raises:
        ValueError: a section is of other inputs, mixes what has no class, or hides a token that
            the model looks for.
    """
    kind = model.inputs.kind
    for name in AugmentSpec.model_fields:
        if getattr(spec, name) is None:
            continue
        if name not in SECTIONS[kind]:
            fitting = [own for own, names in SECTIONS.items() if name in names]
            raise ValueError(
                f"augment.{name} needs model.inputs.kind={' or '.join(fitting)}; got {kind}. "
                "Leave it out."
            )
    if spec.span_mask is not None and model.inputs.kind == "tokens":
        vocabulary, mask = model.inputs.vocabulary, model.attention.mask
        if spec.span_mask.token >= vocabulary:
            raise ValueError(
                "augment.span_mask.token must be a token, 0..vocabulary - 1; "
                f"got token={spec.span_mask.token}, vocabulary={vocabulary}."
            )
        looked_for = {model.inputs.separator, mask.end if mask.kind == "prefix" else None} - {None}
        for token in sorted(token for token in looked_for if token is not None):
            if token == spec.span_mask.token or token not in spec.span_mask.keep:
                raise ValueError(
                    f"augment.span_mask must neither hide nor write token {token}, by which the "
                    f"model tells documents or prompts; got token={spec.span_mask.token}, "
                    f"keep={list(spec.span_mask.keep)}. Add it to keep."
                )


def _mixing(spec: AugmentSpec, batch: Batch, moment: Moment, *, together: Indices) -> Mixing:
    """Draw who is mixed with whom."""
    shares, alphas = np.zeros(2), np.ones(2)
    for place, part in enumerate((spec.mixup, spec.cutmix)):
        if part is not None:
            shares[place] = part.share * moment.strength(part.strength)
            alphas[place] = part.alpha
    drawn = moment.uniforms(batch.samples, Site.MIX, 5)
    rows = np.flatnonzero(drawn[:, 0] < shares.sum())
    drawn = drawn[rows]
    blended = drawn[:, 0] < shares[0]
    partners = together[np.floor(drawn[:, 1] * len(together)).astype(np.int64)]
    own = betaincinv(alphas[1 - blended], alphas[1 - blended], drawn[:, 2])
    if spec.cutmix is None:
        return Mixing(rows, partners, own, None, blended)
    pasted = _pieces(batch.inputs.shape, own, drawn[:, 3:])
    kept = 1.0 - pasted.mean(axis=(1, 2))
    return Mixing(rows, partners, np.where(blended, own, kept), pasted, blended)


def _pieces(shape: tuple[int, ...], kept: Array, centre: Array) -> NDArray[np.bool_]:
    """A rectangle in the form of the image around each centre, cut off at the borders."""
    height, width = shape[1:3]
    side = np.sqrt(1.0 - kept)
    tall, wide = (np.floor(side * length).astype(np.int64) for length in (height, width))
    top = np.floor(centre[:, 0] * height).astype(np.int64) - tall // 2
    left = np.floor(centre[:, 1] * width).astype(np.int64) - wide // 2
    return rectangles(height, width, top=top, left=left, tall=tall, wide=wide)


def _mixed(inputs: Array, beside: Array, mixing: Mixing) -> Array:
    """Lay partners over rows, or paste pieces of them in."""
    mixed, own = inputs.copy(), inputs[mixing.rows]
    share = mixing.shares.reshape(-1, *[1] * (inputs.ndim - 1))
    blended = mixing.blended.reshape(share.shape)
    laid = np.where(blended, share * own + (1.0 - share) * beside, own).astype(inputs.dtype)
    if mixing.pasted is not None:
        laid = np.where(mixing.pasted[..., None] & ~blended, beside, laid)
    mixed[mixing.rows] = laid
    return mixed
