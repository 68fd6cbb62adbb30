"""Lines of a stream of bytes, none held beyond a limit, and parts of a file that begin and end at lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file that begins behind a line's end and ends behind another, or at the file's end."""

    start_bytes: int
    end_bytes: int
    first_line: int
    """Number, from 0, of the line at its beginning."""


class Line(NamedTuple):
    """One line without its end."""

    number: int
    """From 0."""
    start_bytes: int
    content: bytes
    """Cut behind the limit."""
    num_bytes: int
    num_counted: int
    """How often the byte that is counted stands in the whole line."""


def lines_of(
    chunks: Iterable[bytes],
    max_bytes: int,
    first_line: int = 0,
    start_bytes: int = 0,
    counted: bytes = b"",
) -> Iterator[Line]:
    """All lines, a last one without an end included. Holds a chunk and `max_bytes` of a line at most."""
    number, start = first_line, start_bytes
    begun: list[bytes] = []
    begun_bytes = num_counted = 0
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            num_bytes = begun_bytes + len(piece)
            if counted:
                num_counted += piece.count(counted)
            if begun:
                piece = b"".join((*begun, piece))
                begun, begun_bytes = [], 0
            yield Line(number, start, piece[:max_bytes], num_bytes, num_counted)
            number, start, num_counted = number + 1, start + num_bytes + 1, 0
        if rest:
            if begun_bytes <= max_bytes:
                begun.append(rest)
            begun_bytes += len(rest)
            if counted:
                num_counted += rest.count(counted)
    if begun:
        yield Line(number, start, b"".join(begun)[:max_bytes], begun_bytes, num_counted)
