"""Padded: one document a row, rows of similar length together, as many as a budget of tokens allows.

A document longer than a row may be goes on in further rows. Each epoch visits the batches in another order
and deals documents of equal length anew.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from nima.batches.permutation import permuted
from nima.batches.pieces import PieceRow, Pieces


class PaddedRows:
    """The order of the batches, a unit each, that pieces of `batch_tokens` at most are divided into."""

    def __init__(self, pieces: Pieces, *, seed: int, batch_tokens: int) -> None:
        self.pieces = pieces.taken(np.argsort(-pieces.lengths, kind="stable"))
        self.starts = batch_starts(self.pieces.lengths, batch_tokens)
        self.counts = np.bincount(pieces.lengths)
        """Pieces of each length."""
        self.longer = len(pieces.lengths) - np.cumsum(self.counts)
        """Pieces that are longer than each length: where those of that length begin."""
        self.seed = seed
        self.units_per_epoch = len(self.starts) - 1
        self.num_tokens = pieces.num_tokens
        num_slots = np.diff(self.starts) @ self.pieces.lengths[self.starts[:-1]].astype(np.int64)
        self.tokens_per_unit = Fraction(self.num_tokens, self.units_per_epoch)
        self.slots_per_unit = Fraction(int(num_slots), self.units_per_epoch)

    def rows(self, unit: int) -> list[PieceRow]:
        epoch, place = divmod(unit, self.units_per_epoch)
        batch = permuted(place, self.units_per_epoch, (self.seed, epoch))
        numbers = range(int(self.starts[batch]), int(self.starts[batch + 1]))
        dealt = self.pieces.taken(np.array([self.dealt(epoch, number) for number in numbers]))
        rows = enumerate(dealt.lengths.tolist())
        return [PieceRow(dealt.taken(slice(row, row + 1)), length) for row, length in rows]

    def dealt(self, epoch: int, number: int) -> int:
        """The piece that an epoch puts in the place of piece `number`: one of the same length."""
        length = int(self.pieces.lengths[number])
        first, count = int(self.longer[length]), int(self.counts[length])
        return first + permuted(number - first, count, (self.seed, epoch))


def batch_starts(lengths: NDArray[np.int32], batch_tokens: int) -> NDArray[np.int64]:
    """Where each batch begins in the descending lengths, and the end: as many rows of its longest as fit."""
    starts = [0]
    while starts[-1] < len(lengths):
        starts.append(min(len(lengths), starts[-1] + batch_tokens // int(lengths[starts[-1]])))
    return np.array(starts, dtype=np.int64)
