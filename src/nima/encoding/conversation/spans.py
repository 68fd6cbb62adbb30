"""Pieces to tokens, and which of the tokens are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from operator import attrgetter
from typing import NamedTuple, Protocol

import numpy as np

from nima.encoding.conversation.pieces import Transcript
from nima.workspace.errors import UserError

TEXT = attrgetter("text")
SPECIAL = attrgetter("special")


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    special_ids: dict[str, int]

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]: ...

    def token_bytes(self) -> np.ndarray: ...


class Encoded(NamedTuple):
    tokens: np.ndarray
    """uint32[num_tokens], the end token included."""
    spans: list[tuple[int, int]]
    """[start, end) of the tokens that are trained; ascending, disjoint."""
    num_bytes: int
    """UTF-8 bytes of plain text."""
    num_input_tokens: int
    """Tokens before the last answer of a conversation; 0 where there is none."""


def encoded_text(text: str, ids: np.ndarray, end: int) -> Encoded:
    """A plain document: its tokens and the end token, all trained."""
    num_tokens = len(ids) + 1
    tokens = np.empty(num_tokens, dtype=np.uint32)
    tokens[:-1] = ids
    tokens[-1] = end
    return Encoded(tokens, [(0, num_tokens)], len(text) if text.isascii() else len(text.encode()), 0)


def texts_of(transcript: Transcript) -> list[str]:
    """The plain texts that are encoded: neighbouring pieces are one, as they are for any other reader."""
    return ["".join(map(TEXT, row)) for special, row in groupby(transcript.pieces, SPECIAL) if not special]


def encoded_conversation(
    transcript: Transcript,
    encoded: Iterator[np.ndarray],
    special_ids: dict[str, int],
    token_bytes: np.ndarray,
) -> Encoded:
    """A conversation; `encoded` gives the ids of each of its `texts_of`, `token_bytes` each token's bytes."""
    tokens: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    start = number = num_bytes = num_input_tokens = 0
    for special, group in groupby(transcript.pieces, SPECIAL):
        row = list(group)
        if special:
            ids = np.array([special_ids[piece.text] for piece in row], dtype=np.uint32)
            ranges = [(place, place + 1) for place in range(len(row))]
        else:
            ids = next(encoded)
            sizes = [len(piece.text.encode()) for piece in row]
            ranges = token_ranges(sizes, ids, token_bytes)
            num_bytes += sum(sizes)
        for piece, (first, last) in zip(row, ranges, strict=True):
            if number == transcript.answer:
                num_input_tokens = start + first
            if piece.trained:
                add_span(spans, start + first, start + last)
            number += 1
        tokens.append(ids)
        start += len(ids)
    return Encoded(np.concatenate(tokens), spans, num_bytes, num_input_tokens)


def add_span(spans: list[tuple[int, int]], start: int, end: int) -> None:
    if spans and spans[-1][1] >= start:
        start, _ = spans.pop()
    if end > start:
        spans.append((start, end))


def token_ranges(sizes: Sequence[int], ids: np.ndarray, token_bytes: np.ndarray) -> list[tuple[int, int]]:
    """[first, last) of the tokens of each piece, by the pieces' sizes in bytes.

    A token over the border of two pieces belongs to both: it is trained if one of them is.
    """
    if len(sizes) == 1:
        return [(0, len(ids))]
    ends = np.cumsum(token_bytes[ids])
    borders = list(accumulate(sizes))
    if not len(ids) or ends[-1] != borders[-1]:
        raise UserError(
            f"its tokens stand for {ends[-1] if len(ids) else 0} bytes of text, which has {borders[-1]}: the "
            "tokenizer changes it, so what is trained can't be told; see prepare.cleaning.unicode"
        )
    ranges = []
    first = 0
    for border, after in zip(borders, ends.searchsorted(borders, side="right").tolist(), strict=True):
        ranges.append((first, after if ends[after - 1] == border else after + 1))
        first = after
    return ranges
