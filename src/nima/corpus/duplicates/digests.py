"""Which contents were seen before: one sorted table of hashes, 24 bytes a document."""

import numpy as np

NEW = -1
"""In place of the number of an earlier document."""
RUN_DOCUMENTS = 1 << 20
"""Runs of more are not merged: it would take, for a moment, three times their memory."""


class SeenDigests:
    """Numbers documents by their digests, in order of first appearance.

    Sorted runs of doubling length, up to `RUN_DOCUMENTS`: adding n digests in any portions costs O(n log² n)
    altogether, and a look-up a binary search in each of a few runs.
    """

    def __init__(self) -> None:
        self.runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.num_documents = 0

    def firsts(self, digests: np.ndarray) -> np.ndarray:
        """int64[n]: for each digest, uint64[n, 2], the number of the first document with it, or `NEW`.

        Numbers count all digests of earlier calls of `add`, and `num_documents` + i is the i-th of this call.
        """
        heads, tails = np.ascontiguousarray(digests[:, 0]), np.ascontiguousarray(digests[:, 1])
        first = np.full(len(digests), NEW, dtype=np.int64)
        for run in self.runs:
            found = looked_up(heads, tails, run)
            first[found != NEW] = found[found != NEW]
        order = np.lexsort((np.arange(len(digests)), tails, heads))
        repeated = np.zeros(len(digests), dtype=bool)
        repeated[1:] = (heads[order][1:] == heads[order][:-1]) & (tails[order][1:] == tails[order][:-1])
        leader = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(digests))))
        inner = order[leader]  # the first of each run of equal digests, in sorted order
        own = np.empty(len(digests), dtype=np.int64)
        own[order] = inner
        later = (own != np.arange(len(digests))) & (first == NEW)
        first[later] = self.num_documents + own[later]
        return first

    def add(self, digests: np.ndarray, first: np.ndarray) -> None:
        """Number these documents; `first` is what `firsts` said of them."""
        new = np.flatnonzero(first == NEW)
        numbers = self.num_documents + new
        self.num_documents += len(digests)
        if len(new):
            self.runs.append(sorted_run(digests[new, 0], digests[new, 1], numbers))
        while len(self.runs) > 1 and len(self.runs[-1][0]) * 2 > len(self.runs[-2][0]):
            if len(self.runs[-1][0]) + len(self.runs[-2][0]) > RUN_DOCUMENTS:
                break
            later, earlier = self.runs.pop(), self.runs.pop()
            self.runs.append(sorted_run(*(np.concatenate(pair) for pair in zip(earlier, later, strict=True))))


def looked_up(
    heads: np.ndarray, tails: np.ndarray, run: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """int64[n]: the numbers under which a run holds these digests, or `NEW`."""
    run_heads, run_tails, run_numbers = run
    found = np.full(len(heads), NEW, dtype=np.int64)
    asked = np.arange(len(heads))
    places = np.searchsorted(run_heads, heads)
    while len(asked):  # again only where other digests begin with the same word
        inside = places < len(run_heads)
        asked, places = asked[inside], places[inside]
        alike = run_heads[places] == heads[asked]
        asked, places = asked[alike], places[alike]
        same = run_tails[places] == tails[asked]
        found[asked[same]] = run_numbers[places[same]]
        asked, places = asked[~same], places[~same] + 1
    return found


def sorted_run(
    heads: np.ndarray, tails: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(heads, kind="stable")
    return heads[order], tails[order], numbers[order]
