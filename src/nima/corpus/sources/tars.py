"""Files inside a tar archive, each a stretch of it. A compressed one is first unpacked to a plain tar."""

import atexit
import bz2
import gzip
import hashlib
import lzma
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from nima.corpus.sources.files import UNREADABLE, LocalFile
from nima.corpus.sources.inner import READ_BYTES, Window
from nima.corpus.sources.zips import HARMLESS_BYTES
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams

OPENERS: dict[str, Callable[[Path], Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
    ".tar.zst": zstandard.open,
}
BROKEN = (*UNREADABLE, lzma.LZMAError, zstandard.ZstdError)
HEADER_BYTES = 512
MAX_HEADER_BYTES = 1_000_000
"""One file's name and attributes; tarfile would read any length that a header claims."""
BUFFER_BYTES = 1 << 16


@dataclass(frozen=True)
class Tar:
    """A tar archive, and where its plain form lies if it is compressed."""

    archive: LocalFile
    folder: Path
    """For plain forms; absolute."""
    limits: LimitsParams

    def open(self) -> BinaryIO:
        """The plain tar. Raises `SourceError`, or `OSError`."""
        opener = self.opener
        if opener is None:
            return self.archive.open()
        try:
            return self.plain.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            self.unpack(opener)
            return self.plain.open("rb")

    @property
    def opener(self) -> Callable[[Path], Any] | None:
        """What reads through the compression; None for a plain tar."""
        name = self.archive.path.name.lower()
        return next((OPENERS[suffix] for suffix in OPENERS if name.endswith(suffix)), None)

    @property
    def plain(self) -> Path:
        """Shared by all processes of a run."""
        text = f"{self.archive.path}\n{self.archive.identity()}"
        return self.folder / f"plain-{hashlib.sha256(text.encode()).hexdigest()[:16]}.tar"

    def unpack(self, opener: Callable[[Path], Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".plain-", delete=False) as plain:
                try:
                    self.copy(opener, plain)
                    Path(plain.name).replace(self.plain)
                finally:
                    Path(plain.name).unlink(missing_ok=True)
        except OSError as error:
            raise SourceError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def copy(self, opener: Callable[[Path], Any], plain: Any) -> None:
        num_bytes = 0
        for block in self.blocks(opener):
            num_bytes += len(block)
            self.refuse_bomb(num_bytes)
            plain.write(block)

    def blocks(self, opener: Callable[[Path], Any]) -> Iterator[bytes]:
        try:
            with opener(self.archive.path) as stream:
                yield from iter(lambda: stream.read(READ_BYTES), b"")
        except BROKEN as error:
            raise SourceError(f"{self.archive.path}: cannot be unpacked: {error}") from None

    def refuse_bomb(self, num_bytes: int) -> None:
        """Judged while it is unpacked, so that no disk fills up."""
        most = max(HARMLESS_BYTES, self.limits.max_archive_ratio * self.archive.num_bytes)
        limits = {"max_archive_ratio": most, "max_archive_bytes": self.limits.max_archive_bytes}
        for name, limit in limits.items():
            if num_bytes > limit:
                raise SourceError(
                    f"{self.archive.path}: unpacks to more than {limit} bytes, which prepare.limits.{name} "
                    f"({getattr(self.limits, name)}) refuses; raise it if you trust the archive"
                )


@dataclass(frozen=True)
class TarMember:
    """A file inside a tar archive."""

    tar: Tar
    start: int
    num_bytes: int
    flaw: str
    """Why it cannot be read, or empty."""

    def identity(self) -> str:
        return f"{self.num_bytes}-{self.start}-{self.tar.archive.identity()}"

    def is_unchanged(self) -> bool:
        return self.tar.archive.is_unchanged()

    def open(self) -> BinaryIO:
        window = Window(self.tar.open(), self.start, self.num_bytes)
        return cast(BinaryIO, BufferedReader(window, BUFFER_BYTES))


def tar_members(archive: LocalFile, limits: LimitsParams, folder: Path) -> Iterator[tuple[str, TarMember]]:
    """Every regular file by its name; links and devices hold no text. Raises `SourceError`.

    The plain form of a compressed archive is removed from `folder` when this process ends.
    """
    tar = Tar(archive, folder.absolute(), limits)
    with tar.open() as stream:
        if tar.opener is not None:
            remove_at_exit(tar.plain)
        try:
            with tarfile.open(fileobj=cast(BinaryIO, Headers(stream)), mode="r:") as opened:
                for member in opened:
                    if member.isreg():
                        flaw = "it is stored with holes (sparse)" if member.issparse() else ""
                        yield member.name, TarMember(tar, member.offset_data, member.size, flaw)
                refuse_rest(archive, stream, opened.offset)
        except tarfile.TarError as error:
            raise SourceError(f"{archive.path}: no tar archive, or a broken one: {error}") from None


def refuse_rest(archive: LocalFile, stream: BinaryIO, end: int) -> None:
    """tarfile stops without a word where an archive is cut off, damaged, or goes on after its end mark."""
    stream.seek(end)
    rest = stream.read(HEADER_BYTES)
    is_whole = len(rest) == HEADER_BYTES
    while is_whole and rest:
        is_whole = not rest.strip(b"\0")
        rest = stream.read(READ_BYTES)
    if not is_whole:
        raise SourceError(f"{archive.path}: cut off or damaged at byte {end} of the tar archive")


class Headers:
    """What tarfile reads of an archive, no more at once than a header may have."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a file's header claims {size} bytes")
        return self.stream.read(size)


@cache
def remove_at_exit(path: Path) -> None:
    atexit.register(path.unlink, missing_ok=True)
