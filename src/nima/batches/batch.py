"""Batches: rows of an order, as arrays."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nima.batches.mixture import Mixture
from nima.batches.order import Order, Row
from nima.batches.stream import TokenizedDocuments
from nima.network.targets import IGNORED

PADDING = -1
"""The document of slots that hold no text."""


@dataclass(frozen=True)
class Batch:
    """Inputs, targets and documents, each int64 (rows, slots).

    Targets that are not trained are `IGNORED`. Documents are numbers that tell a row's neighbours apart,
    by the target: the end-of-text token that a document's first token is predicted from belongs to that
    document. Slots without text are `PADDING`.
    """

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        return int((self.documents != PADDING).sum())

    @property
    def num_trained_tokens(self) -> int:
        return int((self.targets != IGNORED).sum())

    @property
    def borders(self) -> NDArray[np.int32]:
        """Where documents begin in the rows laid end to end, and the end: int32 (documents + 1).

        No document reaches into the next row, and slots without text count as one more at a row's end.
        """
        begins = np.ones(self.documents.shape, dtype=np.bool_)
        begins[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        return np.append(np.flatnonzero(begins), begins.size).astype(np.int32)

    def micro_batches(self, max_tokens: int) -> Iterator["Batch"]:
        """The rows in order, as many at once as have `max_tokens` slots at most, but at least one."""
        num_rows, num_slots = self.ids.shape
        step = max(1, max_tokens // num_slots)
        for start in range(0, num_rows, step):
            rows = slice(start, start + step)
            yield Batch(self.ids[rows], self.targets[rows], self.documents[rows])


class TrainingBatches:
    """`batch(step)`: the next `units_per_batch` units of an order, as arrays."""

    def __init__(
        self, tokens: TokenizedDocuments, order: Order, *, units_per_batch: int, end_of_text: int
    ) -> None:
        self.tokens = tokens
        self.order = order
        self.units_per_batch = units_per_batch
        self.end_of_text = end_of_text

    @property
    def tokens_per_batch(self) -> float:
        """In the mean over an epoch, without padding."""
        return float(self.order.tokens_per_unit * self.units_per_batch)

    @property
    def packing_efficiency(self) -> float:
        """The share of slots that hold text, in the mean over an epoch."""
        return float(self.order.tokens_per_unit / self.order.slots_per_unit)

    def epochs(self, num_steps: int) -> float:
        return num_steps * self.units_per_batch / self.order.units_per_epoch

    def epochs_by_source(self, num_steps: int) -> dict[str, float]:
        """Passes over each source of a mixture; empty without one."""
        if not isinstance(self.order, Mixture):
            return {}
        return self.order.epochs(num_steps * self.units_per_batch)

    def rows(self, step: int) -> list[Row]:
        units = range(step * self.units_per_batch, (step + 1) * self.units_per_batch)
        return [row for unit in units for row in self.order.rows(unit)]

    def batch(self, step: int, rank: int = 0, num_ranks: int = 1) -> Batch:
        """Batch number `step` (from 0), or the part of it that rank `rank` of `num_ranks` computes.

        The parts of all ranks, one below the other, are the batch: their number changes no result. All have
        the same shape, so that ranks compute in step: some end in a row without text.
        """
        rows = self.rows(step)
        num_slots = max(row.num_slots for row in rows)
        mine = rows[len(rows) * rank // num_ranks : len(rows) * (rank + 1) // num_ranks]
        num_rows = -(-len(rows) // num_ranks)
        ids, targets, documents = (
            np.full((num_rows, num_slots), value, dtype=np.int64)
            for value in (self.end_of_text, IGNORED, PADDING)
        )
        for place, row in enumerate(mine):
            row.write(ids[place], targets[place], documents[place])
        return Batch(ids, targets, documents)

    def documents_of(self, step: int) -> list[int]:
        """The documents that batch `step` trains on, ascending: what to name when the batch is at fault."""
        return sorted({document for row in self.rows(step) for document in row.document_numbers()})
