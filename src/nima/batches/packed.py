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
from nima.batches.pieces import CutDocuments, PieceRow, grouped
from nima.batches.stream import number_type


class PackedRows:
    """The order of the rows, as long as the longest pieces, that documents are packed into."""

    def __init__(self, pieces: CutDocuments, *, seed: int) -> None:
        self.pieces = pieces
        self.row_tokens = pieces.max_tokens
        row_of = best_fit(pieces.lengths(), self.row_tokens)
        self.numbers, self.edges = grouped(row_of, int(row_of.max()) + 1)
        """The rows' pieces, as shuffled inside a row; and where those of each row begin, and the end."""
        self.seed = seed
        self.units_per_epoch = len(self.edges) - 1
        self.num_tokens = pieces.num_tokens
        self.tokens_per_unit = Fraction(self.num_tokens, self.units_per_epoch)
        self.slots_per_unit = Fraction(self.row_tokens)

    def rows(self, unit: int) -> list[PieceRow]:
        epoch, place = divmod(unit, self.units_per_epoch)
        row = permuted(place, self.units_per_epoch, (self.seed, epoch))
        return [PieceRow(self.pieces.taken(self.numbers[slice(*self.edges[row : row + 2])]), self.row_tokens)]


def best_fit(sizes: NDArray[np.signedinteger], row_tokens: int) -> NDArray[np.signedinteger]:
    """The row of each piece, by best-fit-decreasing: largest first, each into the fullest row with room.

    Pieces of equal size are placed together: the fullest rows with room for one take as many as fit, then
    the next fullest. Rows of equal room are one group, and a group that takes pieces of a size is left with
    less than half its room, so there are O(row_tokens · log row_tokens) steps whatever the number of pieces.
    """
    rows = np.empty(len(sizes), number_type(len(sizes)))
    order, edges = grouped(row_tokens - sizes, row_tokens)
    open_rows = OpenRows(row_tokens, rows.dtype)
    for shorter in range(row_tokens):
        size, waiting = row_tokens - shorter, order[edges[shorter] : edges[shorter + 1]]
        while len(waiting):
            room, fullest = open_rows.fullest(size, len(waiting))
            each = room // size
            num_placed = min(len(waiting), each * len(fullest))
            rows[waiting[:num_placed]] = np.repeat(fullest, each)[:num_placed]
            num_full, num_in_last = divmod(num_placed, each)
            open_rows.add(room - each * size, fullest[:num_full])
            open_rows.add(room - num_in_last * size, fullest[num_full : num_full + 1])
            open_rows.add(room, fullest[num_full + 1 :])
            waiting = waiting[num_placed:]
    return rows


class OpenRows:
    """Rows by the room left in them."""

    def __init__(self, row_tokens: int, dtype: np.dtype[np.signedinteger]) -> None:
        self.row_tokens = row_tokens
        self.dtype = dtype
        self.num_rows = 0
        self.rooms: list[int] = []
        """Ascending: those that some row has."""
        self.groups: dict[int, list[NDArray[np.signedinteger]]] = defaultdict(list)

    def add(self, room: int, rows: NDArray[np.signedinteger]) -> None:
        if room and len(rows):
            if room not in self.groups:
                insort(self.rooms, room)
            self.groups[room].append(rows)

    def fullest(self, size: int, num_pieces: int) -> tuple[int, NDArray[np.signedinteger]]:
        """Takes out the rows with the least room for `size`, and says that room.

        When no row has room these are empty ones, as many as `num_pieces` need.
        """
        place = bisect_left(self.rooms, size)
        if place < len(self.rooms):
            room = self.rooms.pop(place)
            return room, np.concatenate(self.groups.pop(room))
        num_new = -(-num_pieces // (self.row_tokens // size))
        self.num_rows += num_new
        return self.row_tokens, np.arange(self.num_rows - num_new, self.num_rows, dtype=self.dtype)
