"""What became of a portion's records, kept on disk until all portions are read.

One Arrow file holds a portion's documents and rejections in their order, with what finding duplicates needs;
a JSON file of the same name, written last, says that it is whole. So an interrupted stage goes on behind the
portions that are done, and memory does not grow with the corpus.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from nima.corpus.document import Message, Rejection
from nima.workspace.columns import column, structs
from nima.workspace.outputs import writing_to

BATCH_ROWS = 1024
BATCH_BYTES = 4_000_000

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("reason", pa.string()),  # null for a document
        ("detail", pa.string()),
        ("text", pa.string()),
        ("messages", MESSAGES),
        ("raw", pa.binary()),
        ("group", pa.string()),
        ("digest", pa.binary(16)),
        ("sketch", pa.binary()),
        ("num_bytes", pa.int64()),
    ]
)
COMPARED = ("id", "reason", "group", "digest", "sketch", "num_bytes")
"""The columns that finding duplicates needs."""


@dataclass(slots=True)
class Candidate:
    """A document before duplicates are looked for."""

    id: str
    key: str
    text: str
    messages: tuple[Message, ...] | None
    group: str
    digest: bytes
    sketch: bytes
    num_bytes: int


@dataclass
class Summary:
    """Counts of one portion."""

    num_rows: int = 0
    masked: dict[str, int] = field(default_factory=dict)
    """Pieces of personal data that were masked, by kind."""


class OutcomeWriter:
    """Writes a portion's outcomes to PATH.arrow and, at the end, PATH.json; use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = Summary()
        self.rows: list[Candidate | Rejection] = []
        self.row_bytes = 0

    def __enter__(self) -> Self:
        with writing_to(self.path.parent):
            self.file = self.path.with_suffix(".partial").open("wb")
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self.sink = pa.ipc.new_file(self.file, SCHEMA, options=options)
        return self

    def write(self, row: Candidate | Rejection) -> None:
        self.rows.append(row)
        self.row_bytes += row.num_bytes if isinstance(row, Candidate) else len(row.text) + len(row.raw or b"")
        if len(self.rows) >= BATCH_ROWS or self.row_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        with writing_to(self.path.parent):
            self.sink.write_batch(batch_of(self.rows))
        self.summary.num_rows += len(self.rows)
        self.rows, self.row_bytes = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.file.close()
            return
        self.flush()
        with writing_to(self.path.parent):
            self.sink.close()
            self.file.close()
            self.path.with_suffix(".partial").replace(self.path.with_suffix(".arrow"))
            done = self.path.with_suffix(".json.partial")
            done.write_text(json.dumps(asdict(self.summary)), encoding="utf-8")
            done.replace(self.path.with_suffix(".json"))


def batch_of(rows: Sequence[Candidate | Rejection]) -> pa.RecordBatch:
    records = [document_row(row) if isinstance(row, Candidate) else rejection_row(row) for row in rows]
    columns = zip(*records, strict=True) if records else [()] * len(SCHEMA)
    arrays = [
        (structs if entry.type == MESSAGES else column)(values, entry.type)
        for values, entry in zip(columns, SCHEMA, strict=True)
    ]
    return pa.record_batch(arrays, schema=SCHEMA)


def document_row(row: Candidate) -> tuple[Any, ...]:
    """Values in the order of `SCHEMA`."""
    said = (row.text, parts_of(row.messages), None)
    return row.id, row.key, None, None, *said, row.group, row.digest, row.sketch, row.num_bytes


def rejection_row(row: Rejection) -> tuple[Any, ...]:
    return row.id, row.key, row.reason, row.detail, row.text, None, row.raw, None, None, None, 0


def parts_of(messages: tuple[Message, ...] | None) -> list[tuple[str, str]] | None:
    return None if messages is None else [(message.role, message.content) for message in messages]


def finished(path: Path) -> Summary | None:
    """The counts of a portion whose outcomes lie at `path` whole; else None."""
    try:
        counts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return Summary(**counts) if path.with_suffix(".arrow").is_file() else None


def batches(path: Path, columns: Sequence[str] = SCHEMA.names) -> Iterator[pa.RecordBatch]:
    """The outcomes at `path` in their order, some columns of them; a batch is a few megabytes."""
    options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.names.index(name) for name in columns])
    with pa.memory_map(str(path.with_suffix(".arrow"))) as source:
        reader = pa.ipc.open_file(source, options=options)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
