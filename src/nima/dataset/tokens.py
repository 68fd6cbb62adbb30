"""Token shards on disk, memory-mapped.

A shard is one little-endian file: a header of 64 bytes, then 8-byte aligned arrays:

    magic, version, bytes per token, numbers of tokens, documents and spans
    tokens            uint16 or uint32 [num_tokens], the smallest type that fits the vocabulary
    document offsets  uint64 [num_documents + 1], into tokens
    span offsets      uint64 [num_documents + 1], into spans
    spans             uint64 [num_spans, 2], start and end inside their document: tokens that are trained

documents.parquet beside the shards says in token order which document is which.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nima.workspace.columns import array_of
from nima.workspace.errors import UserError

MAGIC = b"NIMATOKS"
VERSION = 1
HEADER = struct.Struct("<8sIIQQQ24x")
TOKEN_TYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
OFFSET = np.dtype("<u8")
PLACE = np.dtype("<i8")
"""An offset as it is read: one that no file can have is negative."""
CHECKED_AT_ONCE = 65_536

DOCUMENTS_FILE = "documents.parquet"
DOCUMENTS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("weight", pa.float64()),
        ("num_tokens", pa.int64()),
        ("num_bytes", pa.int64()),
        ("num_trained_tokens", pa.int64()),
        ("shard", pa.int32()),
    ]
)


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id of a vocabulary."""
    return TOKEN_TYPES[2 if vocab_size <= 2**16 else 4]


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


class TokenShard:
    """One shard, mapped into memory and checked. Raises `UserError` when it is not whole."""

    def __init__(self, path: Path) -> None:
        itemsize, self.num_tokens, self.num_documents, num_spans = read_header(path)
        self.path = path
        self.dtype = TOKEN_TYPES[itemsize]
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = np.frombuffer(mapped, np.uint8)
        sizes = array_sizes(itemsize, self.num_tokens, self.num_documents, num_spans)
        ends = HEADER.size + np.cumsum(sizes)
        tokens, offsets, span_offsets, spans = (
            content[end - size : end] for end, size in zip(ends, sizes, strict=True)
        )
        self.tokens = tokens.view(self.dtype)[: self.num_tokens]
        self.offsets, self.span_offsets = offsets.view(PLACE), span_offsets.view(PLACE)
        self._spans = spans.view(PLACE).reshape(-1, 2)
        self.check("document offsets", self.offsets, self.num_tokens)
        self.check("span offsets", self.span_offsets, num_spans)
        self.check_spans()
        self.mapped = mapped
        self.release()

    def release(self) -> None:
        """What was read for checks would count as memory in use."""
        self.mapped.madvise(mmap.MADV_DONTNEED)

    def check(self, name: str, offsets: np.ndarray, end: int) -> None:
        parts = (offsets[at : at + CHECKED_AT_ONCE + 1] for at in range(0, len(offsets), CHECKED_AT_ONCE))
        if offsets[0] != 0 or offsets[-1] != end or any((np.diff(part) < 0).any() for part in parts):
            raise broken(self.path, f"{name} do not ascend from 0 to {end}")

    def check_spans(self) -> None:
        """Spans lie one behind the other inside their documents."""
        for start in range(0, self.num_documents, CHECKED_AT_ONCE):
            self.check_spans_of(start, min(start + CHECKED_AT_ONCE, self.num_documents))

    def check_spans_of(self, start: int, stop: int) -> None:
        """Those of documents [start, stop)."""
        edges = self.span_offsets[start : stop + 1]
        spans, counts = self._spans[edges[0] : edges[-1]], np.diff(edges)
        lengths = np.repeat(np.diff(self.offsets[start : stop + 1]), counts)
        first = np.zeros(len(spans), dtype=bool)
        first[(edges[:-1] - edges[0])[counts > 0]] = True
        before = np.where(first, 0, np.roll(spans[:, 1], 1))
        if (
            (spans[:, 0] < before).any()
            or (spans[:, 1] <= spans[:, 0]).any()
            or (spans[:, 1] > lengths).any()
        ):
            raise broken(self.path, "a loss span lies outside its document")

    def document(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def spans(self, index: int) -> np.ndarray:
        return self._spans[self.span_offsets[index] : self.span_offsets[index + 1]]


def broken(path: Path, found: str) -> UserError:
    return UserError(f"{path}: broken: {found}; run the stage tokenize again")


def read_header(path: Path) -> tuple[int, int, int, int]:
    """Bytes per token, numbers of tokens, documents and spans; all agree with the file's size."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
        found_bytes = path.stat().st_size
    except OSError as error:
        raise broken(path, error.strerror or "unreadable") from error
    if len(header) < HEADER.size:
        raise broken(path, f"{len(header)} bytes, expected a header of {HEADER.size}")
    magic, version, itemsize, *counts = HEADER.unpack(header)
    if magic != MAGIC:
        raise broken(path, f"begins with {magic!r}, expected {MAGIC!r}: this is no token shard")
    if version != VERSION:
        raise broken(path, f"version {version}, expected {VERSION}")
    if itemsize not in TOKEN_TYPES:
        raise broken(path, f"{itemsize} bytes per token, expected 2 or 4")
    num_tokens, num_documents, num_spans = counts
    expected_bytes = HEADER.size + sum(array_sizes(itemsize, num_tokens, num_documents, num_spans))
    if found_bytes != expected_bytes:
        raise broken(path, f"{found_bytes} bytes, its header says {expected_bytes}")
    return itemsize, num_tokens, num_documents, num_spans


def array_sizes(itemsize: int, num_tokens: int, num_documents: int, num_spans: int) -> list[int]:
    tokens = itemsize * num_tokens
    offsets = OFFSET.itemsize * (num_documents + 1)
    return [tokens + -tokens % OFFSET.itemsize, offsets, offsets, 2 * OFFSET.itemsize * num_spans]


class Tokens:
    """All documents of a folder of shards, by number from 0 in the order in which they were written."""

    def __init__(self, folder: Path, shards: list[TokenShard]) -> None:
        self.folder = folder
        self.shards = shards
        self._first = [0, *np.cumsum([shard.num_documents for shard in shards]).tolist()]
        self.num_documents = self._first[-1]
        self.num_tokens = sum(shard.num_tokens for shard in shards)
        self.dtype = shards[0].dtype if shards else token_type(0)
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(shard.offsets) for shard in shards)])
        """int64[num_documents]: tokens of each document, its end token included."""
        for shard in shards:
            shard.release()

    @classmethod
    def open(cls, folder: Path) -> Tokens:
        """Maps a folder that `TokenWriter` wrote. Raises `UserError` naming the file that is broken."""
        path = folder / DOCUMENTS_FILE
        num_shards = max((int(part.max(initial=-1)) for part in parts_of(path, "shard")), default=-1) + 1
        tokens = cls(folder, [TokenShard(folder / shard_name(number)) for number in range(num_shards)])
        if not is_listed(tokens.lengths, parts_of(path, "num_tokens")):
            raise broken(path, "its numbers of tokens are not those of the shards")
        return tokens

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the documents, read anew: all of them together would not stay small."""
        return column_of(self.folder / DOCUMENTS_FILE, name)

    def document(self, index: int) -> np.ndarray:
        """The ids of one document, a read-only view of the file."""
        number = bisect_right(self._first, index) - 1
        return self.shards[number].document(index - self._first[number])

    def spans(self, index: int) -> np.ndarray:
        """int64[num_spans, 2]: [start, end) inside the document of the tokens that are trained."""
        number = bisect_right(self._first, index) - 1
        return self.shards[number].spans(index - self._first[number])

    @cached_property
    def ids(self) -> list[str]:
        return self.column("id").to_pylist()

    @cached_property
    def groups(self) -> np.ndarray:
        """S16[num_documents]: what splits are decided by."""
        groups, start = np.zeros(self.num_documents, "S16"), 0
        with opened(self.folder / DOCUMENTS_FILE) as file:
            for batch in file.iter_batches(columns=["group"]):
                groups[start : start + len(batch)] = short_texts(batch["group"])
                start += len(batch)
        return groups

    @cached_property
    def sources(self) -> np.ndarray:
        """Names of sources, one a document."""
        return few_texts(self.column("source"))

    @cached_property
    def splits(self) -> np.ndarray:
        """The split that each document's source declares; "" leaves it to the shares."""
        return few_texts(self.column("split"))

    @cached_property
    def weights(self) -> np.ndarray:
        """float64[num_documents]; one number in memory where all are equal."""
        found = array_of(self.column("weight"))
        is_same = len(found) > 0 and bool((found == found[0]).all())
        return np.broadcast_to(found[:1].copy(), len(found)) if is_same else found

    @cached_property
    def text_bytes(self) -> np.ndarray:
        """int64[num_documents]: UTF-8 bytes of text."""
        return array_of(self.column("num_bytes"))

    @cached_property
    def trained_tokens(self) -> np.ndarray:
        """int64[num_documents]"""
        return array_of(self.column("num_trained_tokens"))

    def totals(self, documents: np.ndarray | None = None) -> dict[str, Any]:
        """Counts over the given documents (None = all), in total and per source."""
        chosen = np.arange(self.num_documents) if documents is None else documents
        sources = self.sources[chosen]
        names = sorted(set(sources.tolist()))
        return self.counts(chosen) | {
            "sources": {name: self.counts(chosen[sources == name]) for name in names}
        }

    def counts(self, documents: np.ndarray) -> dict[str, int | float]:
        tokens, text_bytes = int(self.lengths[documents].sum()), int(self.text_bytes[documents].sum())
        return {
            "documents": len(documents),
            "bytes": text_bytes,
            "tokens": tokens,
            "trained_tokens": int(self.trained_tokens[documents].sum()),
            "bytes_per_token": round(text_bytes / tokens, 6) if tokens else 0.0,
        }


def column_of(path: Path, name: str) -> pa.ChunkedArray:
    with opened(path) as file:
        return file.read([name])[name]


def parts_of(path: Path, name: str) -> Iterator[np.ndarray]:
    """A column of numbers, some of its rows at a time."""
    with opened(path) as file:
        yield from (array_of(batch[name]) for batch in file.iter_batches(columns=[name]))


def is_listed(values: np.ndarray, parts: Iterable[np.ndarray]) -> bool:
    """Whether the parts, end to end, are the values."""
    start = 0
    for part in parts:
        if not np.array_equal(values[start : start + len(part)], part):
            return False
        start += len(part)
    return start == len(values)


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """`DOCUMENTS_FILE`. Raises `UserError` if it is not whole."""
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow.names
            if found != DOCUMENTS_SCHEMA.names:
                raise broken(path, f"columns {found}, expected {DOCUMENTS_SCHEMA.names}")
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise broken(path, str(error).splitlines()[0]) from error


def short_texts(column: pa.Array) -> np.ndarray:
    """S16[n]: texts of at most 16 ASCII characters, without an object for each."""
    _, ends, data = column.buffers()
    offsets = np.frombuffer(ends, np.int32)[column.offset : column.offset + len(column) + 1]
    content = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    texts = np.zeros((len(column), 16), np.uint8)
    texts[np.arange(16) < np.diff(offsets)[:, None]] = content
    return texts.reshape(-1).view("S16")


def few_texts(column: pa.ChunkedArray) -> np.ndarray:
    """object[n]: a text for each row; equal ones are one object."""
    encoded = column.combine_chunks().dictionary_encode()
    texts = np.array(encoded.dictionary.to_pylist() or [""], dtype=object)
    return texts[array_of(encoded.indices)]
