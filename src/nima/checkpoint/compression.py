"""Files at rest in fewer bytes: weights lose about a tenth, the optimizer's young state more."""

import bz2
import contextlib
import gzip
import lzma
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nima.checkpoint.files import sync_file
from nima.workspace.errors import CheckpointError

SUFFIXES = {"none": "", "gzip": ".gz", "bz2": ".bz2", "xz": ".xz", "zstd": ".zst"}
CHUNK_BYTES = 1 << 20


def compress(path: Path, kind: str) -> Path:
    """Put a compressed file in the place of `path`; equal bytes become equal bytes. Returns its path."""
    if kind == "none":
        return path
    final = path.with_name(path.name + SUFFIXES[kind])
    with path.open("rb") as plain, final.open("wb") as file, writer(file, kind) as packed:
        shutil.copyfileobj(plain, packed, CHUNK_BYTES)
    sync_file(final)
    path.unlink()
    return final


@contextlib.contextmanager
def writer(file: IO[bytes], kind: str) -> Iterator[Any]:
    """The fast levels: more effort finds next to nothing in the digits of weights."""
    if kind == "gzip":  # without name and time, which would make equal files differ
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
            yield packed
    elif kind == "bz2":
        with bz2.BZ2File(file, "wb", compresslevel=9) as packed:
            yield packed
    elif kind == "xz":
        with lzma.LZMAFile(file, "wb", preset=0) as packed:
            yield packed
    else:
        import zstandard

        with zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as packed:
            yield packed


def content_of(path: Path, kind: str, num_bytes: int) -> bytes:
    """What was compressed, of which there must be exactly `num_bytes`. Raises `CheckpointError`."""
    damage: tuple[type[Exception], ...] = (OSError, EOFError, lzma.LZMAError, *zstd_errors(kind))
    with path.open("rb") as file:
        try:
            # One byte more than it may hold tells a file that unpacks to more, without unpacking it.
            content = reader(file, kind).read(num_bytes + 1)
        except damage as error:
            raise CheckpointError(f"{path}: not {kind}: {error}") from None
    if len(content) != num_bytes:
        raise CheckpointError(f"{path}: does not unpack to the {num_bytes} bytes that were packed")
    return content


def reader(file: IO[bytes], kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if kind == "bz2":
        return bz2.BZ2File(file, "rb")
    if kind == "xz":
        return lzma.LZMAFile(file, "rb")
    if kind == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(file)
    return file


def zstd_errors(kind: str) -> tuple[type[Exception], ...]:
    if kind != "zstd":
        return ()
    import zstandard

    return (zstandard.ZstdError,)
