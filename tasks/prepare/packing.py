"""Documents in rows of one length: as few rows as whole documents allow, or one for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class RowIndex:
    """What each row holds.

    Attributes:
        pieces: start in the stream, tokens, and 1 for a piece that begins its document or 0,
            (pieces, 3); those of a row stand together, in the order of the row.
        rows: number of the first piece of each row and, last, of all pieces, (rows + 1,).
    """

    pieces: Integers
    rows: Integers

    def __len__(self) -> int:
        return len(self.rows) - 1

    def filled(self, rows: Integers) -> Integers:
        """Tokens that these rows hold, (any,) to (any,)."""
        first = self.rows[rows]
        held = self.rows[rows + 1] - first
        starts = np.cumsum(held) - held
        pieces = np.arange(held.sum()) + np.repeat(first - starts, held)
        return np.add.reduceat(self.pieces[pieces, 1], starts)

    def waste(self, length: int) -> float:
        """Share of the rows' places that hold no scored target.

        A piece that goes on with a document behind another piece gives up its first target, since
        it does not see what came before.
        """
        if not len(self):
            return 0.0
        leading = np.zeros(len(self.pieces), np.bool_)
        leading[self.rows[:-1]] = True
        unscored = int(((self.pieces[:, 2] == 0) & ~leading).sum())
        return 1.0 - float(self.pieces[:, 1].sum() - unscored) / (len(self) * length)


def rows_of(documents: Integers, *, start: int, length: int, several: bool) -> RowIndex:
    """Lay documents into rows; equal arguments give equal rows.

    Args:
        documents: tokens of each document with its end mark, (documents,), at least 1.
        start: place in the stream where the first of them begins; the others follow.
        length: places of a row.
        several: fit several documents into a row; otherwise every document has rows of its own.
    """
    counts = -(-documents // length)
    owner = np.repeat(np.arange(len(documents)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = start + np.cumsum(documents) - documents
    tokens = np.minimum(documents[owner] - number * length, length)
    pieces = np.stack([starts[owner] + number * length, tokens, number == 0], axis=1)
    row = best_fit(tokens, length) if several else np.arange(len(pieces))
    # A piece that goes on with a document comes first, where it can see the token before it.
    order = np.lexsort((pieces[:, 0], pieces[:, 2], row))
    ends = np.cumsum(np.bincount(row, minlength=0)) if len(row) else np.zeros(0, np.int64)
    return RowIndex(
        pieces[order].astype(np.int64).reshape(-1, 3),
        np.concatenate([[0], ends]).astype(np.int64),
    )


def best_fit(sizes: Integers, capacity: int) -> Integers:
    """The row of each piece: longest first, each into the fullest row that has room for it.

    Needs at most about 11/9 of the fewest possible rows (Johnson 1974, "Fast algorithms for bin
    packing"). Time is linear in the pieces for a given capacity.

    Args:
        sizes: 1 .. capacity, (pieces,).

    >>> best_fit(np.array([4, 6, 5, 3, 2]), 10).tolist()
    [0, 0, 1, 1, 1]
    """
    rows = np.empty(len(sizes), np.int64)
    # Rows by the room they have left; bit r of `rooms` tells that there is one with room r.
    open_rows: list[list[int]] = [[] for _ in range(capacity)]
    rooms = count = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row, count = capacity, count, count + 1
        rows[piece] = row
        if left := room - size:
            open_rows[left].append(row)
            rooms |= 1 << left
    return rows


def joined(parts: list[RowIndex]) -> RowIndex:
    """The rows of several parts, one part after the other."""
    pieces = np.concatenate([part.pieces for part in parts])
    firsts = np.cumsum([0, *(len(part.pieces) for part in parts)])
    rows = [part.rows[:-1] + first for part, first in zip(parts, firsts, strict=False)]
    return RowIndex(pieces, np.concatenate([*rows, firsts[-1:]]).astype(np.int64))
