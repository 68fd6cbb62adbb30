"""Blocks: the joined text of all documents, cut into rows of equal length.

Each epoch cuts the stream from another starting point and visits the blocks in another order.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from nima.batches.permutation import keyed_hash, permuted
from nima.batches.stream import Stream
from nima.network.targets import IGNORED


@dataclass(frozen=True)
class BlockRow:
    """The tokens of a stream from `start` on; each one's target is the token behind it."""

    stream: Stream
    start: int
    num_slots: int

    def write(self, ids: NDArray[np.int64], targets: NDArray[np.int64], documents: NDArray[np.int64]) -> None:
        read, trained, places = self.stream.read_places(self.start, self.num_slots + 1)
        ids[:] = read[:-1]
        targets[:] = np.where(trained[1:], read[1:], IGNORED)
        documents[:] = places[1:]

    def document_numbers(self) -> list[int]:
        return sorted(set(self.stream.read(self.start + 1, self.num_slots)[2].tolist()))


class Blocks:
    """The order of a stream's blocks; what is left behind an epoch's last block is read in other epochs."""

    def __init__(self, stream: Stream, *, seed: int, block_tokens: int) -> None:
        self.stream = stream
        self.seed = seed
        self.block_tokens = block_tokens
        self.units_per_epoch = stream.num_tokens // block_tokens
        self.num_tokens = stream.num_tokens
        self.tokens_per_unit = self.slots_per_unit = Fraction(block_tokens)

    def rows(self, unit: int) -> list[BlockRow]:
        epoch, place = divmod(unit, self.units_per_epoch)
        return [BlockRow(self.stream, self.start_of(epoch, place), self.block_tokens)]

    def start_of(self, epoch: int, place: int) -> int:
        """Where in the stream the block begins that epoch `epoch` visits as its number `place`."""
        rotation = keyed_hash(self.seed, epoch, 0, 0) % self.stream.num_tokens
        return rotation + permuted(place, self.units_per_epoch, (self.seed, epoch)) * self.block_tokens
