"""Files inside a zip archive (a wheel is one), each found by its place, without the archive's directory."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import SEEK_SET, BufferedReader
from typing import BinaryIO, cast

from nima.corpus.sources.files import LocalFile
from nima.corpus.sources.inner import READ_BYTES, InnerStream
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams

# What stands before a member's bytes: PKWARE's APPNOTE.TXT 4.3.7.
LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_SIGNATURE = b"PK\3\4"
ENCRYPTED = 0x1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
BLOCK_BYTES = 1 << 16
HARMLESS_BYTES = 1_000_000
"""Up to here a ratio says nothing: a small file of blanks packs well."""


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip archive. The directory's figures bound what is read; they are not believed."""

    archive: LocalFile
    header_offset: int
    packed_bytes: int
    num_bytes: int
    crc: int
    method: int
    flaw: str
    """Why it cannot be read, or empty."""

    def identity(self) -> str:
        return f"{self.num_bytes}-{self.crc:08x}"

    def is_unchanged(self) -> bool:
        return self.archive.is_unchanged()

    def open(self) -> BinaryIO:
        stream = self.archive.open()
        try:
            unpacked = Unpacked(stream, self)
        except BaseException:
            stream.close()
            raise
        return cast(BinaryIO, BufferedReader(unpacked, BLOCK_BYTES))


def zip_members(archive: LocalFile, limits: LimitsParams) -> Iterator[tuple[str, ZipMember]]:
    """Every regular file by its name. Raises `SourceError`: no zip archive, or one whose entries overlap."""
    try:
        with zipfile.ZipFile(archive.path) as opened:
            infos, end = opened.infolist(), opened.start_dir
    # What else broken bytes in a directory lead to: unknown versions, names that are not UTF-8, wild offsets.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise SourceError(f"{archive.path}: no zip archive, or a broken one: {error}") from None
    refuse_overlap(archive, infos, end)
    for info in infos:
        if is_regular(info):
            yield (
                info.filename,
                ZipMember(
                    archive,
                    info.header_offset,
                    info.compress_size,
                    info.file_size,
                    info.CRC,
                    info.compress_type,
                    flaw_in(info, limits),
                ),
            )


def is_regular(info: zipfile.ZipInfo) -> bool:
    """Neither a folder nor a link or device; systems without such file types leave the mode empty."""
    is_folder = info.filename.endswith("/")
    return not is_folder and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)


def refuse_overlap(archive: LocalFile, infos: list[zipfile.ZipInfo], end: int) -> None:
    """Entries that share bytes unpack to far more than there is (Fifield 2019, "A better zip bomb")."""
    for info in sorted(infos, key=lambda info: -info.header_offset):
        if info.header_offset + LOCAL_HEADER.size + info.compress_size > end:
            raise SourceError(f"{archive.path}: {info.filename!r} overlaps what follows it: a broken archive")
        end = info.header_offset


def flaw_in(info: zipfile.ZipInfo, limits: LimitsParams) -> str:
    if info.flag_bits & ENCRYPTED:
        return "it is encrypted"
    if info.compress_type not in METHODS:
        return f"it is packed by method {info.compress_type}; only stored and deflated files are read"
    if info.file_size > max(HARMLESS_BYTES, limits.max_archive_ratio * info.compress_size):
        return (
            f"it unpacks from {info.compress_size} to {info.file_size} bytes, more than "
            f"prepare.limits.max_archive_ratio ({limits.max_archive_ratio}) allows"
        )
    return ""


class Unpacked(InnerStream):
    """A member's bytes, never more than announced, and checked at the end. Seeking back starts over."""

    def __init__(self, stream: BinaryIO, member: ZipMember) -> None:
        super().__init__(member.num_bytes)
        self.stream = stream
        self.member = member
        stream.seek(member.header_offset)
        header = stream.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or not header.startswith(LOCAL_SIGNATURE):
            raise zipfile.BadZipFile("its header is not where the archive's directory says")
        _, name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
        self.start = member.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
        self.restart()

    def restart(self) -> None:
        self.stream.seek(self.start)
        self.position = 0
        self.packed_left = self.member.packed_bytes
        self.inflate = zlib.decompressobj(-zlib.MAX_WBITS) if self.member.method else None
        self.crc = 0

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        here = self.position
        target = super().seek(offset, whence)
        self.position = here
        if target < here:
            self.restart()
        while self.position < target and self.read(min(READ_BYTES, target - self.position)):
            pass
        self.position = target
        return target

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # the stub's Buffer has no length
        if self.position > self.num_bytes:
            return 0
        block = self.next_block(len(buffer))
        self.position += len(block)
        self.crc = zlib.crc32(block, self.crc)
        if self.position > self.num_bytes:
            raise zipfile.BadZipFile(f"holds more than the {self.num_bytes} bytes it announces")
        if not block and self.position < self.num_bytes:
            raise EOFError(f"ends after {self.position} of {self.num_bytes} bytes")
        if not block and self.crc != self.member.crc:
            raise zipfile.BadZipFile("its checksum is wrong")
        buffer[: len(block)] = block
        return len(block)

    def next_block(self, max_bytes: int) -> bytes:
        """At most `max_bytes`; empty at the end."""
        if self.inflate is None:
            return self.packed(max_bytes)
        block = b""
        while not block and not self.inflate.eof:
            packed = self.inflate.unconsumed_tail or self.packed(BLOCK_BYTES)
            if not packed:
                break
            block = self.inflate.decompress(packed, max_bytes)
        return block

    def packed(self, max_bytes: int) -> bytes:
        block = self.stream.read(min(max_bytes, self.packed_left))
        self.packed_left -= len(block)
        return block

    def close(self) -> None:
        self.stream.close()
        super().close()
