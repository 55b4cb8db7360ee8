"""Arrays as files: bounded safetensors shards that any number of workers wrote.

A worker writes shares: whole arrays, rectangles of arrays as a device mesh cuts them, or ranges of
flattened arrays as ZeRO cuts them. In a file a share is named `name[2:4,0:8]`, a whole array is
named `name`. Whoever reads puts them together again, so that the number of workers that load has
nothing to do with the number that saved.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from models.record import FileDigest

SHARD_BYTES = 256 * 2**20
CUT = re.compile(r".*\[([\d:,]+)\]")

Arrays = dict[str, NDArray[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """What one worker holds of an array.

    Attributes:
        name: of the array.
        shape: of the whole array.
        start: first index along each axis of the array; a single number where `values` are a
            range of the flattened array.
        values: as many axes as `start` has.
    """

    name: str
    shape: Shape
    start: Shape
    values: NDArray[Any]

    @classmethod
    def whole(cls, name: str, array: NDArray[Any]) -> Self:
        """All of an array."""
        return cls(name, array.shape, (0,) * array.ndim, array)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return self.values.shape == self.shape

    @property
    def key(self) -> str:
        """Its name in a file.

        >>> Share("a", (4, 8), (2, 0), np.zeros((2, 8))).key
        'a[2:4,0:8]'
        """
        if self.is_whole:
            return self.name
        spans = zip(self.start, self.values.shape, strict=True)
        return f"{self.name}[{','.join(f'{start}:{start + size}' for start, size in spans)}]"


Shares = Mapping[str, Sequence[Share]]


def deal(parts: Mapping[str, Arrays], *, rank: int, workers: int) -> dict[str, list[Share]]:
    """One worker's shares of arrays that every worker holds whole, about equally many bytes each.

    Args:
        parts: weights or slot -> name -> array.
    """
    cut = [
        (part, share)
        for part, arrays in parts.items()
        for name, array in arrays.items()
        for share in _cut(Share.whole(name, array), -(-SHARD_BYTES // workers))
    ]
    total = sum(share.values.nbytes for _, share in cut)
    dealt: dict[str, list[Share]] = {part: [] for part in parts}
    before = 0
    for part, share in cut:
        # Arrays without values come after the last byte, too.
        if min(before * workers // max(total, 1), workers - 1) == rank:
            dealt[part].append(share)
        before += share.values.nbytes
    return dealt


def bounded(shares: Iterable[Share]) -> list[Share]:
    """Shares in their order, the large ones cut so that each fits into a file."""
    return [piece for share in shares for piece in _cut(share, SHARD_BYTES)]


def write_shards(
    folder: Path, part: str, shares: Iterable[Share], *, rank: int
) -> tuple[FileDigest, ...]:
    """Write bounded shares into `folder`, in their order, in files of `SHARD_BYTES` at most.

    Raises:
        OSError: the disk refuses.
    """
    written = []
    for index, shard in enumerate(_packed(shares)):
        name = f"{part}-{rank:03d}-{index:05d}.safetensors"
        # Not `ascontiguousarray`, which gives a scalar an axis.
        content = safetensors.save({one.key: np.asarray(one.values, order="C") for one in shard})
        (folder / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        written.append(FileDigest(path=name, sha256=sha256, size_bytes=len(content)))
    return tuple(written)


def read_shard(path: Path, sha256: str) -> Arrays:
    """The shares in a file, by key; the very bytes that are hashed are loaded.

    Raises:
        ValueError: the file is missing or not the one that was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} is damaged: {error.strerror}.") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not that of the manifest.")
    try:
        arrays: Arrays = safetensors.load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    return arrays


def join(shards: Iterable[Arrays], shapes: Mapping[str, Shape]) -> Arrays:
    """Put whole arrays together.

    Args:
        shards: shares by key.
        shapes: of the arrays that were cut.

    Raises:
        ValueError: a share is missing, or two hold the same values.
    """
    arrays: Arrays = {}
    missing: dict[str, NDArray[np.bool_]] = {}
    for key, values in itertools.chain.from_iterable(shard.items() for shard in shards):
        name, spans = key.partition("[")[0], _cuts(key)
        if not spans:
            if name in arrays:
                raise ValueError(f"{name} is saved twice")
            arrays[name] = values
            continue
        if name not in missing:
            if name in arrays or name not in shapes:
                raise ValueError(f"{key} is a share of an array that was saved whole")
            arrays[name] = np.empty(shapes[name], values.dtype)
            missing[name] = np.ones(shapes[name], bool)
        place = tuple(slice(*map(int, span.split(":"))) for span in spans)
        # A share with one axis, of an array with several, is a range of the flattened array.
        flat = len(place) == 1
        whole, open_ = arrays[name], missing[name]
        target, left = (whole.reshape(-1), open_.reshape(-1)) if flat else (whole, open_)
        if target[place].shape != values.shape or not left[place].all():
            raise ValueError(f"{key} does not fit into {name} of shape {shapes[name]}")
        target[place] = values
        left[place] = False
    lacking = sorted(
        {name for name, left in missing.items() if left.any()} | (shapes.keys() - arrays.keys())
    )
    if lacking:
        raise ValueError(f"shares of {', '.join(lacking)} are missing")
    return arrays


def check_cover(keys: Iterable[str], shapes: Mapping[str, Shape]) -> None:
    """Make sure that shares can be put together, before anyone relies on it.

    Raises:
        ValueError: as `join` of them would.
    """
    empty = np.zeros((), np.int8)
    spans = ((key, [tuple(map(int, span.split(":"))) for span in _cuts(key)]) for key in keys)
    shares = ((key, tuple(stop - start for start, stop in span)) for key, span in spans)
    # Views of one value: this costs no memory but for arrays that are cut.
    join(({key: np.broadcast_to(empty, shape)} for key, shape in shares), shapes)


def cut_shapes(shares: Iterable[Share]) -> dict[str, Shape]:
    """Shapes of the arrays that these shares are parts of."""
    return {share.name: share.shape for share in shares if not share.is_whole}


def _cuts(key: str) -> list[str]:
    """The spans in a share's key; none for a whole array."""
    cut = CUT.fullmatch(key)
    return cut[1].split(",") if cut else []


def _cut(share: Share, most_bytes: int) -> Iterator[Share]:
    """A share cut along its first axis into shares of bounded size, of a row at least."""
    if share.values.nbytes <= most_bytes or share.values.ndim == 0:
        yield share
        return
    rows = max(1, most_bytes * len(share.values) // share.values.nbytes)
    first, *rest = share.start
    for low in range(0, len(share.values), rows):
        start = (first + low, *rest)
        yield Share(share.name, share.shape, start, share.values[low : low + rows])


def _packed(shares: Iterable[Share]) -> Iterator[list[Share]]:
    """Shares in their order, as many a file as fit."""
    shard: list[Share] = []
    size = 0
    for share in shares:
        if shard and size + share.values.nbytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(share)
        size += share.values.nbytes
    if shard:
        yield shard
