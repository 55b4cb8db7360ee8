"""What augmentation does is a law of each section, and the same bytes on any worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.presets import tiny_image, tiny_language
from models.spec import (
    AttentionSpec,
    FrameInputs,
    LinearCurve,
    ModelSpec,
    Prefix,
    TokenInputs,
)
from tasks.prepare.batch import Batch
from tasks.train.augment import augment, check_augment
from tasks.train.augment_spec import (
    AugmentSpec,
    Colour,
    Crop,
    CutMix,
    Erasing,
    Flip,
    Jitter,
    MixUp,
    SpanMask,
    TimeMask,
)

Array = NDArray[Any]
TOTAL = 10
IMAGES, FRAMES, TOKENS = (600, 6, 8, 3), (600, 12, 5), (600, 40)
FADING = LinearCurve()


@dataclass(frozen=True)
class Held:
    """Samples in memory."""

    inputs: Array
    targets: NDArray[np.int32]
    lengths: NDArray[np.int64] | None = None

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Rows in the order asked for."""
        lengths = None if self.lengths is None else self.lengths[indices]
        return Batch(self.inputs[indices], self.targets[indices], indices, lengths=lengths)


def held(shape: tuple[int, ...]) -> Held:
    """Samples of a shape: pixels and frames in 0.05..0.95, or tokens 1..99."""
    generator = np.random.default_rng(0)
    if len(shape) == 2:
        tokens = generator.integers(1, 100, shape).astype(np.int32)
        return Held(tokens, np.roll(tokens, -1, axis=1))
    inputs = generator.uniform(0.05, 0.95, shape).astype(np.float32)
    return Held(inputs, generator.integers(0, 10, shape[0]).astype(np.int32))


def seen(
    samples: Held,
    *,
    seed: int = 3,
    step: int = 0,
    workers: int = 1,
    twice: bool = False,
    count: int | None = None,
    **sections: Any,
) -> Batch:
    """The batch of a step, put together from what each worker makes of its rows."""
    together = np.arange(len(samples.inputs), dtype=np.int64)[:count][::-1]
    parts = [
        augment(
            AugmentSpec(**sections),
            samples.read(rows),
            seed=seed,
            step=step,
            total_steps=TOTAL,
            together=together,
            read=samples.read,
            twice=twice,
        )
        for rows in np.split(together, workers)
    ]
    return Batch(**{name: _joined([getattr(part, name) for part in parts]) for name in NAMES})


NAMES = tuple(Batch.__dataclass_fields__)


def _joined(parts: list[Array | None]) -> Any:
    return (
        None if parts[0] is None else np.concatenate([part for part in parts if part is not None])
    )


PIXELS, STEPS, WORDS = held(IMAGES), held(FRAMES), held(TOKENS)
EVERYTHING: dict[str, tuple[Held, dict[str, Any]]] = {
    "images": (
        PIXELS,
        {
            "crop": Crop(padding=2),
            "flip": Flip(),
            "colour": Colour(brightness=0.4, contrast=0.4),
            "erasing": Erasing(),
            "mixup": MixUp(share=0.4),
            "cutmix": CutMix(share=0.4),
        },
    ),
    "frames": (
        replace(STEPS, lengths=np.arange(600) % 12 + 1),
        {"jitter": Jitter(deviation=0.1), "time_mask": TimeMask(count=2, longest=5)},
    ),
    "frames of one length": (STEPS, {"jitter": Jitter(deviation=0.1), "mixup": MixUp(alpha=1.0)}),
    "tokens": (WORDS, {"span_mask": SpanMask(share=0.3, span=3, token=0)}),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_any_number_of_workers_makes_the_same_bytes(name: str) -> None:
    samples, sections = EVERYTHING[name]
    alone = seen(samples, count=24, twice=True, **sections)
    assert not np.array_equal(alone.inputs, samples.read(alone.samples).inputs)
    for workers in (2, 24):
        shared = seen(samples, workers=workers, count=24, twice=True, **sections)
        for part in NAMES:
            assert np.asarray(getattr(shared, part)).tobytes() == (
                np.asarray(getattr(alone, part)).tobytes()
            ), part


@pytest.mark.parametrize("name", EVERYTHING)
def test_seed_step_and_view_draw_anew_and_nothing_else_does(name: str) -> None:
    samples, sections = EVERYTHING[name]
    first = seen(samples, count=24, **sections)
    assert (seen(samples, count=24, **sections).inputs == first.inputs).all()
    both = seen(samples, count=24, twice=True, **sections)
    assert (both.inputs == first.inputs).all() and first.again is None
    for other in (
        seen(samples, count=24, seed=4, **sections).inputs,
        seen(samples, count=24, step=1, **sections).inputs,
        both.again,
    ):
        assert other is not None and (other != first.inputs).any()


@pytest.mark.parametrize("section", [s for _, parts in EVERYTHING.values() for s in parts.items()])
def test_a_curve_at_its_end_leaves_samples_alone(section: tuple[str, Any]) -> None:
    name, part = section
    samples = {"jitter": STEPS, "time_mask": STEPS, "span_mask": WORDS}.get(name, PIXELS)
    fading = part.model_copy(update={"strength": FADING})
    middle = seen(samples, step=TOTAL // 2, **{name: fading})
    end = seen(samples, step=TOTAL - 1, **{name: fading})
    plain = samples.read(end.samples)
    np.testing.assert_allclose(end.inputs, plain.inputs, rtol=1e-6)
    full = seen(samples, step=TOTAL // 2, **{name: part})
    changed = [(batch.inputs != plain.inputs).mean() for batch in (middle, full)]
    moved = [np.abs(batch.inputs - plain.inputs).mean() for batch in (middle, full)]
    assert 0.0 < moved[0] < 0.9 * moved[1] or 0.0 < changed[0] < 0.9 * changed[1]


def test_without_sections_a_batch_stays() -> None:
    found = seen(PIXELS)
    assert (found.inputs == PIXELS.inputs[::-1]).all()
    assert found.others is None and found.shares is None


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    found, offsets = seen(PIXELS, crop=Crop(padding=1)), set()
    for sample, image in zip(found.samples, found.inputs, strict=True):
        padded = np.pad(PIXELS.inputs[sample], ((1, 1), (1, 1), (0, 0)))
        windows = {
            (row, column): padded[row : row + 6, column : column + 8]
            for row, column in np.ndindex(3, 3)
        }
        (offset,) = (place for place, window in windows.items() if (window == image).all())
        offsets.add(offset)
    assert len(offsets) == 9


def test_a_flip_exchanges_left_and_right_of_its_share() -> None:
    found = seen(PIXELS, flip=Flip(share=0.3))
    plain = PIXELS.inputs[found.samples]
    turned = (found.inputs == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (turned | (found.inputs == plain).all(axis=(1, 2, 3))).all()
    assert_share(turned, 0.3)


def test_contrast_keeps_the_mean_and_brightness_the_proportions() -> None:
    found = seen(PIXELS, colour=Colour(contrast=0.05))
    plain = PIXELS.inputs[found.samples]
    flat = (-1, 6 * 8 * 3)
    mean = plain.reshape(flat).mean(axis=1)
    np.testing.assert_allclose(found.inputs.reshape(flat).mean(axis=1), mean, rtol=1e-5)
    factors = found.inputs.reshape(flat).std(axis=1) / plain.reshape(flat).std(axis=1)
    assert_uniform(factors, 0.95, 1.05)

    found = seen(PIXELS, colour=Colour(brightness=0.05))
    factors = (found.inputs / plain).reshape(flat)
    np.testing.assert_allclose(factors, factors[:, :1] + np.zeros(flat[1]), rtol=1e-5)
    assert_uniform(factors[:, 0], 0.95, 1.05)


def test_colours_stay_between_0_and_1() -> None:
    found = seen(PIXELS, colour=Colour(brightness=1.0, contrast=1.0)).inputs
    assert found.min() == 0.0 and found.max() == 1.0


def test_erasing_fills_one_rectangle_of_its_share_with_noise() -> None:
    spec = Erasing(share=0.6, least=0.2, most=0.5, ratio=0.5)
    found = seen(PIXELS, erasing=spec)
    changed = (found.inputs != PIXELS.inputs[found.samples]).any(axis=-1)
    erased = changed.any(axis=(1, 2))
    assert_share(erased, 0.6)
    areas, tops = [], set()
    for image in changed[erased]:
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert image.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        areas.append(image.mean())
        tops |= {(int(rows[0]), int(columns[0]))}
    # Sides are whole pixels.
    assert 0.1 < min(areas) < 0.25 < 0.45 < max(areas) < 0.65
    assert len(tops) > 20
    noise = found.inputs[changed]
    assert_uniform(noise.flatten(), 0.0, 1.0)


def test_jitter_is_normal_noise() -> None:
    found = seen(STEPS, jitter=Jitter(deviation=0.25))
    noise = (found.inputs - STEPS.inputs[found.samples]).flatten() / 0.25
    # Four standard deviations of the moments of as many normal numbers.
    moments = [(noise**power).mean() for power in (1, 2, 3, 4)]
    spread = 4 * np.sqrt(np.array([1, 2, 15, 96]) / noise.size)
    assert (np.abs(np.array(moments) - [0, 1, 0, 3]) < spread).all()


def test_a_time_mask_hides_stretches_inside_the_sequence() -> None:
    lengths = np.array([2, 7, 12])[np.arange(600) % 3]
    found = seen(replace(STEPS, lengths=lengths), time_mask=TimeMask(longest=4))
    hidden = (found.inputs == 0.0).all(axis=-1)
    counts = hidden.sum(axis=1)
    own = found.lengths
    assert own is not None
    assert set(counts[own >= 4]) == {0, 1, 2, 3, 4} and (counts <= own).all()
    assert (np.abs(np.diff(hidden, axis=1)).sum(axis=1) <= 2).all()
    assert not (hidden & (np.arange(12) >= own[:, None])).any()
    touched = hidden[own == 12].any(axis=0)
    assert touched.all()
    plain = STEPS.inputs[found.samples]
    assert (found.inputs[~hidden] == plain[~hidden]).all()


def test_several_time_masks_hide_more() -> None:
    one, three = (
        (seen(STEPS, time_mask=TimeMask(count=count, longest=3)).inputs == 0.0).mean()
        for count in (1, 3)
    )
    # Three stretches of 1.5 frames on average, which overlap now and then.
    assert one == pytest.approx(1.5 / 12, rel=0.1)
    assert 2.2 < three / one < 3.0


@pytest.mark.parametrize("span", [1, 4])
def test_every_position_is_hidden_with_the_same_chance(span: int) -> None:
    found = seen(WORDS, span_mask=SpanMask(share=0.4, span=span, token=0))
    hidden = found.inputs == 0
    assert hidden[:, 0].mean() == pytest.approx(0.4, abs=0.08)
    assert hidden[:, -1].mean() == pytest.approx(0.4, abs=0.08)
    # Neighbours are hidden together: a row tells less than its positions would one by one.
    assert hidden.mean() == pytest.approx(0.4, abs=4 * np.sqrt(0.24 * span / hidden.size))
    plain = WORDS.read(found.samples)
    assert (found.inputs[~hidden] == plain.inputs[~hidden]).all()
    assert (found.targets == plain.targets).all()


def test_spans_are_at_least_as_long_as_asked() -> None:
    hidden = seen(WORDS, span_mask=SpanMask(share=0.2, span=4, token=0)).inputs == 0
    shortest = 40
    for row in hidden:
        ends = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        runs = ends.reshape(-1, 2)
        inner = runs[(runs[:, 0] > 0) & (runs[:, 1] < 40)]
        shortest = min([shortest, *(inner[:, 1] - inner[:, 0])])
    assert shortest == 4


def test_tokens_to_keep_are_never_hidden() -> None:
    spec = SpanMask(share=0.9, span=5, token=0, keep=(7, 8))
    found = seen(WORDS, span_mask=spec)
    plain = WORDS.inputs[found.samples]
    kept = np.isin(plain, (7, 8))
    assert (found.inputs[kept] == plain[kept]).all()
    assert (found.inputs[~kept] == 0).mean() > 0.8


def test_mixed_samples_are_laid_over_each_other_like_their_targets() -> None:
    found = seen(PIXELS, mixup=MixUp(alpha=0.4))
    own = PIXELS.read(found.samples)
    assert found.others is not None and found.shares is not None
    assert (found.targets == own.targets).all()
    assert found.shares.mean() == pytest.approx(0.5, abs=0.06)
    assert found.shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)
    partners, told = partners_of(found), found.shares < 0.999
    assert (PIXELS.targets[partners] == found.others)[told].all()
    # Who is chosen is spread over the whole batch.
    assert len(set(partners)) > 300


def partners_of(found: Batch) -> NDArray[np.int64]:
    """Find each blended row's partner by what is left of it; itself, where that is too little."""
    assert found.shares is not None
    partners = []
    for image, sample, share in zip(found.inputs, found.samples, found.shares, strict=True):
        rest = share * PIXELS.inputs[sample] + (1 - share) * PIXELS.inputs
        away = np.abs(rest - image).max(axis=(1, 2, 3))
        assert away.min() < 1e-6
        partners.append(int(sample) if share >= 0.999 else int(away.argmin()))
    return np.array(partners)


def test_a_piece_of_another_image_counts_by_its_area() -> None:
    found = seen(PIXELS, cutmix=CutMix(share=1.0))
    plain = PIXELS.inputs[found.samples]
    assert found.others is not None and found.shares is not None
    strange = (found.inputs != plain).any(axis=-1)
    sizes = set()
    for image, mask, other, share in zip(
        found.inputs, strange, found.others, found.shares, strict=True
    ):
        # A sample may be its own partner.
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert share == pytest.approx(1 - mask.mean())
        sizes.add(len(rows))
        fits = (PIXELS.inputs[:, mask] == image[mask]).all(axis=(1, 2))
        (partner,) = np.flatnonzero(fits)
        assert PIXELS.targets[partner] == other
    assert sizes == {1, 2, 3, 4, 5}


def test_the_sides_of_a_piece_are_roots_of_its_area() -> None:
    # Shares of 0.5 alone: pieces of 0.7 of both sides, whole pixels, where no border cuts them.
    found = seen(PIXELS, cutmix=CutMix(alpha=1e6, share=1.0))
    strange = (found.inputs != PIXELS.inputs[found.samples]).any(axis=-1)
    assert strange.any(axis=2).sum(axis=1).max() == int(6 * 0.5**0.5)
    assert strange.any(axis=1).sum(axis=1).max() == int(8 * 0.5**0.5)


def test_a_sample_is_mixed_or_pasted_into_by_their_shares() -> None:
    found = seen(PIXELS, mixup=MixUp(alpha=1.0, share=0.3), cutmix=CutMix(share=0.4))
    plain = PIXELS.inputs[found.samples]
    assert found.shares is not None and found.others is not None
    moved = (found.inputs != plain).any(axis=-1)
    blended = moved.all(axis=(1, 2))
    assert_share(blended, 0.3)
    # Of 0.4 some get a piece without a pixel.
    assert 0.25 < (moved.any(axis=(1, 2)) & ~blended).mean() < 0.4
    untouched = ~moved.any(axis=(1, 2)) & (found.shares == 1.0)
    assert untouched.mean() > 0.25


def test_a_row_that_is_not_mixed_has_its_own_target_alone() -> None:
    found = seen(PIXELS, mixup=MixUp(share=0.01), count=24)
    assert found.others is not None and found.shares is not None
    assert (found.shares == 1.0).sum() >= 22
    single = found.shares == 1.0
    assert (found.others[single] == found.targets[single]).all()


def test_partners_come_from_the_batch_of_the_step() -> None:
    found = seen(PIXELS, mixup=MixUp(alpha=1.0), count=12)
    assert set(partners_of(found)) <= set(range(12))


def test_a_partner_has_been_through_what_comes_before() -> None:
    before: dict[str, Any] = {
        "crop": Crop(padding=2),
        "flip": Flip(),
        "colour": Colour(contrast=0.5),
    }
    plain = seen(PIXELS, count=60, **before)
    place = {int(sample): row for row, sample in enumerate(plain.samples)}
    found = seen(PIXELS, count=60, mixup=MixUp(alpha=1.0), **before)
    alone = seen(PIXELS, count=60, mixup=MixUp(alpha=1.0))
    assert found.shares is not None and alone.shares is not None
    assert (found.shares == alone.shares).all()
    for row, partner in enumerate(partners_of(alone)):
        share = found.shares[row]
        expected = share * plain.inputs[row] + (1 - share) * plain.inputs[place[int(partner)]]
        np.testing.assert_allclose(found.inputs[row], expected, atol=1e-6)


def test_a_second_view_has_the_same_partners_shares_and_pieces() -> None:
    mixing: dict[str, Any] = {"mixup": MixUp(alpha=1.0, share=0.5), "cutmix": CutMix()}
    found = seen(PIXELS, twice=True, **mixing)
    assert found.again is not None
    assert (found.again == found.inputs).all()
    moved = seen(PIXELS, twice=True, flip=Flip(), **mixing)
    assert found.shares is not None and moved.shares is not None
    assert (found.shares == moved.shares).all()
    assert moved.again is not None and (moved.again != moved.inputs).any()


def test_mixed_sequences_are_as_long_as_the_longer_one() -> None:
    lengths = np.arange(600) % 12 + 1
    frames = STEPS.inputs * (np.arange(12) < lengths[:, None])[..., None]
    padded = replace(STEPS, inputs=frames, lengths=lengths)
    found = seen(padded, mixup=MixUp(alpha=2.0), jitter=Jitter(deviation=0.1))
    assert found.lengths is not None
    ends = 12 - (found.inputs[:, ::-1] != 0).any(axis=-1).argmax(axis=1)
    assert (ends == found.lengths).all()
    assert found.lengths.mean() > lengths.mean() + 1.5


def test_padding_is_never_hidden() -> None:
    lengths = np.arange(600) % 40 + 1
    spec = SpanMask(share=0.5, span=3, token=0)
    found = seen(replace(WORDS, lengths=lengths), span_mask=spec)
    padding = np.arange(40) >= lengths[found.samples][:, None]
    assert not (found.inputs == 0)[padding].any() and (found.inputs == 0)[~padding].any()


LANGUAGE, IMAGE = tiny_language(), tiny_image()
SEQUENCE = IMAGE.model_copy(update={"inputs": FrameInputs(features=8, context=8)})
PACKED = LANGUAGE.model_copy(
    update={"inputs": TokenInputs(vocabulary=320, context=32, separator=5)}
)
PROMPTED = LANGUAGE.model_copy(
    update={"attention": AttentionSpec(heads=4, key_value_heads=2, mask=Prefix(end=6))}
)
MASK: dict[str, Any] = {"share": 0.1, "token": 1}
REFUSED: dict[str, tuple[dict[str, Any], ModelSpec, str]] = {
    "a crop of text": ({"crop": Crop(padding=1)}, LANGUAGE, "crop needs model.inputs.kind=patches"),
    "text laid over text": ({"mixup": MixUp()}, LANGUAGE, "mixup needs .*patches or frames"),
    "a piece of a sequence": (
        {"cutmix": CutMix()},
        SEQUENCE,
        "cutmix needs .*=patches; got frames",
    ),
    "spans of an image": ({"span_mask": SpanMask(**MASK)}, IMAGE, "span_mask needs .*=tokens"),
    "an unknown token": (
        {"span_mask": SpanMask(share=0.1, token=320)},
        LANGUAGE,
        "token=320, vocabulary=320",
    ),
    "hidden ends": ({"span_mask": SpanMask(**MASK)}, PACKED, "nor write token 5"),
    "hidden prompts": ({"span_mask": SpanMask(**MASK, keep=(5,))}, PROMPTED, "nor write token 6"),
    "new ends": (
        {"span_mask": SpanMask(share=0.1, token=5, keep=(5,))},
        PACKED,
        "nor write token 5",
    ),
}
FITTING: dict[str, tuple[dict[str, Any], ModelSpec]] = {
    "images": (EVERYTHING["images"][1], IMAGE),
    "frames": (EVERYTHING["frames of one length"][1], SEQUENCE),
    "packed text": ({"span_mask": SpanMask(**MASK, keep=(5,))}, PACKED),
    "prompts": ({"span_mask": SpanMask(**MASK, keep=(6,))}, PROMPTED),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_section_that_does_not_fit_the_model_is_refused(name: str) -> None:
    sections, model, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        check_augment(AugmentSpec(**sections), model)


@pytest.mark.parametrize("name", FITTING)
def test_a_section_that_fits_the_model_is_let_in(name: str) -> None:
    sections, model = FITTING[name]
    check_augment(AugmentSpec(**sections), model)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (Colour, {}, "colour must change something"),
        (Erasing, {"least": 0.5, "most": 0.1}, "least must be at most"),
        (AugmentSpec, {"mixup": MixUp(), "cutmix": CutMix()}, "must be at most 1"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(
    part: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        part(**values)


def assert_share(found: Array, expected: float) -> None:
    """Within four standard deviations of a share of independent samples."""
    spread = 4 * np.sqrt(expected * (1 - expected) / found.size)
    assert found.mean() == pytest.approx(expected, abs=spread)


def assert_uniform(values: Array, low: float, high: float) -> None:
    """Inside the bounds and, by Kolmogorov and Smirnov, spread evenly (a chance of 1e-6)."""
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    places = (np.arange(values.size) + 0.5) / values.size
    away = np.abs((np.sort(values) - low) / (high - low) - places).max()
    assert away < 2.7 / np.sqrt(values.size)
