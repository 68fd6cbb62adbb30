"""Padded: one document a row, rows of similar length together, as many as a budget of tokens allows.

A document longer than a row may be goes on in further rows. Each epoch visits the batches in another order
and deals documents of equal length anew.
"""

from bisect import bisect_right
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from nima.batches.permutation import permuted
from nima.batches.pieces import CutDocuments, PieceRow, grouped


class PaddedRows:
    """The order of the batches, a unit each, that documents are divided into, the longest first."""

    def __init__(self, pieces: CutDocuments, *, seed: int, batch_tokens: int) -> None:
        self.pieces = pieces
        self.longest = pieces.max_tokens
        self.numbers, self.edges = grouped(self.longest - pieces.lengths(), self.longest)
        """Pieces from long to short; and where those one token shorter than the ones before begin."""
        self.starts = batch_starts(self.edges.tolist(), self.longest, batch_tokens)
        self.seed = seed
        self.units_per_epoch = len(self.starts) - 1
        self.num_tokens = pieces.num_tokens
        firsts = np.searchsorted(self.edges, self.starts[:-1], side="right") - 1
        num_slots = np.diff(self.starts) @ (self.longest - firsts)
        self.tokens_per_unit = Fraction(self.num_tokens, self.units_per_epoch)
        self.slots_per_unit = Fraction(int(num_slots), self.units_per_epoch)

    def rows(self, unit: int) -> list[PieceRow]:
        epoch, place = divmod(unit, self.units_per_epoch)
        batch = permuted(place, self.units_per_epoch, (self.seed, epoch))
        places = range(int(self.starts[batch]), int(self.starts[batch + 1]))
        dealt = self.pieces.taken(self.numbers[[self.dealt(epoch, place) for place in places]])
        rows = enumerate(dealt.lengths.tolist())
        return [PieceRow(dealt.taken(slice(row, row + 1)), length) for row, length in rows]

    def dealt(self, epoch: int, place: int) -> int:
        """The place from which an epoch deals a piece to this one: among those of the same length."""
        shorter = bisect_right(self.edges, place) - 1
        first, end = self.edges[shorter : shorter + 2].tolist()
        return first + permuted(place - first, end - first, (self.seed, epoch))


def batch_starts(edges: list[int], longest: int, batch_tokens: int) -> NDArray[np.int64]:
    """Where each batch begins among pieces from long to short, and the end: as many of its longest as fit.

    Those that are `shorter` than `longest` begin at `edges[shorter]`.
    """
    starts, shorter = [0], 0
    while starts[-1] < edges[-1]:
        while edges[shorter + 1] <= starts[-1]:
            shorter += 1
        starts.append(min(edges[-1], starts[-1] + batch_tokens // (longest - shorter)))
    return np.array(starts, dtype=np.int64)
