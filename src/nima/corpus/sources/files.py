"""A file of a source: where its bytes lie, told in plain data so that any process can open it."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from nima.workspace.errors import SourceError

UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error)


class Location(Protocol):
    """Where bytes lie. Picklable; opened as often as wanted."""

    @property
    def num_bytes(self) -> int | None:
        """None where only reading to the end would tell."""

    def identity(self) -> str:
        """Another text when the content may be another."""

    def open(self) -> BinaryIO:
        """A stream that can seek. Raises `SourceError`, or one of `UNREADABLE`."""

    def is_unchanged(self) -> bool:
        """Whether what lies there now is still what was listed."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, not opened yet."""

    key: str
    """Path inside the source, parts joined by `/`."""
    place: str
    """What error messages call it."""
    location: Location

    @property
    def num_bytes(self) -> int | None:
        """None where only reading to the end would tell."""
        return self.location.num_bytes

    def identity(self) -> str:
        """Another text when the content may be another."""
        return self.location.identity()

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes as a stream that can seek.

        Raises `SourceError` if they cannot be read, or when it ends and they changed since they were listed.
        """
        try:
            with self.location.open() as stream:
                yield stream
            unchanged = self.location.is_unchanged()
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f"{self.place}: cannot be read: {reason}") from None
        if not unchanged:
            raise SourceError(f"{self.place}: changed while it was read; start again once it is at rest")


@dataclass(frozen=True)
class LocalFile:
    """A file on disk, as it was when it was listed."""

    path: Path
    """Absolute: workers may run in another folder."""
    num_bytes: int
    mtime_ns: int

    @classmethod
    def found_at(cls, path: Path) -> "LocalFile":
        """Raises `OSError`."""
        status = path.stat()
        return cls(path.absolute(), status.st_size, status.st_mtime_ns)

    def identity(self) -> str:
        return f"{self.num_bytes}-{self.mtime_ns}"

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def is_unchanged(self) -> bool:
        return LocalFile.found_at(self.path) == self


def local_file(path: Path, key: str) -> SourceFile:
    """Raises `SourceError` if there is no file at `path`."""
    try:
        return SourceFile(key, str(path), LocalFile.found_at(path))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises `SourceError`."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
