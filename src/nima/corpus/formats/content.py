"""What a text file holds: its bytes in chunks, unpacked, with the encoding that they are in."""

import itertools
from collections.abc import Iterator
from typing import BinaryIO

from nima.corpus.document import Rejection
from nima.corpus.formats.encodings import SAMPLE_BYTES, TextEncoding
from nima.corpus.formats.fields import Unusable
from nima.corpus.formats.lines import Span
from nima.corpus.formats.records import Reading
from nima.corpus.formats.unpacking import Chunks, damage_of
from nima.corpus.quality.quality import Flaw
from nima.workspace.params import LimitsParams

MARK_BYTES = 4
"""The longest byte order mark."""


class Content:
    """Iterate over its chunks once; `flaw` then says why they ended early, if they did.

    Lines in the chunks end in the byte 10, whatever the file's encoding is.
    """

    def __init__(
        self, stream: BinaryIO, compression: str | None, reading: Reading, span: Span | None = None
    ) -> None:
        self.span = span or Span(0, -1, 0)
        declared = reading.source.encoding
        if span is None:
            self.packed = packed_chunks(stream, compression, reading.limits)
            head, self.chunks = split_head(iter(self.packed), num_head_bytes(declared))
        else:
            head = stream.read(num_head_bytes(declared))
            stream.seek(span.start_bytes)
            self.packed = Chunks(stream, None, reading.limits, span.end_bytes - span.start_bytes)
            self.chunks = iter(self.packed)
        self.encoding = TextEncoding(head, declared, reading.place)

    def __iter__(self) -> Iterator[bytes]:
        return self.encoding.chunks(self.chunks)

    @property
    def flaw(self) -> Flaw | None:
        return self.packed.flaw

    def whole(self, max_bytes: int) -> bytes:
        """All of it; more than `max_bytes` if there is more."""
        parts, num_bytes = [], 0
        for chunk in self:
            parts.append(chunk)
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                break
        return b"".join(parts)


def packed_chunks(stream: BinaryIO, compression: str | None, limits: LimitsParams) -> Chunks:
    """All chunks of a file; none of one that is damaged, rather than cut."""
    damage = None if compression is None else damage_of(stream, compression, limits)
    if damage is None:
        return Chunks(stream, compression, limits)
    nothing = Chunks(stream, None, limits, num_bytes=0)
    nothing.flaw = damage
    return nothing


def num_head_bytes(declared: str) -> int:
    """How much of a file tells its encoding."""
    return SAMPLE_BYTES if declared == "auto" else MARK_BYTES


def split_head(chunks: Iterator[bytes], num_bytes: int) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, `num_bytes` or more if there are so many, and all chunks still."""
    taken: list[bytes] = []
    while sum(map(len, taken)) < num_bytes and (chunk := next(chunks, b"")):
        taken.append(chunk)
    return b"".join(taken), itertools.chain(taken, chunks)


def bytes_of(reading: Reading, content: Content, limit: str) -> bytes | Rejection:
    """The whole file, or why it is of no use; `limit` names the limit of its length."""
    data = content.whole(getattr(reading.limits, limit))
    if len(data) > getattr(reading.limits, limit):
        return reading.too_large(reading.key, data, limit, "")
    return data


def text_of(reading: Reading, content: Content, limit: str) -> str | Rejection:
    """The file as one text, or why it is none; `limit` names the limit of its length."""
    data = bytes_of(reading, content, limit)
    if isinstance(data, Rejection):
        return data
    if content.flaw is not None:
        return reading.rejected_bytes(reading.key, content.flaw, data, "")
    try:
        return content.encoding.text(data)
    except Unusable as error:
        return reading.rejected_bytes(reading.key, error.flaw, data, "")
