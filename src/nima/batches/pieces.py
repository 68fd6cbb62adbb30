"""Documents whole where they fit a row, and rows made of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nima.batches.stream import TokenizedDocuments, number_type, trained_tokens

AT_ONCE = 1 << 16
"""Documents or pieces that are looked at together: what is made of them on the way stays small."""


@dataclass(frozen=True)
class Pieces:
    """A few stretches of documents: the document of each, where in it the piece begins, its tokens."""

    tokens: TokenizedDocuments
    documents: NDArray[np.integer]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def taken(self, numbers: slice) -> "Pieces":
        """Those of these numbers, in their order."""
        return Pieces(self.tokens, self.documents[numbers], self.starts[numbers], self.lengths[numbers])


class CutDocuments:
    """Documents in their order, those longer than `max_tokens` as several pieces; empty ones as none.

    Pieces are numbered from 0. Of each document only the number behind its last piece is kept: where a piece
    begins, and how long it is, follows.
    """

    def __init__(self, tokens: TokenizedDocuments, documents: NDArray[np.integer], max_tokens: int) -> None:
        self.tokens, self.documents, self.max_tokens = tokens, documents, max_tokens
        self.num_tokens = self.num_pieces = 0
        ends = np.empty(len(documents), np.int64)
        for part in parts_of(len(documents)):
            lengths = tokens.lengths[documents[part]]
            self.num_tokens += int(lengths.sum())
            ends[part] = self.num_pieces + np.cumsum(-(-lengths // max_tokens))
            self.num_pieces = int(ends[part][-1])
        self.ends = ends.astype(number_type(self.num_pieces))

    def lengths(self) -> NDArray[np.signedinteger]:
        """Tokens of each piece."""
        found = np.full(self.num_pieces, self.max_tokens, np.min_scalar_type(-self.max_tokens - 1))
        for part in parts_of(len(self.documents)):
            lengths, ends = self.tokens.lengths[self.documents[part]], self.ends[part]
            held = lengths > 0
            found[ends[held] - 1] = (lengths[held] - 1) % self.max_tokens + 1
        return found

    def taken(self, numbers: NDArray[np.integer]) -> Pieces:
        """The pieces of these numbers, in their order."""
        numbers = numbers.astype(self.ends.dtype)  # of another type, all of `ends` would be converted
        places = np.searchsorted(self.ends, numbers, side="right")
        documents = self.documents[places]
        first = np.where(places > 0, self.ends[places - 1], 0)
        starts = (numbers - first).astype(np.int64) * self.max_tokens
        lengths = np.minimum(self.tokens.lengths[documents] - starts, self.max_tokens)
        return Pieces(self.tokens, documents, starts, lengths)


def parts_of(count: int) -> Iterator[slice]:
    """range(count), in stretches of `AT_ONCE`."""
    for start in range(0, count, AT_ONCE):
        yield slice(start, min(start + AT_ONCE, count))


def grouped(
    keys: NDArray[np.signedinteger], num_keys: int
) -> tuple[NDArray[np.signedinteger], NDArray[np.signedinteger]]:
    """The places of the keys 0, 1, ..., each key's ascending; and where those of each key begin, and the end.

    As a stable `argsort`, in a fifth of its memory.
    """
    edges: NDArray[np.signedinteger] = np.zeros(num_keys + 1, number_type(len(keys)))
    for part in parts_of(len(keys)):
        np.add.at(edges, keys[part].astype(np.intp) + 1, 1)
    np.cumsum(edges, out=edges)
    places, free = np.empty(len(keys), edges.dtype), edges[:-1].copy()
    for part in parts_of(len(keys)):
        order = np.argsort(keys[part], kind="stable")
        ordered = keys[part][order]
        begins = np.flatnonzero(np.diff(ordered, prepend=ordered.dtype.type(-1)))
        counts, own = np.diff(begins, append=len(ordered)), ordered[begins]
        places[np.repeat(free[own] - begins, counts) + np.arange(len(ordered))] = part.start + order
        free[own] += counts.astype(free.dtype)
    return places, edges


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
