"""Records of Parquet files, row by row; only a few rows are in memory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nima.corpus.document import Rejection
from nima.corpus.formats.fields import repeated
from nima.corpus.formats.records import Reading, Record, written
from nima.corpus.formats.unpacking import Chunks, is_on_disk
from nima.corpus.quality.quality import Flaw

# One long text that is repeated takes little on disk: few rows at a time bound what it becomes.
BATCH_ROWS = 16
BUFFER_BYTES = 1 << 20
# What the library finds wrong in a file, and what a value cannot become in Python.
FAULTS = (pa.ArrowException, OSError, ValueError, OverflowError)


def parquet_records(
    reading: Reading, stream: BinaryIO, compression: str | None
) -> Iterator[Record | Rejection]:
    """One record a row, numbered from 0; from where the file is damaged, one rejection for the rest."""
    number = 0
    with seekable(reading, stream, compression) as file:
        if isinstance(file, Rejection):
            yield file
            return
        for batch in batches_of(file):
            if isinstance(batch, Flaw):
                where = f"record {number} and all behind it" if number else ""
                yield reading.rejected(reading.record_key(number), batch, "", where)
                return
            for value in values_of(batch):
                yield row_outcome(reading, value, number)
                number += 1


@contextmanager
def seekable(reading: Reading, stream: BinaryIO, compression: str | None) -> Iterator[BinaryIO | Rejection]:
    """The file where reading may jump without cost: as it is on disk, or else a copy that goes again."""
    if compression is None and is_on_disk(stream):
        yield stream
        return
    max_bytes = reading.limits.max_file_bytes
    with tempfile.TemporaryFile() as copy:
        chunks = Chunks(stream, compression, reading.limits)
        for chunk in chunks:
            copy.write(chunk)
            if copy.tell() > max_bytes:
                yield reading.too_large(reading.key, b"", "max_file_bytes", "")
                return
        if chunks.flaw is not None:
            yield reading.rejected(reading.key, chunks.flaw, "", "")
            return
        copy.seek(0)
        yield cast(BinaryIO, copy)


def batches_of(file: BinaryIO) -> Iterator[pa.RecordBatch | Flaw]:
    """A few rows at a time; a flaw ends them."""
    try:
        with pq.ParquetFile(
            file, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True
        ) as parquet:
            twice = repeated(parquet.schema_arrow.names)
            if twice is None:
                yield from parquet.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
            else:
                yield Flaw("duplicate_key", f"two columns are called {twice}")
    except FAULTS as error:
        # The disk's own errors have a number; what the library finds wrong in the bytes has none.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield Flaw("damaged", f"no Parquet, or not whole: {first_line(error)}")


def values_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Flaw]:
    """The rows as objects; if one cannot become one, only it is lost."""
    try:
        yield from batch.to_pylist()
    except FAULTS:
        for row in range(batch.num_rows):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except FAULTS as error:
                yield Flaw("damaged", f"a value is broken: {first_line(error)}")


def row_outcome(reading: Reading, value: dict[str, Any] | Flaw, number: int) -> Record | Rejection:
    key, where = reading.record_key(number), f"record {number}"
    if isinstance(value, Flaw):
        return reading.rejected(key, value, "", where)
    if text_bytes(value) > reading.limits.max_record_bytes:
        content = written(value).encode()
        return reading.too_large(key, content, "max_record_bytes", where)
    return reading.outcome(key, value, value, where)


def text_bytes(value: Any) -> int:
    """At least the bytes of all texts in a row, but for signs beyond Latin."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(text_bytes(entry) for entry in value.values())
    return sum(text_bytes(entry) for entry in value) if isinstance(value, list | tuple) else 0


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
