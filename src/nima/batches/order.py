"""What the kinds of batching share: an endless order of rows."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Row(Protocol):
    """One sequence of a batch, found but not read yet."""

    @property
    def num_slots(self) -> int: ...

    def write(self, ids: NDArray[np.int64], targets: NDArray[np.int64], documents: NDArray[np.int64]) -> None:
        """Write the row into the arrays of a batch, which hold end-of-text, `IGNORED` and `PADDING`."""

    def document_numbers(self) -> list[int]:
        """The documents that its targets are read from."""


class Order(Protocol):
    """An endless order of units, epoch after epoch; which rows unit N has is found without reading any.

    A unit is one row, or with padded batches all rows of a batch.
    """

    @property
    def units_per_epoch(self) -> int: ...

    @property
    def num_tokens(self) -> int:
        """Of an epoch."""

    @property
    def tokens_per_unit(self) -> Fraction:
        """In the mean over an epoch, without padding."""

    @property
    def slots_per_unit(self) -> Fraction:
        """In the mean over an epoch, with padding."""

    def rows(self, unit: int) -> Sequence[Row]: ...
