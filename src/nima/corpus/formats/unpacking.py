"""The bytes of a file in chunks, unpacked on the way if it is compressed.

Packed bytes that end early, or that are damaged, end the chunks, and a flaw tells what happened.
"""

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

import zstandard

from nima.corpus.quality.quality import Flaw
from nima.workspace.params import LimitsParams

SUFFIXES = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst"}
CHUNK_BYTES = 1 << 18
# A block of 128 KB can be packed into 4 bytes: so few at a time unpack to 32 MB at most.
ZSTD_PIECE_BYTES = 1024
FREE_BYTES = 10_000_000
"""Less than this may be packed at any ratio: short repetitive files are no bombs."""
NO_GZIP = "Not a gzipped file"
"""How the library begins to say so."""
FAULTS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError)


class Unpacker(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class Chunks:
    """Iterate once; `flaw` then says why the content ended early, if it did.

    `num_bytes` ends it at will: None reads to the end.
    """

    def __init__(
        self,
        stream: BinaryIO,
        compression: str | None,
        limits: LimitsParams,
        num_bytes: int | None = None,
    ) -> None:
        self.stream = stream
        self.compression = compression
        self.limits = limits
        self.num_bytes = sys.maxsize if num_bytes is None else num_bytes
        self.flaw: Flaw | None = None
        self.is_spoilt = False
        """What was unpacked may not be what was packed."""
        self.packed_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        if self.compression is None:
            while chunk := self.stream.read(min(CHUNK_BYTES, self.num_bytes)):
                self.num_bytes -= len(chunk)
                yield chunk
            return
        num_unpacked = 0
        for chunk in self.unpacked():
            limit, name = self.limit()
            if num_unpacked + len(chunk) > limit:
                yield chunk[: limit - num_unpacked]
                detail = f"more than {limit} bytes from {self.packed_bytes} packed ones; reading ended here"
                self.flaw = Flaw("too_large", f"{detail} (prepare.limits.{name})")
                return
            num_unpacked += len(chunk)
            yield chunk

    def read(self, size: int = -1) -> bytes:
        """Packed bytes, for the unpackers."""
        data = self.stream.read(size)
        self.packed_bytes += len(data)
        return data

    def unpacked(self) -> Iterator[bytes]:
        try:
            yield from zstd_chunks(self) if self.compression == "zst" else self.chunks_of_library()
            if self.packed_bytes == 0:
                raise EOFError("nothing is there, not even the packed form of nothing")
        except FAULTS as error:
            # The disk's own errors have a number; what a library finds wrong in the bytes has none.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = str(error) or "the packed data are damaged"
            reason = "truncated" if isinstance(error, EOFError) else "damaged"
            # Where a new stream should begin, the ones before it have passed their checksums.
            self.is_spoilt = reason == "damaged" and not said.startswith(NO_GZIP)
            self.flaw = Flaw(reason, f"{self.compression}: {said}; reading ended here")

    def chunks_of_library(self) -> Iterator[bytes]:
        openers: dict[str, Callable[[BinaryIO], object]] = {
            "gz": lambda packed: gzip.GzipFile(fileobj=packed, mode="rb"),
            "bz2": bz2.BZ2File,
            "xz": lzma.LZMAFile,
        }
        unpacker = cast(Unpacker, openers[cast(str, self.compression)](cast(BinaryIO, self)))
        # One step at a time: a longer read would lose what stands before the damage.
        while chunk := unpacker.read1(CHUNK_BYTES):
            yield chunk

    def limit(self) -> tuple[int, str]:
        """How many bytes may be unpacked by now, and the name of the limit."""
        by_ratio = max(FREE_BYTES, self.packed_bytes * self.limits.max_archive_ratio)
        if by_ratio < self.limits.max_archive_bytes:
            return by_ratio, "max_archive_ratio"
        return self.limits.max_archive_bytes, "max_archive_bytes"


def damage_of(stream: BinaryIO, compression: str, limits: LimitsParams) -> Flaw | None:
    """What is wrong in packed bytes as a whole; the stream stands at its beginning afterwards.

    Checksums come last. What damage left of a packed text may look like text, so nothing of it is of use;
    what stands before a mere cut is.
    """
    chunks = Chunks(stream, compression, limits)
    for _ in chunks:
        pass
    stream.seek(0)
    return chunks.flaw if chunks.is_spoilt else None


def zstd_chunks(packed: Chunks) -> Iterator[bytes]:
    """Frame by frame. Raises `EOFError` if the last one is cut off."""
    frame = None
    while piece := packed.read(ZSTD_PIECE_BYTES):
        while piece:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if chunk := frame.decompress(piece):
                yield chunk
            if not frame.eof:
                break
            piece, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("the last frame is cut off")


def is_on_disk(stream: BinaryIO) -> bool:
    """Whether jumping in it costs nothing."""
    try:
        stream.fileno()
    except OSError:
        return False
    return True
