"""Near duplicates: documents that share most of their word n-grams, found by MinHash and banding.

The share of equal values in two MinHash sketches estimates the Jaccard similarity of the texts' sets of
n-grams (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900). Bands of a sketch that are equal name the
pairs worth comparing (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4, http://www.mmds.org).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from nima.corpus.ngrams import mixed, ngram_hashes, words_of
from nima.workspace.params.data import NearDuplicatesParams

NUM_HASHES = 128
"""Values in a sketch. The estimate's standard error is sqrt(s (1 - s) / 128): 0.035 at s = 0.8."""
SKETCH_BYTES = 4 * NUM_HASHES
NO_WORDS = 0xFFFF_FFFF
"""Every value of the sketch of a text without words, which is like no other text."""

MIN_RECALL = 0.95
NEIGHBOURS = 8

NGRAMS_AT_ONCE = 512
SKETCHES_AT_ONCE = 16_384
PAIRS_AT_ONCE = 8192


# ------------------------------------------------------------------------------------------- sketches


def sketch(text: str, rules: NearDuplicatesParams) -> bytes:
    """The MinHash sketch of a text: `NUM_HASHES` little-endian uint32, whatever its length.

    A text of fewer words than `rules.ngram_words` has one n-gram, all of them.
    """
    words = words_of(text).hashes
    ngrams = ngram_hashes(words, min(rules.ngram_words, len(words))) if len(words) else words
    smallest = np.full(NUM_HASHES, NO_WORDS, np.dtype("<u4"))
    values = (ngrams >> np.uint64(32)).astype(np.uint32)
    for start in range(0, len(values), NGRAMS_AT_ONCE):
        permuted = multipliers()[:, None] * values[start : start + NGRAMS_AT_ONCE]
        np.minimum(smallest, permuted.min(axis=1), out=smallest)
    return smallest.tobytes()


@cache
def multipliers() -> np.ndarray:
    """uint32[NUM_HASHES]: odd numbers, each of which permutes the values of 32 bits by multiplication."""
    numbers = mixed(np.arange(1, NUM_HASHES + 1, dtype=np.uint64))
    return (numbers >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def banding(min_similarity: float) -> tuple[int, int]:
    """Bands and rows per band: as many rows as still find a pair just at `min_similarity` with probability
    `MIN_RECALL`. A pair of similarity s shares a band with probability 1 - (1 - s^rows)^bands.
    """
    for rows in range(NUM_HASHES, 1, -1):
        bands = NUM_HASHES // rows
        if 1 - (1 - min_similarity**rows) ** bands >= MIN_RECALL:
            return bands, rows
    return NUM_HASHES, 1


# -------------------------------------------------------------------------------------------- clusters


@dataclass(frozen=True)
class NearDuplicates:
    """Clusters of documents that hang together by pairs of at least the wanted similarity."""

    first_of: np.ndarray
    """int64[num_documents]: the first document of each document's cluster; itself if it is like no other."""
    num_pairs: int
    """Similar pairs found. Pairs inside a cluster that earlier pairs already joined are not looked at."""


def near_duplicates(sketches: np.ndarray, min_similarity: float) -> NearDuplicates:
    """Clusters among documents, from their sketches: uint32[num_documents, NUM_HASHES], an array in memory or
    a whole mapped file.

    Documents that share a band are compared by the estimate from their whole sketches: each with the first
    of those, and with the `NEIGHBOURS` before it. So up to 9 documents of one band are compared each with
    each, and 100,000 equal ones by 99,999 comparisons. A pair is missed only if it stands far apart in every
    band that it shares and nothing between hangs together with both.

    Takes about 60 bytes of memory a document, whatever the texts' length. The sketches are read once a band.
    """
    first_of = np.arange(len(sketches))
    num_pairs = 0
    bands, rows = banding(min_similarity)
    for band in range(bands):
        keys, documents = sorted_band(sketches, band * rows, (band + 1) * rows)
        for left, right in pairs_in(keys, documents):
            num_pairs += unite_similar(first_of, left, right, sketches, min_similarity)
    return NearDuplicates(roots(first_of, np.arange(len(sketches))), num_pairs)


def sorted_band(sketches: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash of columns [start, stop) of each document with words, and the documents, sorted by both.

    One number holds both, so that one sort in place does: what chance makes equal is told apart later.
    """
    index_bits = np.uint64(max(1, len(sketches).bit_length()))
    keys = np.empty(len(sketches), np.uint64)
    count = 0
    for first in range(0, len(sketches), SKETCHES_AT_ONCE):
        values = block(sketches, first, first + SKETCHES_AT_ONCE)[:, start:stop].astype(np.uint64)
        has_words = np.flatnonzero((values != NO_WORDS).any(axis=1))
        hashes = ngram_hashes_of_rows(values[has_words])
        documents = (first + has_words).astype(np.uint64)
        keys[count : count + len(documents)] = (hashes << index_bits) | documents
        count += len(documents)
    keys = keys[:count]
    keys.sort()
    documents = (keys & ((np.uint64(1) << index_bits) - np.uint64(1))).astype(np.int64)
    keys >>= index_bits
    return keys, documents


def ngram_hashes_of_rows(values: np.ndarray) -> np.ndarray:
    """uint64[n]: one hash of each row of uint64[n, m]."""
    hashes = np.zeros(len(values), np.uint64)
    for column in values.T:
        hashes = mixed(hashes + column)
    return hashes


def pairs_in(keys: np.ndarray, documents: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Documents of equal keys: each with the first of its kind, then with those close before it."""
    new = np.ones(len(keys), np.bool_)
    new[1:] = keys[1:] != keys[:-1]
    places = np.arange(len(keys))
    heads = np.maximum.accumulate(np.where(new, places, 0))
    repeated = np.flatnonzero(~new)
    yield documents[heads[repeated]], documents[repeated]
    for distance in range(1, NEIGHBOURS + 1):
        repeated = repeated[repeated - distance > heads[repeated]]
        if not len(repeated):
            break
        yield documents[repeated - distance], documents[repeated]


def unite_similar(
    first_of: np.ndarray, left: np.ndarray, right: np.ndarray, sketches: np.ndarray, min_similarity: float
) -> int:
    """Join the clusters of those pairs that are similar; returns how many such pairs there were."""
    num_pairs = 0
    for start in range(0, len(left), PAIRS_AT_ONCE):
        pair = left[start : start + PAIRS_AT_ONCE], right[start : start + PAIRS_AT_ONCE]
        apart = roots(first_of, pair[0]) != roots(first_of, pair[1])
        one, other = pair[0][apart], pair[1][apart]
        if len(one):
            shares = (chosen(sketches, one) == chosen(sketches, other)).mean(axis=1)
            similar = shares >= min_similarity
            unite(first_of, one[similar], other[similar])
            num_pairs += int(similar.sum())
    return num_pairs


def block(sketches: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The sketches of documents [start, stop).

    A mapped file is read instead: touching it would count whole megabytes around each place as memory in use.
    """
    if not isinstance(sketches, np.memmap):
        return sketches[start:stop]
    count, offset = (min(stop, len(sketches)) - start) * NUM_HASHES, sketches.offset + start * SKETCH_BYTES
    return np.fromfile(str(sketches.filename), sketches.dtype, count, offset=offset).reshape(-1, NUM_HASHES)


def chosen(sketches: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The sketches of some documents, read like `block`'s."""
    if not isinstance(sketches, np.memmap):
        return sketches[documents]
    with Path(str(sketches.filename)).open("rb") as file:
        places = (sketches.offset + documents * SKETCH_BYTES).tolist()
        rows = b"".join(os.pread(file.fileno(), SKETCH_BYTES, place) for place in places)
    return np.frombuffer(rows, sketches.dtype).reshape(-1, NUM_HASHES)


# ------------------------------------------------------------------------------------ what hangs together


def unite(first_of: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Joins the clusters of each pair, in place. The first document stands for a cluster."""
    while len(left):
        one, other = roots(first_of, left), roots(first_of, right)
        apart = one != other
        left, right = left[apart], right[apart]
        # Of several that take away the same root the smallest wins; the next round joins the others.
        later, earlier = np.maximum(one, other)[apart], np.minimum(one, other)[apart]
        np.minimum.at(first_of, later, earlier)


def roots(first_of: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The first document of each document's cluster. Shortens the ways there, in place."""
    found = first_of[documents]
    while ((further := first_of[found]) != found).any():
        first_of[documents] = further
        found = further
    return found


def united_groups(groups: np.ndarray, first_of: np.ndarray) -> np.ndarray:
    """The group of each document once clusters are groups too: what hangs together by equal groups or by
    clusters has one, that of its first document. `groups` are numbers or texts of any one type.
    """
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    together = first_of.copy()
    unite(together, np.arange(len(groups)), first[inverse])
    return groups[roots(together, np.arange(len(groups)))]
