"""Bytes as text: byte order marks, declared encodings, and a guess where a source asks for it.

A guess is made only where UTF-8 fails, and dropped where it is not sure: text in a wrong encoding looks
right to a machine.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import cast

from nima.corpus.formats.fields import Unusable, shortened
from nima.corpus.quality.quality import Flaw
from nima.workspace.errors import SourceError

UTF8 = "utf-8"
BOM = "\ufeff"
# The longer ones first: UTF-32's begins as UTF-16's.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: UTF8,
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Without a mark, Unicode's own default would be big-endian; files in the wild are not.
UNMARKED = {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": UTF8}
SURROGATE = re.compile("[\ud800-\udfff]")
NO_CHARACTER = "\udcff"
"""For "surrogateescape" the byte 255, which UTF-8 never has."""
NO_TEXT = "nima.no_text"
"""The error handler below, as codecs know it."""
SAMPLE_BYTES = 200_000
MIN_SAMPLE_BYTES = 32
# Of 1,481 samples of 15 to 2,500 bytes in 12 languages and 11 encodings, 2 were wrong above it, both
# shorter than MIN_SAMPLE_BYTES; all samples of 60 bytes or more were right.
MIN_CONFIDENCE = 0.12


class TextEncoding:
    """How the bytes of one file are read, decided by its first bytes and what its source declares.

    Raises `SourceError` if the declared encoding is unknown.
    """

    def __init__(self, head: bytes, declared: str, place: str) -> None:
        head = head[:SAMPLE_BYTES]
        self.head = head
        self.guesses = declared == "auto"
        marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
        self.codec = marked or (UTF8 if self.guesses else known_codec(declared, place))
        if self.guesses and marked is None and b"\0" in head:
            self.codec = guessed(head) or UTF8
        self.is_wide = not ends_lines(self.codec)

    def chunks(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The bytes as `text` takes them: as they are, or wide ones as UTF-8."""
        return iter(chunks) if not self.is_wide else as_utf8(chunks, self.codec)

    def text(self, content: bytes, offset: int = 0) -> str:
        """`content`, which stands at byte `offset`, as text without byte order mark. Raises `Unusable`."""
        codec = UTF8 if self.is_wide else self.codec
        try:
            text = content.decode(codec)
            if codec != UTF8:
                text.encode()  # some codecs give lone surrogates
        except UnicodeError as error:
            if not self.guesses or self.is_wide:
                raise self.undecodable(error, offset) from None
            text = self.guessed_text(content)
        return text[1:] if text.startswith(BOM) else text

    def undecodable(self, error: UnicodeError, offset: int) -> Unusable:
        where = ""
        if isinstance(error, UnicodeDecodeError) and not self.is_wide:
            where = f"byte {error.start + offset}: {error.reason}"
        if self.codec == UTF8:
            return Unusable("invalid_utf8", where)
        return Unusable("invalid_encoding", f"not {self.codec}{': ' if where else ''}{where}")

    def guessed_text(self, content: bytes) -> str:
        """In the encoding of the file's beginning, or its own if the beginning is UTF-8."""
        for sample in (self.head, content[:SAMPLE_BYTES]):
            codec = guessed(sample)
            if codec is not None and ends_lines(codec):
                try:
                    return content.decode(codec)
                except UnicodeError:
                    continue
        raise Unusable("unknown_encoding", "neither UTF-8 nor surely another; declare the source's encoding")

    def escaped_text(self, content: bytes) -> str | None:
        """As `text`, but each byte that is no text becomes a lone surrogate, as Python names files.

        None if the encoding cannot tell which bytes these are.
        """
        with suppress(Unusable):
            return self.text(content)
        with suppress(UnicodeError):
            text = content.decode(UTF8 if self.is_wide else self.codec, "surrogateescape")
            text.encode(UTF8, "surrogateescape")
            return text[1:] if text.startswith(BOM) else text
        return None

    def flaw_of(self, content: bytes) -> Flaw:
        """Why `content` is no text."""
        try:
            self.text(content)
        except Unusable as error:
            return error.flaw
        return Flaw("invalid_encoding", "not in the encoding of its file")


def ends_lines(codec: str) -> bool:
    """Whether lines end in the byte 10, as they do not in UTF-16, UTF-32 and mainframes' encodings."""
    return "\n".encode(codec) == b"\n"


def known_codec(name: str, place: str) -> str:
    """Python's name of a declared encoding."""
    try:
        codec = codecs.lookup(name).name
        # Codecs that are not for text, and those that are for names of hosts, fail only when they are used.
        b"".decode(codec)
        if not ends_lines(codec):
            list(as_utf8([b""], codec))
    except (LookupError, ValueError):
        message = f"encoding {shortened(name)} is unknown; name one that Python knows, or auto"
        raise SourceError(f"{place}: {message}") from None
    return UNMARKED.get(codec, codec)


@lru_cache(maxsize=8)
def guessed(sample: bytes) -> str | None:
    """The encoding of bytes that are not UTF-8, if it is sure."""
    if len(sample) < MIN_SAMPLE_BYTES or (b"\0" not in sample and is_utf8(sample)):
        return None
    import chardet  # most files are UTF-8

    eras = chardet.EncodingEra.MODERN_WEB | chardet.EncodingEra.LEGACY_ISO
    guess = chardet.detect(sample, encoding_era=eras, compat_names=False)
    return guess["encoding"] if guess["confidence"] >= MIN_CONFIDENCE else None


def is_utf8(sample: bytes) -> bool:
    """Up to its end, which may cut a character."""
    try:
        codecs.getincrementaldecoder(UTF8)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def as_utf8(chunks: Iterable[bytes], codec: str) -> Iterator[bytes]:
    """Text in another encoding as UTF-8; bytes that are no text become one that UTF-8 never has."""
    codecs.register_error(NO_TEXT, no_text)
    decoder = codecs.getincrementaldecoder(codec)(NO_TEXT)
    for chunk in chunks:
        yield in_utf8(decoder.decode(chunk))
    yield in_utf8(decoder.decode(b"", True))


def in_utf8(text: str) -> bytes:
    try:
        return text.encode(UTF8, "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that the codec let through
        return SURROGATE.sub(NO_CHARACTER, text).encode(UTF8, "surrogateescape")


def no_text(error: UnicodeError) -> tuple[str, int]:
    return NO_CHARACTER, cast(UnicodeDecodeError, error).end


def is_text(text: str) -> bool:
    """Whether no byte stands in it that was no text."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
