"""Tokenized documents in one order, laid end to end."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenizedDocuments(Protocol):
    """What is read of the documents: `nima.dataset.tokens.Tokens`, or anything with its shape."""

    @property
    def num_documents(self) -> int: ...

    @property
    def lengths(self) -> NDArray[np.int64]: ...

    @property
    def weights(self) -> NDArray[np.float64]: ...

    @property
    def sources(self) -> NDArray[np.str_]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    def document(self, index: int) -> NDArray[np.integer]: ...

    def spans(self, index: int) -> NDArray[np.integer]: ...


class Stream:
    """Documents laid end to end, read by position as if they were one endless circle."""

    def __init__(self, tokens: TokenizedDocuments, documents: NDArray[np.integer]) -> None:
        self.tokens = tokens
        self.documents = documents
        self.ends = np.cumsum(tokens.lengths[documents])
        self.num_tokens = int(self.ends[-1]) if len(documents) else 0

    def read(
        self, start: int, num_tokens: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.integer]]:
        """From `start`, past the end it wraps round: ids, whether each is trained, each one's document."""
        ids, trained, places = self.read_places(start, num_tokens)
        return ids, trained, self.documents[places % len(self.documents)]

    def read_places(
        self, start: int, num_tokens: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """As `read`, with the place of each token's document in the order, counted on past the end.

        A document that follows itself (a copy, or round the circle) so has another place.
        """
        ids = np.empty(num_tokens, dtype=np.int64)
        trained = np.empty(num_tokens, dtype=np.bool_)
        places = np.empty(num_tokens, dtype=np.int64)
        filled, position = 0, start % self.num_tokens
        place = int(np.searchsorted(self.ends, position, side="right"))
        while filled < num_tokens:
            document = int(self.documents[place % len(self.documents)])
            end = int(self.ends[place % len(self.documents)])
            content = self.tokens.document(document)
            offset = len(content) - (end - position)
            count = min(len(content) - offset, num_tokens - filled)
            rows = slice(filled, filled + count)
            ids[rows] = content[offset : offset + count]
            trained[rows] = trained_tokens(self.tokens, document, offset, count)
            places[rows] = place
            filled += count
            place += 1
            position = end if place % len(self.documents) else 0
        return ids, trained, places


def trained_tokens(tokens: TokenizedDocuments, document: int, offset: int, count: int) -> NDArray[np.bool_]:
    """Which of a document's `count` tokens from `offset` on are trained."""
    mask = np.zeros(count, dtype=np.bool_)
    for start, stop in tokens.spans(document):
        mask[max(0, int(start) - offset) : max(0, int(stop) - offset)] = True
    return mask


def training_order(
    tokens: TokenizedDocuments, documents: NDArray[np.integer], seed: int
) -> NDArray[np.integer]:
    """A split's documents shuffled, each as often as its weight says.

    A weight of 2.5 is two copies, and a third for every other document, decided by the document's place
    alone so that one document's weight never moves another.
    """
    copies = copies_of(tokens, documents, seed)
    return shuffled(documents if (copies == 1).all() else np.repeat(documents, copies), seed)


def copies_of(tokens: TokenizedDocuments, documents: NDArray[np.integer], seed: int) -> NDArray[np.integer]:
    weights = tokens.weights[documents]
    copies = weights.astype(np.int32)
    weights -= copies
    if weights.any():
        draw = np.random.Generator(np.random.Philox(key=[seed, 1])).random(tokens.num_documents)
        copies += draw[documents] < weights
    return copies


def shuffled(documents: NDArray[np.integer], seed: int) -> NDArray[np.integer]:
    return np.random.Generator(np.random.Philox(key=[seed, 2])).permutation(documents)


def number_type(count: int) -> type[np.signedinteger]:
    """What counts to `count`: plans hold a few such numbers for each document, so half the bytes matter."""
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64
