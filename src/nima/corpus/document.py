"""Documents and rejected records, and the Parquet folders that hold them.

A folder is written beside its place and moved there whole, so it is never half new. Equal records give
equal bytes.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nima.workspace.errors import UserError
from nima.workspace.outputs import remove, writing_to

ROW_GROUP_ROWS = 1024
ROW_GROUP_BYTES = 8_000_000
DEFAULT_SHARD_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A cleaned document: `text`, or `messages` with an empty `text`."""

    id: str
    """16 hex characters, from source and key."""
    source: str
    key: str
    """Path inside the source; `#N` marks record N (from 0) of a file with several."""
    group: str
    """16 hex characters, from the content: what splits hash."""
    weight: float
    licence: str
    text: str
    messages: tuple[Message, ...] | None
    split: str = ""
    """The split that its source declares for it; "" leaves it to the shares."""

    def plain_texts(self) -> Iterator[str]:
        """What a person wrote: the text, or the contents of the messages."""
        if self.messages is None:
            yield self.text
        else:
            yield from (content for message in self.messages if (content := message.content.strip()))


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that became no document, whole and with the reason."""

    id: str
    source: str
    key: str
    reason: str
    detail: str
    text: str
    """The record as it was read; bytes that are no UTF-8 show as `\\xNN`."""
    raw: bytes | None = None
    """The record's bytes where `text` cannot hold them."""


def document_id(source: str, key: str) -> str:
    return hashlib.sha256(f"{source}\0{key}".encode()).hexdigest()[:16]


DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("group", pa.string()),
        ("weight", pa.float64()),
        ("licence", pa.string()),
        ("text", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("split", pa.string()),
    ]
)
REJECTION_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "source", "key", "reason", "detail", "text")]
    + [("raw", pa.binary())]
)

RecordType = TypeVar("RecordType", Document, Rejection)


class ShardWriter(Generic[RecordType]):
    """Writes records of one kind into `folder/PREFIX-00000.parquet` and on; use it in a `with`.

    A new shard begins once a shard holds `max_shard_bytes` of text. Leaving the `with` normally replaces
    `folder`; leaving it by an exception leaves `folder` as it was. Raises `UserError` if it cannot write.
    """

    def __init__(
        self, folder: Path, prefix: str, schema: pa.Schema, max_shard_bytes: int = DEFAULT_SHARD_BYTES
    ) -> None:
        self.folder, self.prefix, self.schema = folder, prefix, schema
        self.max_shard_bytes = max_shard_bytes
        self.partial = folder.parent / f".{folder.name}.partial"
        self.num_records = 0
        self.num_shards = 0
        self.group: list[pa.Table] = []
        self.group_rows = self.group_bytes = self.shard_bytes = 0
        self.shard: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        with writing_to(self.folder):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            self.begin_shard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with writing_to(self.folder):
                    self.end_shard()
                    remove(self.folder)
                    self.partial.rename(self.folder)
        finally:
            if self.shard is not None:
                # The shard is thrown away; closing must not hide the error that brought us here.
                with suppress(OSError):
                    self.shard.close()
            shutil.rmtree(self.partial, ignore_errors=True)

    def write(self, record: RecordType) -> None:
        self.append(pa.Table.from_pylist([row_of(record)], self.schema), np.array([text_bytes(record)]))

    def append(self, table: pa.Table, num_bytes: np.ndarray) -> None:
        """Write the rows of a table, which hold `num_bytes` of text each.

        Where shards and row groups end depends on the rows alone, not on how they come in tables.
        """
        with writing_to(self.folder):
            start, ends = 0, np.cumsum(num_bytes)
            while start < len(table):
                if self.shard_bytes >= self.max_shard_bytes:
                    self.end_shard()
                    self.begin_shard()
                before = int(ends[start - 1]) if start else 0
                room = min(self.max_shard_bytes - self.shard_bytes, ROW_GROUP_BYTES - self.group_bytes)
                stop = int(np.searchsorted(ends, before + room)) + 1
                stop = min(stop, start + ROW_GROUP_ROWS - self.group_rows, len(table))
                self.take(table.slice(start, stop - start), int(ends[stop - 1]) - before)
                start = stop

    def take(self, rows: pa.Table, num_bytes: int) -> None:
        self.group.append(rows)
        self.group_rows += len(rows)
        self.group_bytes += num_bytes
        self.shard_bytes += num_bytes
        self.num_records += len(rows)
        if self.group_rows >= ROW_GROUP_ROWS or self.group_bytes >= ROW_GROUP_BYTES:
            self.end_row_group()

    def begin_shard(self) -> None:
        path = self.partial / f"{self.prefix}-{self.num_shards:05d}.parquet"
        self.shard = pq.ParquetWriter(
            path,
            self.schema,
            version="2.6",
            compression="zstd",
            compression_level=3,
            use_dictionary=["source", "licence"] if "licence" in self.schema.names else ["source", "reason"],
            write_statistics=False,
        )
        self.num_shards += 1
        self.shard_bytes = 0

    def end_row_group(self) -> None:
        if self.group and self.shard is not None:
            table = pa.concat_tables(self.group).combine_chunks()
            self.shard.write_table(table, row_group_size=len(table))
        self.group, self.group_rows, self.group_bytes = [], 0, 0

    def end_shard(self) -> None:
        self.end_row_group()
        if self.shard is not None:
            shard, self.shard = self.shard, None
            shard.close()


def document_writer(folder: Path, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> ShardWriter[Document]:
    return ShardWriter(folder, "documents", DOCUMENT_SCHEMA, max_shard_bytes)


def rejection_writer(folder: Path, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> ShardWriter[Rejection]:
    return ShardWriter(folder, "rejected", REJECTION_SCHEMA, max_shard_bytes)


def write_documents(
    folder: Path, documents: Iterable[Document], max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> int:
    """Rewrite `folder` with `documents`; returns how many there were."""
    with document_writer(folder, max_shard_bytes) as writer:
        for document in documents:
            writer.write(document)
    return writer.num_records


def write_rejections(
    folder: Path, rejections: Iterable[Rejection], max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> int:
    """Rewrite `folder` with `rejections`; returns how many there were."""
    with rejection_writer(folder, max_shard_bytes) as writer:
        for rejection in rejections:
            writer.write(rejection)
    return writer.num_records


def read_documents(folder: Path) -> Iterator[Document]:
    """The documents of a folder, in the order in which they were written. Raises `UserError`."""
    return documents_in(read_batches(folder, "documents"))


@dataclass(frozen=True)
class Stretch:
    """Neighbouring row groups of one shard: what one worker reads at a time."""

    shard: Path
    groups: tuple[int, ...]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The documents of the stretch, in their order, as `DOCUMENT_SCHEMA` has them. Raises `UserError`."""
        return batches_of(self.shard, self.groups)


def stretches(folder: Path, max_bytes: int) -> Iterator[Stretch]:
    """A folder's documents in their order, in stretches of at most `max_bytes` unless one group has more."""
    for shard in shards_of(folder, "documents"):
        with opened(shard) as parquet:
            sizes = [
                parquet.metadata.row_group(group).total_byte_size
                for group in range(parquet.metadata.num_row_groups)
            ]
        groups: list[int] = []
        num_bytes = 0
        for group, size in enumerate(sizes):
            if groups and num_bytes + size > max_bytes:
                yield Stretch(shard, tuple(groups))
                groups, num_bytes = [], 0
            groups.append(group)
            num_bytes += size
        if groups:
            yield Stretch(shard, tuple(groups))


def documents_in(batches: Iterable[pa.RecordBatch]) -> Iterator[Document]:
    for batch in batches:
        for row in batch.to_pylist():
            if row["messages"] is not None:
                row["messages"] = tuple(Message(**message) for message in row["messages"])
            yield Document(**row)


def read_rejections(folder: Path) -> Iterator[Rejection]:
    """The rejected records of a folder, in the order in which they were written. Raises `UserError`."""
    for batch in read_batches(folder, "rejected"):
        yield from (Rejection(**row) for row in batch.to_pylist())


def example_rejections(folder: Path, per_reason: int) -> list[Rejection]:
    """The first `per_reason` rejected records of each reason, by reason. Raises `UserError`."""
    found: dict[str, list[Rejection]] = {}
    for batch in read_batches(folder, "rejected"):
        reasons = batch["reason"].to_pylist()
        for place, reason in enumerate(reasons):
            examples = found.setdefault(reason, [])
            if len(examples) < per_reason:
                examples.append(Rejection(**batch.slice(place, 1).to_pylist()[0]))
    return [example for reason in sorted(found) for example in found[reason]]


def read_batches(folder: Path, prefix: str) -> Iterator[pa.RecordBatch]:
    for shard in shards_of(folder, prefix):
        yield from batches_of(shard)


def shards_of(folder: Path, prefix: str) -> list[Path]:
    shards = sorted(folder.glob(f"{prefix}-*.parquet"))
    if not shards:
        raise UserError(f"{folder}: no {prefix}-*.parquet in it; run the stage prepare first")
    return shards


def batches_of(shard: Path, groups: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
    with opened(shard) as parquet:
        yield from parquet.iter_batches(batch_size=ROW_GROUP_ROWS, row_groups=groups)


@contextmanager
def opened(shard: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(shard) as parquet:
            yield parquet
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{shard}: broken: {reason}; run the stage prepare again") from None


def text_bytes(record: Document | Rejection) -> int:
    """UTF-8 bytes of a record's text, messages included."""
    return text_bytes_of(record.text, record.messages if isinstance(record, Document) else None)


def text_bytes_of(text: str, messages: Sequence[Message] | None) -> int:
    num_bytes = len(text.encode())
    return num_bytes + sum(len(message.content.encode()) for message in messages or ())


def row_of(record: Document | Rejection) -> dict[str, Any]:
    row = {field.name: getattr(record, field.name) for field in fields(record)}
    if row.get("messages") is not None:
        row["messages"] = [{"role": turn.role, "content": turn.content} for turn in row["messages"]]
    return row
