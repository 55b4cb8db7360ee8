"""Images and sequences from folders and NumPy files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tasks.artifacts import DataManifest
from tasks.prepare.dataset import Sequences, open_split
from tasks.prepare.documents import ArrayDocuments, open_documents
from tasks.prepare.spec import (
    DataSpec,
    Digits,
    FrameClasses,
    ImageClasses,
    ImageFolder,
    NumpyFiles,
    SplitShares,
)
from tasks.prepare.splits import SPLITS
from tasks.snapshot import snapshot
from tests.prepare.conftest import make
from tests.prepare.test_dataset import objects_in_npy
from tests.prepare.test_prepare import digests

SHARES = SplitShares(validation=0.2, test=0.2)
GENERATOR = np.random.default_rng(5)
PIXELS = GENERATOR.integers(0, 256, (40, 6, 4, 3), np.uint8)
FRAMES = GENERATOR.normal(size=(60, 9, 5))
LENGTHS = GENERATOR.integers(1, 10, 60)
CLASSES = np.array(["odd", "even"])[np.arange(60) % 2]


def write_images(folder: Path, pixels: NDArray[np.uint8] = PIXELS) -> Path:
    """PNG files in two folders."""
    for number, image in enumerate(pixels):
        place = folder / ("cat" if number % 2 else "dog") / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return folder


def write_numpy(folder: Path, **arrays: NDArray[Any]) -> Path:
    """One .npy file for each array."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def folder_of(path: Path, **fields: Any) -> ImageFolder:
    return ImageFolder.model_validate({"path": str(path), "height": 6, "width": 4} | fields)


def frames_spec(path: Path) -> DataSpec:
    return DataSpec(source=NumpyFiles(path=str(path)), task=FrameClasses(), split=SHARES)


def values(folder: Path) -> NDArray[Any]:
    return np.asarray(np.load(folder / "values.npy"))


def test_images_of_the_right_size_keep_every_pixel(tmp_path: Path) -> None:
    source = folder_of(write_images(tmp_path / "images"))
    manifest = snapshot(source, out=tmp_path / "out")
    assert (manifest.classes, manifest.documents) == (("cat", "dog"), 40)
    order = [*range(1, 40, 2), *range(0, 40, 2)]
    assert np.array_equal(values(tmp_path / "out"), PIXELS[order])
    assert np.load(tmp_path / "out" / "labels.npy").tolist() == [0] * 20 + [1] * 20


def test_an_image_is_resized_by_the_named_filter_and_turned_grey(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", PIXELS[:4])
    source = folder_of(folder, height=3, width=2, channels=1, filter="box")
    snapshot(source, out=tmp_path / "out")
    grey = np.array(
        [np.asarray(Image.fromarray(image).convert("L")) for image in PIXELS[[1, 3, 0]]]
    )
    means = grey.reshape(3, 3, 2, 2, 2).mean(axis=(2, 4))
    # Pillow rounds to bytes after the columns and again after the rows.
    assert np.abs(values(tmp_path / "out")[:3, :, :, 0] - means).max() <= 1


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", PIXELS[:4])
    image = Image.fromarray(PIXELS[9].transpose(1, 0, 2)[:, ::-1])
    exif = Image.Exif()
    # The camera was turned: rows are columns from the right.
    exif[0x0112] = 8
    image.save(folder / "cat" / "00.png", exif=exif)
    snapshot(folder_of(folder), out=tmp_path / "out")
    assert np.array_equal(values(tmp_path / "out")[0], PIXELS[9])


def test_other_files_are_counted_and_hidden_ones_left_alone(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "cat" / "notes.txt").write_text("a note")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.png").write_bytes(b"no image")
    manifest = snapshot(folder_of(folder), out=tmp_path / "out")
    assert (manifest.documents, manifest.skipped) == (40, {"not PNG or JPEG": 1})


def test_image_folders_become_samples(tmp_path: Path) -> None:
    source = folder_of(write_images(tmp_path / "images"))
    manifest = make(DataSpec(source=source, task=ImageClasses(), split=SHARES), tmp_path)
    assert (manifest.kind, manifest.shape) == ("images", (6, 4, 3))
    found = open_split(tmp_path / "data", "train", context=None).read(np.arange(3)).inputs
    assert found.dtype == np.float32
    whole = [image.tolist() for image in PIXELS]
    assert all(image.tolist() in whole for image in np.rint(found * 255).astype(np.uint8))


def no_images(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def one_class(folder: Path) -> Path:
    write_images(folder / "images")
    (folder / "images" / "cat").rename(folder / "images" / "dog" / "cat")
    return folder / "images"


def truncated(folder: Path) -> Path:
    file = write_images(folder / "images") / "cat" / "07.png"
    file.write_bytes(file.read_bytes()[:60])
    return folder / "images"


def deep(folder: Path) -> Path:
    write_images(folder / "images")
    Image.fromarray(np.full((6, 4), 999, np.uint16)).save(folder / "images" / "cat" / "07.png")
    return folder / "images"


def disguised(folder: Path) -> Path:
    write_images(folder / "images")
    Image.fromarray(PIXELS[0]).save(folder / "images" / "cat" / "07.png", format="GIF")
    return folder / "images"


def bomb(folder: Path) -> Path:
    """A small file that unpacks to 400 megapixels."""
    write_images(folder / "images")
    Image.new("1", (20_000, 6_000)).save(folder / "images" / "cat" / "07.png")
    return folder / "images"


def stray(folder: Path) -> Path:
    write_images(folder / "images")
    Image.fromarray(PIXELS[0]).save(folder / "images" / "stray.png")
    return folder / "images"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (no_images, "at least two folders with PNG or JPEG files .* got 0 in empty"),
        (one_class, "at least two folders .* got 1 in images"),
        (truncated, r"cat/07\.png is not a PNG or JPEG image that can be read"),
        (deep, r"cat/07\.png .* its pixels are of mode I;16, not 8 bits"),
        (disguised, r"cat/07\.png is not a PNG or JPEG image that can be read"),
        (bomb, r"cat/07\.png .* it has 20000 x 6000 pixels"),
        (stray, r"every image in a folder named by its class; got stray\.png"),
        (
            lambda folder: folder / "nowhere",
            r"must name a folder for kind=image_folder; got .*nowh",
        ),
    ],
)
def test_a_bad_image_is_one_clear_line(
    plant: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        snapshot(folder_of(plant(tmp_path)), out=tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sequences of different lengths; read only."""
    folder = tmp_path_factory.mktemp("ragged")
    path = write_numpy(folder / "arrays", x=FRAMES, y=CLASSES, lengths=LENGTHS)
    make(frames_spec(path), folder)
    return folder / "data"


def test_sequences_are_frames_a_length_and_a_class(ragged: Path) -> None:
    manifest = DataManifest.read(ragged / "manifest.json")
    assert (manifest.kind, manifest.shape) == ("frames", (int(LENGTHS.max()), 5))
    assert manifest.classes == ("even", "odd")
    seen = []
    for split in SPLITS:
        samples = open_split(ragged, split, context=None)
        opened = open_documents(ragged, split)
        assert isinstance(samples, Sequences) and isinstance(opened, ArrayDocuments)
        batch = samples.read(np.arange(len(samples))[::-1])
        assert batch.inputs.dtype == np.float32 and batch.lengths is not None
        for row, document in enumerate(opened.documents[::-1]):
            number = int(document.name.removeprefix("row "))
            length = LENGTHS[number]
            assert batch.lengths[row] == length
            own = FRAMES[number, :length].astype(np.float32)
            assert np.array_equal(batch.inputs[row, :length], own)
            assert not batch.inputs[row, length:].any()
            assert manifest.classes[batch.targets[row]] == CLASSES[number] == document.slice
            seen.append(number)
    assert sorted(seen) == list(range(60))


def test_what_pads_a_sequence_does_not_tell_it_apart(tmp_path: Path) -> None:
    x = np.concatenate([FRAMES[:20], FRAMES[:20] + 0])
    x[20:, 4:] = 7.0
    lengths = np.full(40, 4)
    y = np.tile(CLASSES[:20], 2)
    manifest = make(frames_spec(write_numpy(tmp_path / "a", x=x, y=y, lengths=lengths)), tmp_path)
    assert sum(split.documents for split in manifest.splits.values()) == 20
    assert manifest.shape == (4, 5)


def test_images_read_as_frames_are_rows_of_pixels(tmp_path: Path) -> None:
    make(DataSpec(source=Digits(), task=FrameClasses()), tmp_path)
    make(DataSpec(source=Digits(), task=ImageClasses()), tmp_path / "images")
    frames = open_split(tmp_path / "data", "test", context=None).read(np.arange(5))
    images = open_split(tmp_path / "images" / "data", "test", context=None).read(np.arange(5))
    assert np.array_equal(frames.inputs, images.inputs[..., 0])
    assert np.array_equal(frames.targets, images.targets)
    assert frames.lengths is not None and frames.lengths.tolist() == [8] * 5


def test_grey_images_without_channels_get_one(tmp_path: Path) -> None:
    path = write_numpy(tmp_path / "a", x=PIXELS[..., 0], y=CLASSES[:40])
    spec = DataSpec(source=NumpyFiles(path=str(path)), task=ImageClasses(), split=SHARES)
    assert make(spec, tmp_path).shape == (6, 4, 1)


def test_numpy_files_elsewhere_give_the_same_bytes(tmp_path: Path) -> None:
    for place in ("here", "there"):
        path = write_numpy(tmp_path / place / "a", x=FRAMES, y=CLASSES, lengths=LENGTHS)
        make(frames_spec(path), tmp_path / place)
    assert digests(tmp_path / "here" / "data") == digests(tmp_path / "there" / "data")


def hole(place: int) -> NDArray[Any]:
    x = FRAMES.copy()
    x[place, 3, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": FRAMES}, r"must hold x\.npy and y\.npy .* has no y\.npy"),
        ({"x": FRAMES[0], "y": CLASSES}, r"x\.npy must hold .* got float64 \(9, 5\)"),
        ({"x": FRAMES.astype(int), "y": CLASSES}, r"x\.npy must hold .* got int64 \(60, 9, 5\)"),
        ({"x": FRAMES, "y": CLASSES[:9]}, r"y\.npy must hold one .* \(9,\) for float64 \(60,"),
        ({"x": FRAMES, "y": np.ones(60)}, r"y\.npy must hold one integer or string"),
        ({"x": FRAMES, "y": np.ones(60, int)}, r"at least two different values in y\.npy; got 1"),
        ({"x": hole(41), "y": CLASSES}, r"x\.npy must hold finite numbers; row 41 has NaN"),
        (
            {"x": FRAMES, "y": CLASSES, "lengths": LENGTHS[:5]},
            r"lengths\.npy must hold one integer",
        ),
        ({"x": FRAMES, "y": CLASSES, "lengths": LENGTHS - 1}, r"1 to 9 frames; row \d+ has 0"),
        ({"x": FRAMES, "y": CLASSES, "lengths": LENGTHS + 1}, r"1 to 9 frames; row \d+ has 10"),
    ],
)
def test_a_bad_array_is_one_clear_line(
    arrays: dict[str, NDArray[Any]], message: str, tmp_path: Path
) -> None:
    path = write_numpy(tmp_path / "a", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        snapshot(NumpyFiles(path=str(path)), out=tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1


def test_pixels_out_of_range_and_ragged_images_are_refused(tmp_path: Path) -> None:
    spec = DataSpec(source=NumpyFiles(path=str(tmp_path / "a")), task=ImageClasses(), split=SHARES)
    write_numpy(tmp_path / "a", x=PIXELS.astype(float), y=CLASSES[:40])
    with pytest.raises(ValueError, match=r"lie in 0\.\.1; row 0 has .* Scale x\.npy"):
        make(spec, tmp_path)
    write_numpy(tmp_path / "a", x=FRAMES, y=CLASSES, lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"images of one size; data\.source has lengths\.npy"):
        make(spec, tmp_path)


def test_an_array_of_objects_is_refused_unread(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    path = write_numpy(tmp_path / "a", x=FRAMES, y=CLASSES)
    (path / "x.npy").write_bytes(objects_in_npy(mark))
    with pytest.raises(ValueError, match=r"x\.npy is not a \.npy file of plain numbers"):
        snapshot(NumpyFiles(path=str(path)), out=tmp_path / "out")
    assert not mark.exists()
