"""Packed: rows of equal length filled with whole documents, so that hardly a document is cut.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (https://arxiv.org/abs/2404.10830):
documents longer than a row are cut into pieces of a row's length; then pieces and documents are packed
best-fit-decreasing. The plan is made once; each epoch visits its rows in another order.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from nima.batches.permutation import permuted
from nima.batches.pieces import PieceRow, Pieces


class PackedRows:
    """The order of the rows that pieces of `block_tokens` at most are packed into."""

    def __init__(self, pieces: Pieces, *, seed: int, block_tokens: int) -> None:
        row_of = best_fit(pieces.lengths, block_tokens)
        # Stable, so that inside a row the pieces stand as shuffled, not by size.
        self.pieces = pieces.taken(np.argsort(row_of, kind="stable"))
        self.edges = np.concatenate(([0], np.cumsum(np.bincount(row_of))))
        """Where each row's pieces begin, and the end."""
        self.seed = seed
        self.block_tokens = block_tokens
        self.units_per_epoch = len(self.edges) - 1
        self.num_tokens = pieces.num_tokens
        self.tokens_per_unit = Fraction(self.num_tokens, self.units_per_epoch)
        self.slots_per_unit = Fraction(block_tokens)

    def rows(self, unit: int) -> list[PieceRow]:
        epoch, place = divmod(unit, self.units_per_epoch)
        row = permuted(place, self.units_per_epoch, (self.seed, epoch))
        return [PieceRow(self.pieces.taken(slice(*self.edges[row : row + 2])), self.block_tokens)]


def best_fit(sizes: NDArray[np.integer], row_tokens: int) -> NDArray[np.int64]:
    """The row of each piece, by best-fit-decreasing: largest first, each into the fullest row with room.

    Pieces of equal size are placed together: the fullest rows with room for one take as many as fit, then
    the next fullest. Rows of equal room are one group, and a group that takes pieces of a size is left with
    less than half its room, so there are O(row_tokens · log row_tokens) steps whatever the number of pieces.
    """
    rows = np.empty(len(sizes), dtype=np.int64)
    order = np.argsort(row_tokens - sizes, kind="stable")
    open_rows = OpenRows(row_tokens)
    counts = np.bincount(sizes, minlength=row_tokens + 1)
    first = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        waiting = order[first : first + counts[size]]
        first += len(waiting)
        while len(waiting):
            room, fullest = open_rows.fullest(size, len(waiting))
            each = room // size
            num_placed = min(len(waiting), each * len(fullest))
            rows[waiting[:num_placed]] = fullest[np.arange(num_placed) // each]
            num_full, num_in_last = divmod(num_placed, each)
            open_rows.add(room - each * size, fullest[:num_full])
            open_rows.add(room - num_in_last * size, fullest[num_full : num_full + 1])
            open_rows.add(room, fullest[num_full + 1 :])
            waiting = waiting[num_placed:]
    return rows


class OpenRows:
    """Rows by the room left in them."""

    def __init__(self, row_tokens: int) -> None:
        self.row_tokens = row_tokens
        self.num_rows = 0
        self.rooms: list[int] = []
        """Ascending: those that some row has."""
        self.groups: dict[int, list[NDArray[np.int64]]] = defaultdict(list)

    def add(self, room: int, rows: NDArray[np.int64]) -> None:
        if room and len(rows):
            if room not in self.groups:
                insort(self.rooms, room)
            self.groups[room].append(rows)

    def fullest(self, size: int, num_pieces: int) -> tuple[int, NDArray[np.int64]]:
        """Takes out the rows with the least room for `size`, and says that room.

        When no row has room these are empty ones, as many as `num_pieces` need.
        """
        place = bisect_left(self.rooms, size)
        if place < len(self.rooms):
            room = self.rooms.pop(place)
            return room, np.concatenate(self.groups.pop(room))
        num_new = -(-num_pieces // (self.row_tokens // size))
        self.num_rows += num_new
        return self.row_tokens, np.arange(self.num_rows - num_new, self.num_rows)
