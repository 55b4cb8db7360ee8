"""Where images and sequences come from: digits, folders of images, NumPy files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.folder import require_space
from tasks.prepare.arrays import ArrayWriter, open_array
from tasks.prepare.snapshots import LABELS, LENGTHS, VALUES
from tasks.prepare.spec import Digits, ImageFolder, NumpyFiles
from tasks.progress import Progress

ArraySource = Digits | ImageFolder | NumpyFiles
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
# What Pillow turns into grey or colour without losing more than colour or transparency.
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
# Larger ones are refused before they are unpacked: a small file can hold a huge image.
MOST_PIXELS = 100_000_000
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class TakenArrays:
    """What was written into a snapshot.

    Attributes:
        title: where the data comes from, for people; no path of this machine.
        files: names of the arrays.
        classes: name of each class.
        samples: images or sequences.
        size_bytes: of their values.
        columns: array -> type and shape as they were found.
        skipped: reason -> files left out.
    """

    title: str
    files: tuple[str, ...]
    classes: tuple[str, ...]
    samples: int
    size_bytes: int
    columns: dict[str, str]
    skipped: dict[str, int] = field(default_factory=dict)


def write_arrays(
    source: ArraySource, folder: Path, *, root: Path, progress: Progress
) -> TakenArrays:
    """Copy images or sequences into `folder` as few large arrays.

    Args:
        folder: gets `values.npy`, (N, ...) uint8 or float32; `labels.npy`, (N,) int32; and for
            ragged sequences `lengths.npy`, (N,) int64.
        root: where a relative `data.source.path` starts.
        progress: in images or sequences.

    Raises:
        ValueError: the source is missing or malformed; file, row and remedy are named.
    """
    if source.kind == "digits":
        return _digits(folder)
    path = root / source.path
    if not path.is_dir():
        raise ValueError(
            f"data.source.path must name a folder for kind={source.kind}; got {source.path}, "
            f"which is none in {root.resolve()}."
        )
    if source.kind == "numpy":
        return _numpy(source, path, folder, progress)
    return _image_folder(source, path, folder, progress)


def _digits(folder: Path) -> TakenArrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Sixteen grey levels above black: sixteenths are exact in float32.
    pixels = (digits.images / 16).astype("<f4")[..., None]
    np.save(folder / VALUES, pixels, allow_pickle=False)
    np.save(folder / LABELS, digits.target.astype("<i4"), allow_pickle=False)
    return TakenArrays(
        title="handwritten digits of scikit-learn",
        files=(VALUES, LABELS),
        classes=tuple(str(name) for name in digits.target_names),
        samples=len(pixels),
        size_bytes=pixels.nbytes,
        columns={"values": _about(pixels), "labels": "10 classes"},
    )


def _image_folder(source: ImageFolder, path: Path, folder: Path, progress: Progress) -> TakenArrays:
    files, skipped = _images(path)
    classes = tuple(sorted({file.relative_to(path).parts[0] for file in files}))
    _require_classes(classes, "folders with PNG or JPEG files in data.source.path", path.name)
    shape = (source.height, source.width, source.channels)
    require_space(folder, needed_bytes=len(files) * int(np.prod(shape)))
    labels = np.array([classes.index(file.relative_to(path).parts[0]) for file in files], "<i4")
    with ArrayWriter(folder / VALUES, np.uint8, row=shape) as writer:
        for number, file in enumerate(files, start=1):
            writer.append(_pixels(file, source)[None])
            progress(number, len(files), f"{number} images")
    np.save(folder / LABELS, labels, allow_pickle=False)
    return TakenArrays(
        title=f"images of {path.name}",
        files=(VALUES, LABELS),
        classes=classes,
        samples=len(files),
        size_bytes=len(files) * int(np.prod(shape)),
        columns={"values": f"uint8 {(len(files), *shape)}", "labels": f"{len(classes)} folders"},
        skipped=skipped,
    )


def _images(path: Path) -> tuple[list[Path], dict[str, int]]:
    """Images of each class folder in a fixed order, and what else lies there."""
    files: list[Path] = []
    skipped: dict[str, int] = {}
    for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix()):
        parts = file.relative_to(path).parts
        if not file.is_file() or any(part.startswith(".") for part in parts):
            continue
        if file.suffix.lower() not in FORMATS:
            skipped["not PNG or JPEG"] = skipped.get("not PNG or JPEG", 0) + 1
        elif len(parts) == 1:
            raise ValueError(
                "data.source.path must hold every image in a folder named by its class; got "
                f"{file.name} beside the folders. Move it into one."
            )
        else:
            files.append(file)
    return files, skipped


def _pixels(file: Path, source: ImageFolder) -> NDArray[np.uint8]:
    """One image, upright, (height, width, channels)."""
    try:
        with Image.open(file, formats=(FORMATS[file.suffix.lower()],)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            if image.mode not in MODES:
                raise ValueError(f"its pixels are of mode {image.mode}, not 8 bits")
            upright = ImageOps.exif_transpose(image).convert("L" if source.channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{file} is not a PNG or JPEG image that can be read: {error}. Repair or remove it."
        ) from None
    sized = upright.resize((source.width, source.height), Image.Resampling[source.filter.upper()])
    return np.asarray(sized, np.uint8).reshape(source.height, source.width, source.channels)


def _numpy(source: NumpyFiles, path: Path, folder: Path, progress: Progress) -> TakenArrays:
    for name in ("x.npy", "y.npy"):
        if not (path / name).is_file():
            raise ValueError(
                f"data.source.path must hold x.npy and y.npy for kind=numpy; {source.path} has no "
                f"{name}."
            )
    x, y = open_array(path / "x.npy"), open_array(path / "y.npy")
    if x.ndim not in (3, 4) or not x.size or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
        raise ValueError(
            "x.npy must hold (N, height, width), (N, height, width, channels) or (N, frames, "
            f"features) of uint8 or floating-point numbers; got {_about(x)}."
        )
    if y.shape != x.shape[:1] or y.dtype.kind not in "iuUb":
        raise ValueError(
            "y.npy must hold one integer or string for each row of x.npy; got "
            f"{_about(y)} for {_about(x)}."
        )
    names, labels = np.unique(y, return_inverse=True)
    classes = tuple(str(name) for name in names.tolist())
    _require_classes(classes, "different values in y.npy", source.path)
    require_space(folder, needed_bytes=x.nbytes)
    dtype = np.uint8 if x.dtype == np.uint8 else np.float32
    with ArrayWriter(folder / VALUES, dtype, row=x.shape[1:]) as writer:
        for start, chunk in _chunks(x):
            _require_finite(chunk, start)
            writer.append(chunk.astype(dtype))
            progress(writer.rows, len(x), f"{writer.rows} rows")
    np.save(folder / LABELS, labels.astype("<i4"), allow_pickle=False)
    files: tuple[str, ...] = (VALUES, LABELS)
    columns = {"values": _about(x), "labels": f"{y.dtype} of {len(classes)} classes"}
    if (path / "lengths.npy").is_file():
        lengths = _lengths(open_array(path / "lengths.npy"), x)
        np.save(folder / LENGTHS, lengths, allow_pickle=False)
        files += (LENGTHS,)
        columns["lengths"] = f"{lengths.min()} to {lengths.max()} frames"
    return TakenArrays(
        title=f"NumPy files of {path.name}",
        files=files,
        classes=classes,
        samples=len(x),
        size_bytes=x.size * np.dtype(dtype).itemsize,
        columns=columns,
    )


def _chunks(x: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Rows of a mapped array, a few at a time, so that memory stays constant."""
    rows = max(1, CHUNK_BYTES // max(1, x[:1].nbytes))
    for start in range(0, len(x), rows):
        yield start, np.asarray(x[start : start + rows])


def _require_finite(chunk: NDArray[Any], start: int) -> None:
    finite = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"x.npy must hold finite numbers; row {start + int(np.argmin(finite))} has NaN or "
            "infinity. Remove the row."
        )


def _lengths(lengths: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int64]:
    if x.ndim != 3 or lengths.shape != x.shape[:1] or lengths.dtype.kind not in "iu":
        raise ValueError(
            "lengths.npy must hold one integer for each sequence of x.npy, (N, frames, features); "
            f"got {_about(lengths)} for {_about(x)}."
        )
    wrong = (lengths < 1) | (lengths > x.shape[1])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"lengths.npy must hold 1 to {x.shape[1]} frames; row {row} has {lengths[row]}."
        )
    return np.asarray(lengths, "<i8")


def _require_classes(classes: tuple[str, ...], what: str, where: str) -> None:
    if len(classes) < 2:
        raise ValueError(
            f"a task of classes needs at least two {what}; got {len(classes)} in {where}."
        )


def _about(array: NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"
