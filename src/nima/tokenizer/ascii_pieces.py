"""Texts of ASCII split by Nima's pattern, all at once, and each distinct piece encoded only once.

The engine of regular expressions takes piece after piece. Here four characters beside one another decide for
all places at once whether a piece begins there; what they can't decide, later digits of numbers, indentation
and contractions, is looked at one by one. Words repeat, so that few of the pieces are new to the encoder.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LETTER, DIGIT, SPACE, BLANK, NEWLINE, MARK, APOSTROPHE, END = range(8)
"""Classes of characters. A blank is white space beside the space and line ends, a mark what is left of ASCII.
END stands between texts.
"""
WHITE, MARKS = (SPACE, BLANK, NEWLINE), (MARK, APOSTROPHE)
END_BYTE = b"\xff"

NO, YES, IS_DIGIT, IS_INDENT, CLOSES_LINE, IS_CONTRACTION = range(6)
"""Whether a piece begins at a place; from IS_DIGIT on more must be looked at."""

BLOCK_BYTES = 1 << 15
"""What is looked at together: it stays in the processor's cache."""
MAX_KNOWN_BYTES = 1_000_000
"""Of distinct pieces that are remembered: then all are forgotten."""


def begins(before2: int, before: int, here: int, after: int) -> int:
    """Whether a piece of `encoders.PATTERN` begins at the third of four characters, by their classes."""
    if here == APOSTROPHE and before not in (*MARKS, SPACE) and after == LETTER:
        return IS_CONTRACTION
    if END in (before, here):
        return YES
    if here == LETTER:
        # A single mark that begins a piece has the word behind it, and blanks give their last one to it.
        is_led = before in MARKS and before2 not in (*MARKS, SPACE)
        return YES if before in (DIGIT, NEWLINE) or (before in MARKS and not is_led) else NO
    if here == DIGIT:
        return IS_DIGIT if before == DIGIT else YES
    if here in MARKS:
        return NO if before in (*MARKS, SPACE) else YES
    if here == NEWLINE:
        return NO if before in (*WHITE, *MARKS) else YES
    if before not in WHITE or after not in (*WHITE, END):
        return YES
    if before == NEWLINE:
        return YES if after == END else IS_INDENT
    return CLOSES_LINE if after == NEWLINE else NO


def class_table() -> bytes:
    table = bytearray([MARK]) * 256
    kinds = ((SPACE, b" "), (BLANK, b"\t\v\f"), (NEWLINE, b"\r\n"), (APOSTROPHE, b"'"), (END, END_BYTE))
    letters = (string.digits.encode(), string.ascii_letters.encode())
    for kind, characters in (*kinds, *zip((DIGIT, LETTER), letters, strict=True)):
        for character in characters:
            table[character] = kind
    return bytes(table)


CLASSES = class_table()
BEGINS = np.array([begins(*kinds) for kinds in itertools.product(range(8), repeat=4)], dtype=np.uint8)


def starts_of(joined: bytes) -> np.ndarray:
    """Where the pieces of ASCII texts begin, each text followed by END_BYTE: int32."""
    edge = bytes([END])
    classes = np.frombuffer(b"".join([edge, edge, joined.translate(CLASSES), edge]), dtype=np.uint8)
    found = np.empty(len(joined), dtype=np.uint8)
    for start in range(0, len(joined), BLOCK_BYTES):
        block = found[start : start + BLOCK_BYTES]
        some = classes[start : start + len(block) + 3].astype(np.uint16)
        pairs = some[:-1] << 3 | some[1:]
        BEGINS.take(pairs[:-2] << 6 | pairs[2:], out=block, mode="clip")
    decide(found, joined, classes[2:])
    return np.flatnonzero(found.view(bool)).astype(np.int32)


def decide(found: np.ndarray, joined: bytes, classes: np.ndarray) -> None:
    """Make YES or NO of what four characters left open."""
    places = np.flatnonzero(found > YES)
    kinds = found[places]
    digits = places[kinds == IS_DIGIT]
    found[digits] = is_third(digits)
    indents = np.flatnonzero(kinds == IS_INDENT)
    found[places[indents]] = YES
    closed = indents[is_closed(places, kinds, indents, joined, classes)]
    found[places[closed]] = [is_behind_mark(joined, place) for place in places[closed].tolist()]
    found[places[kinds == CLOSES_LINE]] = NO
    apostrophes = places[kinds == IS_CONTRACTION]
    found[apostrophes] = YES
    found[contraction_ends(apostrophes, np.frombuffer(joined, dtype=np.uint8))] = YES


def is_third(digits: np.ndarray) -> np.ndarray:
    """Which of the later digits of numbers come third, fifth, ...: a piece holds two."""
    order = np.arange(len(digits))
    firsts = np.where(np.diff(digits, prepend=-2) > 1, order, 0)
    return (order - np.maximum.accumulate(firsts)) % 2


def is_closed(
    places: np.ndarray, kinds: np.ndarray, indents: np.ndarray, joined: bytes, classes: np.ndarray
) -> np.ndarray:
    """Which blanks at the beginning of lines have nothing but blanks and a line end behind them."""
    follower = np.append(kinds, NO)[indents + 1] == CLOSES_LINE
    closed = classes[places[indents] + 1] == NEWLINE
    for number in np.flatnonzero(follower & ~closed).tolist():
        first, last = places[indents[number]], places[indents[number] + 1]
        closed[number] = not joined[first:last].strip(b" \t\v\f")
    return closed


def is_behind_mark(joined: bytes, place: int) -> bool:
    """Whether the line ends before a place follow a mark, which has them in its piece."""
    place -= 1
    while place >= 0 and joined[place] in b"\r\n":
        place -= 1
    return place >= 0 and CLASSES[joined[place]] in MARKS


def contraction_ends(apostrophes: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The places behind 's, 't, 'm, 'd, 'll, 've and 're."""
    first = text[apostrophes + 1]
    second = text[np.minimum(apostrophes + 2, len(text) - 1)]
    one = np.isin(first, list(b"stmd"))
    two = np.zeros_like(one)
    for name in (b"ll", b"ve", b"re"):
        two |= (first == name[0]) & (second == name[1])
    return np.concatenate([apostrophes[one] + 2, apostrophes[two] + 3])


class PieceEncoder:
    """The ids of ASCII texts by those of their pieces.

    `encode`: the ids of some texts, each with that of the `end` behind it; None if they are beyond it.
    """

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray | None], end: int) -> None:
        self.encode = encode
        self.end = end
        self.forget()

    def forget(self) -> None:
        self.known = pa.array([END_BYTE], pa.binary())
        self.ids = np.array([self.end], np.uint32)
        self.ends = np.ones(1, np.int32)
        """Where the ids of each known piece end."""

    def encode_ended(self, texts: Sequence[str]) -> np.ndarray | None:
        """The ids of all texts, each followed by that of the end: uint32. None if `encode` gives none."""
        joined = "\xff".join([*texts, ""]).encode("latin-1")
        starts = starts_of(joined)
        buffers = [None, pa.py_buffer(np.append(starts, np.int32(len(joined)))), pa.py_buffer(joined)]
        pieces = pa.Array.from_buffers(pa.binary(), len(starts), buffers)
        found = pc.index_in(pieces, value_set=self.known)
        numbers = np.frombuffer(found.fill_null(-1).buffers()[1], np.int32, len(starts))
        if found.null_count:
            strange = pieces.filter(found.is_null())
            new, numbers = strange.unique(), numbers.copy()
            among_new = pc.index_in(strange, value_set=new).buffers()[1]
            numbers[numbers < 0] = len(self.known) + np.frombuffer(among_new, np.int32, len(strange))
            if not self.learn(new):
                return None
        ids = repeated(self.ids, self.ends, numbers)
        if self.known.nbytes > MAX_KNOWN_BYTES:
            self.forget()
        return ids

    def learn(self, pieces: pa.Array) -> bool:
        ids = self.encode([piece.decode() for piece in pieces.to_pylist()])
        if ids is None:
            return False
        is_end = ids == self.end
        ends = np.flatnonzero(is_end) - np.arange(len(pieces))
        self.known = pa.concat_arrays([self.known, pieces])
        self.ends = np.concatenate([self.ends, ends.astype(np.int32) + self.ends[-1]])
        self.ids = np.concatenate([self.ids, ids[~is_end]])
        return True


def repeated(values: np.ndarray, ends: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Runs of values, of which each `ends` where the next one begins, in the order of their numbers."""
    counts = np.diff(ends, prepend=np.int32(0))[numbers]
    behind = np.cumsum(counts, dtype=np.int32)
    places = np.arange(behind[-1], dtype=np.int32)
    places += np.repeat(ends[numbers] - behind, counts)
    return values[places]
