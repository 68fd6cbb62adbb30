"""Words and n-grams of words as hashes, by which texts are compared whatever their case and punctuation.

The hashes are plain arithmetic on code points: the same on every machine and in every run. All of a text is
hashed at once (the difference of two prefix sums of a polynomial is the polynomial of what lies between).
"""

import sys
from dataclasses import dataclass
from functools import cache

import numpy as np

BLOCK_CHARS = 1 << 16
"""Longer texts are hashed in blocks of at most so many characters, which keeps memory small."""

NO_WORD, LETTER, WHOLE_WORD = 0, 1, 2
# Scripts that put no space between words: each of their characters counts as one.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)

CHAR_FACTOR = 0x9E3779B97F4A7C15
CHAR_DIVISOR = pow(CHAR_FACTOR, -1, 2**64)
WORD_FACTOR = np.uint64(0xC2B2AE3D27D4EB4F)
MIX_FACTOR = np.uint64(0xD6E8FEB86659FD93)
HALF = np.uint64(32)


@dataclass(frozen=True)
class Words:
    """The words of a text: runs of letters and digits."""

    text: str
    """Case-folded."""
    hashes: np.ndarray
    """uint64[num_words]"""
    starts: np.ndarray
    """int64[num_words]: where each word begins in `text`."""
    ends: np.ndarray
    """int64[num_words]: where it ends."""

    def __len__(self) -> int:
        return len(self.hashes)


def words_of(text: str) -> Words:
    folded = text.casefold()
    parts = [block_words(folded[start:stop], start) for start, stop in blocks_of(folded)]
    hashes, starts, ends = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    return Words(folded, hashes, starts, ends)


def blocks_of(text: str) -> list[tuple[int, int]]:
    """Where a text is cut: at space, or in the middle of what has none. At least one block."""
    blocks, start = [], 0
    while len(text) - start > BLOCK_CHARS:
        space = max(text.rfind(space, start, start + BLOCK_CHARS) for space in " \n")
        stop = space if space > start else start + BLOCK_CHARS
        blocks.append((start, stop))
        start = stop
    return [*blocks, (start, len(text))]


def block_words(text: str, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes, starts and ends of the words of a block that begins at `offset`."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
    starts, ends = borders(points)
    sums = np.zeros(len(points) + 1, np.uint64)
    np.add.accumulate(points * powers(CHAR_FACTOR)[: len(points)], out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * powers(CHAR_DIVISOR)[starts]
    return mixed(hashes), starts + offset, ends + offset


def borders(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words start and end."""
    kinds = character_kinds()[points]
    edge = np.ones(len(points) + 1, np.bool_)
    edge[1:-1] = (kinds[1:] != kinds[:-1]) | (kinds[1:] == WHOLE_WORD)
    inside = kinds != NO_WORD
    return (edge[:-1] & inside).nonzero()[0], (edge[1:] & inside).nonzero()[0] + 1


@cache
def character_kinds() -> np.ndarray:
    """uint8 by code point."""
    points = range(sys.maxunicode + 1)
    kinds = np.fromiter((chr(point).isalnum() for point in points), np.uint8, len(points)) * LETTER
    for first, last in UNSPACED:
        kinds[first : last + 1] *= WHOLE_WORD
    return kinds


@cache
def powers(factor: int) -> np.ndarray:
    """uint64[BLOCK_CHARS + 1]: powers of `factor` modulo 2^64, from 1."""
    factors = np.full(BLOCK_CHARS + 1, factor, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Hashes in which every bit depends on all bits; changes the array in place."""
    hashes ^= hashes >> HALF
    hashes *= MIX_FACTOR
    hashes ^= hashes >> HALF
    return hashes


def ngram_hashes(words: np.ndarray, num_words: int) -> np.ndarray:
    """uint64: the n-grams of `num_words` words from their hashes, in order; none if there are fewer words."""
    count = max(0, len(words) - num_words + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(num_words):
        hashes *= WORD_FACTOR
        hashes += words[place : place + count]
    return mixed(hashes)
