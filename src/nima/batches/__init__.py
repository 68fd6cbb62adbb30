"""The order of the data: which tokens are in batch N is a pure function of (seed, N).

Three kinds of rows (`blocks`, `packed`, `padded`), of all documents together or as a mixture of sources
with given shares. A plan is made once from the documents' lengths; after that nothing is stored and nothing
replayed: any batch is found in the same time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nima.batches.batch import PADDING, Batch, TrainingBatches
from nima.batches.blocks import Blocks
from nima.batches.mixture import Mixture, seed_of
from nima.batches.order import Order
from nima.batches.packed import PackedRows
from nima.batches.padded import PaddedRows
from nima.batches.pieces import CutDocuments
from nima.batches.stream import Stream, TokenizedDocuments, number_type, shuffled, training_order
from nima.batches.windows import Window, evenly_spread, scoring_windows
from nima.workspace.errors import UserError

__all__ = [
    "PADDING",
    "Batch",
    "Batching",
    "Stream",
    "TokenizedDocuments",
    "TrainingBatches",
    "Window",
    "evenly_spread",
    "scoring_windows",
    "steps_of",
    "training_batches",
]

Batching = Literal["blocks", "packed", "padded"]


def training_batches(
    tokens: TokenizedDocuments,
    documents: NDArray[np.integer],
    *,
    seed: int,
    batching: Batching,
    mixture: Mapping[str, float],
    block_tokens: int,
    batch_tokens: int,
    end_of_text: int,
) -> TrainingBatches:
    """The batches of a split. Raises `UserError` when its text is too little or the mixture does not fit it.

    Without a mixture documents are read as often as their weights say; a mixture's shares replace weights.
    """
    plan = Plan(tokens, batching, block_tokens, batch_tokens)
    documents = documents.astype(number_type(tokens.num_documents))
    order: Order
    if mixture:
        order = plan.mixture(documents, mixture, seed)
    else:
        order = plan.order(training_order(tokens, documents, seed), seed, "the training part")
    units_per_batch = 1 if batching == "padded" else batch_tokens // block_tokens
    return TrainingBatches(tokens, order, units_per_batch=units_per_batch, end_of_text=end_of_text)


@dataclass(frozen=True)
class Plan:
    """How documents become rows."""

    tokens: TokenizedDocuments
    batching: Batching
    block_tokens: int
    batch_tokens: int

    def order(self, documents: NDArray[np.integer], seed: int, part: str) -> Order:
        """The rows of shuffled documents; `part` names them in the message when they are too few."""
        num_tokens = int(self.tokens.lengths[documents].sum())
        if self.batching == "blocks":
            if num_tokens < self.block_tokens:
                raise UserError(
                    f"training.block_tokens: {self.block_tokens} tokens make a block, but {part} has only "
                    f"{num_tokens}; shorten the block or add text"
                )
            return Blocks(Stream(self.tokens, documents), seed=seed, block_tokens=self.block_tokens)
        if not num_tokens:
            raise UserError(f"training.batching: {part} has no token to train on; add text")
        pieces = CutDocuments(self.tokens, documents, self.block_tokens)
        if self.batching == "packed":
            return PackedRows(pieces, seed=seed)
        return PaddedRows(pieces, seed=seed, batch_tokens=self.batch_tokens)

    def mixture(self, documents: NDArray[np.integer], shares: Mapping[str, float], seed: int) -> Mixture:
        orders = {}
        for name, chosen in documents_by_source(self.tokens, documents, shares).items():
            own_seed = seed_of(seed, name)
            part = f"source {name} of the training part"
            orders[name] = self.order(shuffled(chosen, own_seed), own_seed, part)
        return Mixture(orders, shares)


def documents_by_source(
    tokens: TokenizedDocuments, documents: NDArray[np.integer], shares: Mapping[str, float]
) -> dict[str, NDArray[np.integer]]:
    """The documents of each source that has a share above 0.

    Raises `UserError` for a source without a share, and for a share without a source.
    """
    sources = tokens.sources[documents]
    chosen = {name: documents[sources == name] for name in shares}
    if sum(map(len, chosen.values())) < len(documents):
        without = sorted(set(sources.tolist()) - set(shares))
        raise UserError(
            f"training.mixture: no share for {', '.join(without)}; give every source of the training part "
            "one (0 leaves it out)"
        )
    for name, found in chosen.items():
        if not len(found):
            known = ", ".join(sorted(set(sources.tolist())))
            raise UserError(
                f"training.mixture.{name}: the training part has no document of this source; known: {known}"
            )
    return {name: found for name, found in chosen.items() if shares[name] > 0}


def steps_of(
    max_steps: int | None, max_epochs: float | None, batches: TrainingBatches, max_tokens: int | None = None
) -> int:
    """The length of a run in updates; epochs and tokens are rounded up to whole updates.

    An epoch of a mixture is as many rows as its sources have together. Padding is no token.
    """
    if max_steps is not None:
        return max_steps
    if max_tokens is not None:
        return math.ceil(max_tokens / batches.tokens_per_batch)
    return max(1, math.ceil((max_epochs or 0) * batches.order.units_per_epoch / batches.units_per_batch))
