"""Writing token shards: documents in, a folder that `nima.dataset.tokens` maps out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nima.dataset.tokens import (
    DOCUMENTS_FILE,
    DOCUMENTS_SCHEMA,
    HEADER,
    MAGIC,
    OFFSET,
    VERSION,
    shard_name,
    token_type,
)
from nima.workspace.columns import array_of, column, numbers
from nima.workspace.outputs import remove, writing_to

if TYPE_CHECKING:
    from nima.encoding.conversation import Dropped, TokenizedDocument

ROW_GROUP_ROWS = 65_536
DROPPED_FILE = "dropped.jsonl"

TOKENIZED_COLUMNS = ("id", "source", "group", "split", "weight", "num_bytes", "cut_tokens", "tokens", "spans")


def tokenized_schema(dtype: np.dtype[Any]) -> pa.Schema:
    """Tokenized documents as a table: spans lie flat, start and end by turns."""
    lists_of = {"cut_tokens": pa.int64(), "tokens": pa.large_list(pa.from_numpy_dtype(dtype))}
    lists_of["spans"] = pa.large_list(pa.int64())
    return pa.schema(
        [(name, lists_of.get(name) or DOCUMENTS_SCHEMA.field(name).type) for name in TOKENIZED_COLUMNS]
    )


def tokenized_table(documents: Sequence[TokenizedDocument], dtype: np.dtype[Any]) -> pa.Table:
    schema = tokenized_schema(dtype)
    columns = [
        column([getattr(document, name) for document in documents], schema.field(name).type)
        for name in TOKENIZED_COLUMNS[:-2]
    ]
    tokens = joined([document.tokens for document in documents], dtype)
    spans = joined([document.spans.reshape(-1) for document in documents], np.dtype(np.int64))
    return pa.Table.from_arrays([*columns, tokens, spans], schema=schema)


def joined(arrays: Sequence[np.ndarray], dtype: np.dtype[Any]) -> pa.LargeListArray:
    values: np.ndarray = np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)
    return lists(values, np.array([*map(len, arrays)], np.int64))


def lists(values: np.ndarray, lengths: np.ndarray) -> pa.LargeListArray:
    """A column of lists whose values lie end to end."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return pa.LargeListArray.from_arrays(numbers(offsets), numbers(values))


def list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    return array_of(pc.list_value_length(column)).astype(np.int64)


def flat(column: pa.ChunkedArray) -> np.ndarray:
    return array_of(pc.list_flatten(column))


def sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64[n]: sums over consecutive stretches of `counts` values; a stretch may be empty."""
    ends = np.cumsum(counts)
    total = np.concatenate([[0], np.cumsum(values)])
    return total[ends] - total[ends - counts]


class TokenWriter:
    """Rewrites a folder of shards, document by document; use it in a `with`.

    A new shard begins before the document that would bring one over `max_shard_tokens`. Tokens go straight
    to disk. Leaving the `with` normally replaces `folder`; by an exception, `folder` stays as it was.
    Raises `UserError` if it cannot write.
    """

    def __init__(self, folder: Path, vocab_size: int, max_shard_tokens: int) -> None:
        self.folder = folder
        self.dtype = token_type(vocab_size)
        self.max_shard_tokens = max_shard_tokens
        self.partial = folder.parent / f".{folder.name}.partial"
        self.num_shards = 0
        self.shard: ShardFile | None = None
        self.rows: list[pa.Table] = []
        self.num_rows = 0
        self.table: pq.ParquetWriter | None = None
        self.dropped: list[Dropped] = []
        self.num_cut_documents = self.num_cut_tokens = 0

    def __enter__(self) -> Self:
        with writing_to(self.folder):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            self.table = pq.ParquetWriter(
                self.partial / DOCUMENTS_FILE,
                DOCUMENTS_SCHEMA,
                version="2.6",
                compression="zstd",
                use_dictionary=["source"],
                write_statistics=False,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with writing_to(self.folder):
                    self.finish()
        finally:
            # What is still open is thrown away; closing must not hide the error that brought us here.
            with suppress(OSError):
                if self.shard is not None:
                    self.shard.file.close()
            with suppress(OSError):
                if self.table is not None:
                    self.table.close()
            shutil.rmtree(self.partial, ignore_errors=True)

    def write(self, document: TokenizedDocument) -> None:
        self.append(tokenized_table([document], self.dtype))

    def append(self, documents: pa.Table) -> None:
        """Writes documents of a `tokenized_schema`, in their order."""
        lengths = list_lengths(documents["tokens"])
        with writing_to(self.folder):
            start = 0
            while start < len(documents):
                if self.shard is None or self.shard.num_tokens + lengths[start] > self.max_shard_tokens:
                    self.begin_shard()
                assert self.shard is not None  # noqa: S101 - for the type checker
                room = self.max_shard_tokens - self.shard.num_tokens
                fitting = int(np.searchsorted(np.cumsum(lengths[start:]), room, side="right"))
                self.take(documents.slice(start, max(1, fitting)))
                start += max(1, fitting)

    def take(self, documents: pa.Table) -> None:
        """Writes documents to the present shard."""
        assert self.shard is not None  # noqa: S101 - for the type checker
        assert self.table is not None  # noqa: S101 - for the type checker
        tokens, spans = flat(documents["tokens"]), flat(documents["spans"]).reshape(-1, 2)
        lengths, num_spans = list_lengths(documents["tokens"]), list_lengths(documents["spans"]) // 2
        self.shard.append(tokens, lengths, spans, num_spans)
        trained = sums(spans[:, 1] - spans[:, 0], num_spans)
        cut = array_of(documents["cut_tokens"])
        self.num_cut_documents += int((cut > 0).sum())
        self.num_cut_tokens += int(cut.sum())
        rows = documents.drop_columns(["cut_tokens", "tokens", "spans"])
        rows = rows.append_column("num_tokens", numbers(lengths))
        rows = rows.append_column("num_trained_tokens", numbers(trained))
        rows = rows.append_column("shard", numbers(np.full(len(rows), self.num_shards - 1, np.int32)))
        self.rows.append(rows.select(DOCUMENTS_SCHEMA.names))
        self.num_rows += len(rows)
        if self.num_rows >= ROW_GROUP_ROWS:
            self.flush_rows()

    def drop(self, documents: Iterable[Dropped]) -> None:
        """Lists documents that became no tokens, in `DROPPED_FILE`."""
        self.dropped.extend(documents)

    def losses(self) -> dict[str, Any]:
        """What did not become tokens."""
        return {
            "num_cut_documents": self.num_cut_documents,
            "num_cut_tokens": self.num_cut_tokens,
            "num_dropped": len(self.dropped),
            "dropped": dict(sorted(Counter(document.reason for document in self.dropped).items())),
        }

    def begin_shard(self) -> None:
        self.end_shard()
        self.shard = ShardFile(self.partial / shard_name(self.num_shards), self.dtype)
        self.num_shards += 1

    def end_shard(self) -> None:
        if self.shard is not None:
            shard, self.shard = self.shard, None
            shard.finish()

    def flush_rows(self) -> None:
        """Row groups of the same length, so that the file does not depend on how documents came."""
        if self.table is None or not self.rows:
            return
        waiting = pa.concat_tables(self.rows).combine_chunks()
        whole = len(waiting) - len(waiting) % ROW_GROUP_ROWS
        if whole:
            self.table.write_table(waiting.slice(0, whole), row_group_size=ROW_GROUP_ROWS)
        self.rows, self.num_rows = [waiting.slice(whole)], len(waiting) - whole

    def finish(self) -> None:
        self.end_shard()
        self.flush_rows()
        if self.table is not None:
            if self.num_rows:
                self.table.write_table(pa.concat_tables(self.rows).combine_chunks())
            self.table.close()
        lines = (json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in self.dropped)
        (self.partial / DROPPED_FILE).write_text("".join(lines), encoding="utf-8")
        remove(self.folder)
        self.partial.rename(self.folder)


class ShardFile:
    """One shard being written: tokens at once, the rest and the header at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.file: BinaryIO = path.open("wb")
        self.file.write(bytes(HEADER.size))
        self.num_tokens = 0
        self.lengths: list[np.ndarray] = []
        self.span_counts: list[np.ndarray] = []
        self.spans: list[np.ndarray] = []

    def append(
        self, tokens: np.ndarray, lengths: np.ndarray, spans: np.ndarray, span_counts: np.ndarray
    ) -> None:
        """Documents laid end to end: their tokens, and how many tokens and spans each has."""
        self.file.write(np.ascontiguousarray(tokens, self.dtype).data)
        self.num_tokens += len(tokens)
        self.lengths.append(halved(lengths))
        self.span_counts.append(halved(span_counts))
        self.spans.append(halved(spans))

    def finish(self) -> None:
        document_offsets, span_offsets = offsets_of(self.lengths), offsets_of(self.span_counts)
        with self.file as file:
            file.write(bytes(-file.tell() % OFFSET.itemsize))
            file.write(document_offsets.tobytes())
            file.write(span_offsets.tobytes())
            for spans in self.spans:
                file.write(spans.astype(OFFSET).tobytes())
            counts = (self.num_tokens, len(document_offsets) - 1, int(span_offsets[-1]))
            file.seek(0)
            file.write(HEADER.pack(MAGIC, VERSION, self.dtype.itemsize, *counts))


def halved(values: np.ndarray) -> np.ndarray:
    """The same numbers in 4 bytes each where they fit: they wait for the end of the shard."""
    return values.astype(np.uint32) if values.max(initial=0) < 2**32 else values


def offsets_of(lengths: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(1, OFFSET), np.cumsum(np.concatenate(lengths), dtype=OFFSET)])
