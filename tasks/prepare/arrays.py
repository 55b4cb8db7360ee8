"""Arrays on disk as `.npy`: grown row by row, read by mapping, never unpickled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

# A stream goes on in another file when one has this size.
SHARD_BYTES = 1 << 30


class ArrayWriter:
    """Writes a `.npy` file of unknown length; memory stays constant.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with ArrayWriter(folder / "tokens.npy", np.uint16) as writer:
    ...     writer.append(np.arange(3))
    >>> open_array(folder / "tokens.npy").tolist()
    [0, 1, 2]
    """

    def __init__(self, path: Path, dtype: DTypeLike, *, row: tuple[int, ...] = ()) -> None:
        """Rows have the shape `row`; `()` makes an array of one dimension."""
        self._file = path.open("wb")
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._row = row
        self.rows = 0
        self._header()

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, (any, *row)."""
        if rows.shape[1:] != self._row:
            raise ValueError(f"rows must have shape {self._row}; got {rows.shape[1:]}.")
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.rows += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            # NumPy pads the header so that the first dimension can grow in place.
            self._file.seek(0)
            self._header()
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()

    def _header(self) -> None:
        description = {
            "descr": npy.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._row),
        }
        npy.write_array_header_1_0(self._file, description)


class StreamWriter:
    """Writes a stream of numbers as few large files: `tokens.npy`, `tokens.1.npy`, ..."""

    def __init__(
        self, folder: Path, name: str, dtype: DTypeLike, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        """`name` without `.npy`; no file holds more than `shard_bytes` of numbers."""
        self._folder, self._name, self._dtype = folder, name, np.dtype(dtype)
        self._most = max(1, shard_bytes // self._dtype.itemsize)
        self.files: list[str] = []
        self.rows = 0
        self._next()

    def append(self, numbers: NDArray[Any]) -> None:
        """Add numbers, (any,)."""
        while len(numbers):
            room = self._most - self._writer.rows
            if not room:
                self._writer.__exit__(None, None, None)
                self._next()
                continue
            self._writer.append(numbers[:room])
            self.rows += len(numbers[:room])
            numbers = numbers[room:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def _next(self) -> None:
        number = f".{len(self.files)}" if self.files else ""
        self.files.append(f"{self._name}{number}.npy")
        self._writer = ArrayWriter(self._folder / self.files[-1], self._dtype)


@dataclass(frozen=True)
class Shards:
    """A stream of numbers in several files, addressed as one array.

    Attributes:
        arrays: the files, mapped.
        ends: numbers up to the end of each file, (files,).
    """

    arrays: tuple[NDArray[Any], ...]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.arrays[0].dtype

    def __getitem__(self, places: slice | int | np.integer[Any] | NDArray[Any]) -> NDArray[Any]:
        """Numbers at places that are 0 .. length - 1, in the places' shape."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        wanted = np.asarray(places)
        owners = np.searchsorted(self.ends, wanted, side="right")
        found = np.empty(wanted.shape, self.dtype)
        for owner in np.unique(owners):
            own = owners == owner
            start = self.ends[owner] - len(self.arrays[owner])
            found[own] = self.arrays[owner][wanted[own] - start]
        return found


Stream = NDArray[Any] | Shards


def open_array(path: Path) -> NDArray[Any]:
    """Map a `.npy` file into memory, read-only: pages are read when they are touched.

    Raises:
        ValueError: not an array of plain numbers. Pickled objects are refused unread.
    """
    try:
        # Not `np.load`, which takes archives as well.
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a .npy file of plain numbers: {error}") from None
    return array


def open_stream(folder: Path, name: str, files: Sequence[str]) -> Stream:
    """Map a stream that `StreamWriter` wrote under `name`.

    Args:
        files: names of files in the folder, those of the stream among them.

    Raises:
        ValueError: a file is not an array of plain numbers, or the first one is not listed.
    """
    if f"{name}.npy" not in files:
        raise ValueError(f"{folder} lists no {name}.npy; run the stage prepare again.")
    paths = [f"{name}.npy"]
    while f"{name}.{len(paths)}.npy" in files:
        paths.append(f"{name}.{len(paths)}.npy")
    arrays = tuple(open_array(folder / path) for path in paths)
    return arrays[0] if len(arrays) == 1 else Shards(arrays, np.cumsum([len(a) for a in arrays]))
