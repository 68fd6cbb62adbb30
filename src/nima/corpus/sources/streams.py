"""Files on servers, read as streams: `https://`, `http://`, `s3://`, `gs://` and `az://`, through fsspec.

All bytes of a file are of the version that was listed; a request that fails for the moment is tried again.
"""

import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, BinaryIO, TypeVar, cast

from nima.corpus.sources import web
from nima.corpus.sources.inner import InnerStream
from nima.corpus.stores import buckets
from nima.corpus.stores.failures import Failure, client_errors, failure_of, scheme_of, without_secrets
from nima.workspace.errors import SourceError, UserError

WAITS_SECONDS = (1.0, 4.0)
"""Between the tries of one request."""
BLOCK_BYTES = 8_000_000
"""Read at once; small enough to try again."""
BUFFER_BYTES = 1 << 18
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, as it was when it was listed."""

    url: str
    num_bytes: int | None
    version: str
    """ETag, generation or date of change; empty if the server tells none."""
    has_ranges: bool
    """Whether the server gives parts of it."""
    max_bytes: int
    """Of a file that must be had whole."""
    listing: str = ""
    """Tells one listing from another where the server tells no version."""

    @property
    def known(self) -> web.Answer:
        return web.Answer(self.num_bytes, self.version, self.has_ranges)

    @property
    def place(self) -> str:
        return without_secrets(self.url)

    def identity(self) -> str:
        return f"{self.num_bytes}-{self.version or self.listing}"

    def is_unchanged(self) -> bool:
        """True: every block was checked."""
        return True

    def open(self) -> BinaryIO:
        if self.has_ranges and self.num_bytes is not None:
            return cast(BinaryIO, BufferedReader(RemoteStream(self, self.num_bytes), BUFFER_BYTES))
        whole = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - the caller closes it
        try:
            self.copy_to(whole)
            whole.seek(0)
        except BaseException:
            whole.close()
            raise
        return whole

    def block(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`. Raises `SourceError`."""
        scheme = scheme_of(self.url)
        if scheme == "http":
            return tried(lambda: web.block(self.url, self.known, start, end), self.url)
        return tried(lambda: buckets.block(scheme, path_of(self.url), self.version, start, end), self.url)

    def copy_to(self, target: BinaryIO) -> None:
        """For servers that give a file only whole. Raises `SourceError`."""

        def copy() -> None:
            target.seek(0)
            target.truncate()
            web.copy_whole(self.url, self.known, self.max_bytes, target)

        tried(copy, self.url)


class RemoteStream(InnerStream):
    """A remote file, a block at a time."""

    def __init__(self, file: RemoteFile, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.file = file
        self.block = memoryview(b"")
        self.block_start = 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # the stub's Buffer has no length
        if self.position >= self.num_bytes:
            return 0
        if not self.block_start <= self.position < self.block_start + len(self.block):
            end = min(self.position + BLOCK_BYTES, self.num_bytes)
            self.block = memoryview(self.file.block(self.position, end))
            self.block_start = self.position
        offset = self.position - self.block_start
        part = self.block[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)


def tried(request: Callable[[], T], url: str) -> T:
    """What `request` returns, at the latest at the third try. Raises `SourceError`."""
    scheme = scheme_of(url)
    # The clients of the other schemes try again by themselves.
    waits = WAITS_SECONDS if scheme in ("http", "s3") else ()
    for wait_seconds in (*waits, None):
        try:
            return request()
        except UserError:  # no request was made
            raise
        except Failure as failure:
            problem = failure
        except client_errors(scheme) as error:
            problem = failure_of(error, scheme)
        if wait_seconds is None or not problem.may_pass:
            break
        time.sleep(wait_seconds)
    tries = f" (after {len(waits) + 1} tries)" if problem.may_pass and waits else ""
    raise SourceError(f"{without_secrets(url)}: {problem}{tries}")


def described(url: str, max_bytes: int) -> RemoteFile | None:
    """The file at `url`; None if it is a folder of an object store. Raises `SourceError`."""
    scheme = scheme_of(url)
    if scheme == "http":
        return web_file(url, max_bytes)
    info = tried(lambda: buckets.described(scheme, path_of(url)), url)
    return stored_file(scheme, info, max_bytes) if info["type"] == "file" else None


def web_file(url: str, max_bytes: int) -> RemoteFile:
    """The file at `url` of a web server. Raises `SourceError`."""
    answer = tried(lambda: web.described(url), url)
    return RemoteFile(
        url, answer.num_bytes, answer.version, answer.has_ranges, max_bytes, listing=uuid.uuid4().hex
    )


def files_below(url: str, max_bytes: int) -> dict[str, RemoteFile]:
    """Every file below a folder of an object store, by its path inside. Raises `SourceError`."""
    scheme, folder = scheme_of(url), path_of(url).strip("/")
    infos = tried(lambda: buckets.files_below(scheme, folder), url)
    return {info["name"][len(folder) + 1 :]: stored_file(scheme, info, max_bytes) for info in infos}


def stored_file(scheme: str, info: dict[str, Any], max_bytes: int) -> RemoteFile:
    version = str(info[buckets.VERSIONS[scheme]])
    return RemoteFile(f"{scheme}://{info['name']}", info["size"], version, True, max_bytes)


def path_of(url: str) -> str:
    return url.partition("://")[2]
