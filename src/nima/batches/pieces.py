"""Documents whole where they fit a row, and rows made of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nima.batches.stream import TokenizedDocuments, trained_tokens


@dataclass(frozen=True)
class Pieces:
    """Stretches of documents, by number: the document, where in it the piece begins, its tokens."""

    tokens: TokenizedDocuments
    documents: NDArray[np.int64]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]

    def taken(self, numbers: NDArray[np.int64] | slice) -> "Pieces":
        """The pieces of these numbers, in their order."""
        return Pieces(self.tokens, self.documents[numbers], self.starts[numbers], self.lengths[numbers])

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))


def pieces_of(tokens: TokenizedDocuments, documents: NDArray[np.int64], max_tokens: int) -> Pieces:
    """The documents in their order, those longer than `max_tokens` as several pieces; empty ones as none."""
    lengths = tokens.lengths[documents]
    counts = -(-lengths // max_tokens)
    # In place where it can be: there are as many pieces as documents and more.
    starts = np.arange(counts.sum())
    starts -= np.repeat(np.cumsum(counts) - counts, counts)
    starts *= max_tokens
    left = np.repeat(lengths, counts)
    left -= starts
    np.minimum(left, max_tokens, out=left)
    return Pieces(tokens, np.repeat(documents, counts), starts.astype(np.int32), left.astype(np.int32))


@dataclass(frozen=True)
class PieceRow:
    """Pieces side by side. Each token is predicted from the one before it, a first one from end-of-text.

    A piece so takes as many slots as it has tokens, and all of them can be trained.
    """

    pieces: Pieces
    num_slots: int

    def write(self, ids: NDArray[np.int64], targets: NDArray[np.int64], documents: NDArray[np.int64]) -> None:
        slot = 0
        for number, document in enumerate(self.pieces.documents.tolist()):
            start, length = int(self.pieces.starts[number]), int(self.pieces.lengths[number])
            content = self.pieces.tokens.document(document)[: start + length]
            slots = slice(slot, slot + length)
            if start > 0:
                ids[slot] = content[start - 1]
            ids[slot + 1 : slot + length] = content[start:-1]
            trained = trained_tokens(self.pieces.tokens, document, start, length)
            np.copyto(targets[slots], content[start:], where=trained)
            documents[slots] = number
            slot += length

    def document_numbers(self) -> list[int]:
        return sorted(set(self.pieces.documents.tolist()))
