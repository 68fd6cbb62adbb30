"""Copies of remote files, for what must lie on disk to be read: archives, and files with a checksum."""

import fcntl
import hashlib
import re
from collections.abc import Callable
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO

from nima.corpus.sources import streams
from nima.corpus.sources.files import checksum
from nima.corpus.sources.streams import RemoteFile, described
from nima.corpus.stores.failures import without_secrets
from nima.workspace.errors import SourceError


def copy_of(file: RemoteFile, folder: Path) -> Path:
    """The file in `folder`, fetched if this version is not there yet. Raises `SourceError`."""
    target = folder / stored_name(f"{file.place}\n{file.identity()}", file.place)
    if not file.version:  # another content could look the same
        target.unlink(missing_ok=True)
    if not target.exists():
        fetch(file, target, unchecked)
    return target


def pinned_copy(url: str, sha256: str, folder: Path, max_bytes: int) -> Path:
    """The file with this checksum in `folder`, fetched if it is not there yet. Raises `SourceError`."""
    target = folder / stored_name(sha256, without_secrets(url))

    def check(path: Path) -> None:
        if (found := checksum(path)) != sha256:
            path.unlink()
            raise SourceError(
                f"{without_secrets(url)}: wrong checksum: expected sha256 {sha256}, found {found}; "
                "mend the pinned sha256 if you trust the file"
            )

    if target.exists():
        check(target)
        return target
    file = described(url, max_bytes)
    if file is None:
        place = without_secrets(url)
        raise SourceError(f"{place}: a folder has no checksum; name a file, or leave sha256 out")
    fetch(file, target, check)
    return target


def unchecked(path: Path) -> None:
    """For a file whose checksum nobody knows."""


def stored_name(identity: str, place: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", place.rpartition("/")[2])
    return f"{short_hash(identity)}-{name[-100:]}"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fetch(file: RemoteFile, target: Path, check: Callable[[Path], None]) -> None:
    """Copies `file` to `target`, which appears whole and checked. An interrupted copy is gone on with."""
    part = target.with_name(f".{target.name}.{short_hash(file.identity())}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if target.exists():  # another process was faster
                return
            append_rest(file, stream)
            check(part)
            part.replace(target)
    except OSError as error:
        raise SourceError(f"{target}: cannot be written: {error.strerror}") from None


def append_rest(file: RemoteFile, stream: BinaryIO) -> None:
    if not file.has_ranges or file.num_bytes is None:
        file.copy_to(stream)
    else:
        if not file.version or stream.seek(0, SEEK_END) > file.num_bytes:
            stream.truncate(0)
        while (done := stream.seek(0, SEEK_END)) < file.num_bytes:
            stream.write(file.block(done, min(done + streams.BLOCK_BYTES, file.num_bytes)))
    stream.flush()
