"""Tokenized documents made by hand, for tests that need a stream of tokens and no files."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ListedDocuments:
    """What `nima.batches.TokenizedDocuments` asks for, from lists; without spans everything is trained."""

    contents: Sequence[Sequence[int]]
    trained: Sequence[Sequence[tuple[int, int]]] | None = None
    weighted: Sequence[float] | None = None

    @property
    def num_documents(self) -> int:
        return len(self.contents)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(content) for content in self.contents], dtype=np.int64)

    @property
    def weights(self) -> NDArray[np.float64]:
        return np.array(self.weighted or [1.0] * len(self.contents))

    @property
    def ids(self) -> list[str]:
        return [f"document-{index}" for index in range(len(self.contents))]

    def document(self, index: int) -> NDArray[np.uint16]:
        return np.array(self.contents[index], dtype=np.uint16)

    def spans(self, index: int) -> NDArray[np.int64]:
        spans = [(0, len(self.contents[index]))] if self.trained is None else self.trained[index]
        return np.array(spans, dtype=np.int64).reshape(-1, 2)


def numbered(lengths: Sequence[int]) -> ListedDocuments:
    """Documents whose tokens number the stream from 0, so that a token tells its place."""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    return ListedDocuments([list(range(start, stop)) for start, stop in itertools.pairwise(starts)])
