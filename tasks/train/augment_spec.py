"""What training does to its samples before they are read: the `augment` section."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from models.spec import ConstantCurve, Curve, Spec


class Crop(Spec):
    """Pad an image with zeros and cut the old size out of it at a random place.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2.
    """

    padding: int = Field(ge=1, description="pixels on each side")
    strength: Curve = Field(ConstantCurve(), description="multiplies the padding, step by step")


class Flip(Spec):
    """Exchange left and right of an image."""

    share: float = Field(0.5, gt=0, le=1, description="of the images")
    strength: Curve = Field(ConstantCurve(), description="multiplies the share, step by step")


class Colour(Spec):
    """``b (m + c (x - m))``, cut off at 0 and 1, with m the mean of the image.

    Factors b and c are uniform in ``1 - brightness .. 1 + brightness`` and likewise for contrast
    (Howard 2013, arXiv:1312.5402, section 2.1).
    """

    brightness: float = Field(0.0, ge=0, le=1, description="largest change of the factor b")
    contrast: float = Field(0.0, ge=0, le=1, description="largest change of the factor c")
    strength: Curve = Field(ConstantCurve(), description="multiplies both, step by step")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.brightness and not self.contrast:
            raise ValueError(
                "augment.colour must change something; got brightness=0, contrast=0. "
                "Try 0.2 of each, or leave the section out."
            )
        return self


class Erasing(Spec):
    """Replace a rectangle of an image by noise, uniform in 0..1 (Zhong et al. 2017).

    The rectangle's share of the image and the logarithm of height over width are uniform; a side
    that is longer than the image is cut off, where arXiv:1708.04896, algorithm 1, draws anew.
    """

    share: float = Field(0.5, gt=0, le=1, description="of the images")
    least: float = Field(0.02, gt=0, le=1, description="smallest area, as a share of the image")
    most: float = Field(0.4, gt=0, le=1, description="largest area, as a share of the image")
    ratio: float = Field(0.3, gt=0, le=1, description="height over width is in ratio .. 1 / ratio")
    strength: Curve = Field(ConstantCurve(), description="multiplies the share, step by step")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(
                "augment.erasing.least must be at most augment.erasing.most; "
                f"got {self.least} > {self.most}."
            )
        return self


class MixUp(Spec):
    """``share * sample + (1 - share) * another``, both targets alike (Zhang et al. 2018).

    The share is drawn from ``Beta(alpha, alpha)`` for each sample (arXiv:1710.09412, section 2).
    """

    alpha: float = Field(0.2, gt=0, description="small: nearly one sample; 1: any share")
    share: float = Field(1.0, gt=0, le=1, description="of the samples")
    strength: Curve = Field(ConstantCurve(), description="multiplies the share, step by step")


class CutMix(Spec):
    """A rectangle of another image in its place, targets by area (Yun et al. 2019).

    The area is ``1 - Beta(alpha, alpha)`` of the image before it is cut off at the borders, in the
    form of the image (arXiv:1905.04899, section 3.1).
    """

    alpha: float = Field(1.0, gt=0, description="1: any area alike")
    share: float = Field(0.5, gt=0, le=1, description="of the samples")
    strength: Curve = Field(ConstantCurve(), description="multiplies the share, step by step")


class Jitter(Spec):
    """Add normal noise to each value of each frame (Um et al. 2017, arXiv:1706.00527)."""

    deviation: float = Field(gt=0, description="standard deviation, in units of the values")
    strength: Curve = Field(ConstantCurve(), description="multiplies the deviation, step by step")


class TimeMask(Spec):
    """Set stretches of frames to zero (SpecAugment: Park et al. 2019, arXiv:1904.08779, section 2).

    The length of a stretch is uniform in ``0 .. longest``, and so is its place.
    """

    count: int = Field(1, ge=1, description="stretches of each sequence; they may overlap")
    longest: int = Field(ge=1, description="frames of a stretch, at most")
    strength: Curve = Field(ConstantCurve(), description="multiplies longest, step by step")


class SpanMask(Spec):
    """Replace spans of the tokens that a model reads, never of those that it is to say.

    A span begins at each position with the same chance, which is such that a position is hidden
    with chance `share`; spans may overlap (Baevski et al. 2020, arXiv:2006.11477, section 3.1).
    """

    share: float = Field(gt=0, lt=1, description="of the positions")
    span: int = Field(1, ge=1, description="neighbouring tokens that are hidden together")
    token: int = Field(ge=0, description="what stands there instead")
    keep: tuple[int, ...] = Field((), description="tokens that are never hidden: an end mark")
    strength: Curve = Field(ConstantCurve(), description="multiplies the share, step by step")


class AugmentSpec(Spec):
    """What happens to training samples, in this order; evaluation never sees it.

    A sample is either mixed (mixup), or pasted into (cutmix), or neither; its partner is any sample
    of the step's batch and has been through everything in front of it.
    """

    crop: Crop | None = Field(None, description="move an image a little")
    flip: Flip | None = Field(None, description="mirror an image")
    colour: Colour | None = Field(None, description="another brightness and contrast")
    erasing: Erasing | None = Field(None, description="noise in a rectangle of an image")
    jitter: Jitter | None = Field(None, description="noise on frames")
    time_mask: TimeMask | None = Field(None, description="stretches of frames without values")
    span_mask: SpanMask | None = Field(None, description="spans of tokens that are hidden")
    mixup: MixUp | None = Field(None, description="two samples laid over each other")
    cutmix: CutMix | None = Field(None, description="a piece of another image")

    @model_validator(mode="after")
    def _shares(self) -> Self:
        shares = [part.share for part in (self.mixup, self.cutmix) if part is not None]
        if sum(shares) > 1:
            raise ValueError(
                "augment.mixup.share + augment.cutmix.share must be at most 1, for a sample has "
                f"one partner; got {' + '.join(map(str, shares))}. Try 0.5 of each."
            )
        return self
