"""Records of CSV and TSV: a row of names, then a record in each row, as RFC 4180 has it.

An empty cell is a missing field. What a quote opens and nothing closes is rejected, not guessed at.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nima.corpus.document import Rejection
from nima.corpus.formats.content import Content
from nima.corpus.formats.encodings import NO_CHARACTER, is_text
from nima.corpus.formats.fields import Unusable, repeated
from nima.corpus.formats.lines import Line, lines_of
from nima.corpus.formats.records import Reading, Record
from nima.corpus.quality.quality import Flaw

QUOTE = b'"'


@dataclass(frozen=True, slots=True)
class Row:
    """A row with the lines it stands on."""

    first_line: int
    """From 1."""
    last_line: int
    raw: str
    """Bytes that are no text are lone surrogates."""
    cells: list[str]
    flaw: Flaw | None
    is_too_large: bool = False

    @property
    def lines(self) -> str:
        if self.first_line == self.last_line:
            return f"line {self.first_line}"
        return f"lines {self.first_line} to {self.last_line}"


class RowEnds(Exception):  # noqa: N818 - it ends one row, not the file
    """Too many bytes, or damage of the file, within a row."""


class Rows:
    """Iterate over it for rows; the lines of a row are taken one by one as its quotes ask for more."""

    def __init__(self, content: Content, delimiter: str, max_bytes: int) -> None:
        self.content, self.delimiter, self.max_bytes = content, delimiter, max_bytes
        self.lines = lines_of(content, max_bytes, counted=QUOTE)
        self.next_line = 1
        self.texts: list[str] = []
        self.num_bytes = self.num_quotes = 0
        # The library's own limit, for all that read tables here, is far below that of a record.
        csv.field_size_limit(max(csv.field_size_limit(), max_bytes))

    def __iter__(self) -> Iterator[Row]:
        reader = self.reader()
        while True:
            first_line, self.texts, self.num_bytes, self.num_quotes = self.next_line, [], -1, 0
            try:
                cells = next(reader)
                row = self.row(first_line, cells, None)
            except StopIteration:
                return
            except csv.Error as error:
                row = self.row(first_line, [], self.content.flaw or Flaw("malformed_row", str(error)))
                reader = self.reader()
            except RowEnds:
                row = self.cut_row(first_line)
                reader = self.reader()
            if row.cells or row.flaw or row.is_too_large:
                yield row

    def reader(self) -> Iterator[list[str]]:
        return csv.reader(Feed(self), delimiter=self.delimiter, strict=True)

    def take(self) -> str:
        """The next line, with its end, for the reader. Raises `RowEnds`, or `StopIteration` at the end."""
        line = next(self.lines)
        self.count(line)
        text = self.text(line)
        self.texts.append(text)
        if self.content.packed.flaw is not None or self.num_bytes > self.max_bytes:
            raise RowEnds
        return f"{text}\n"

    def count(self, line: Line) -> None:
        self.next_line += 1
        self.num_bytes += line.num_bytes + 1
        self.num_quotes += line.num_counted

    def text(self, line: Line) -> str:
        """With surrogates for bytes that are no text, so that their row can be told."""
        encoding = self.content.encoding
        try:
            return encoding.text(line.content)
        except Unusable:
            escaped = encoding.escaped_text(line.content)
            return line.content.decode("latin-1") + NO_CHARACTER if escaped is None else escaped

    def row(self, first_line: int, cells: list[str], flaw: Flaw | None) -> Row:
        return Row(first_line, self.next_line - 1, "\n".join(self.texts), cells, flaw)

    def cut_row(self, first_line: int) -> Row:
        """The last row of a damaged file; or one that is too large, passed over to where its quotes close."""
        if self.content.flaw is not None:
            return self.row(first_line, [], self.content.flaw)
        while self.num_quotes % 2 and (line := next(self.lines, None)) is not None:
            self.count(line)
        raw = "\n".join(self.texts)
        return Row(first_line, self.next_line - 1, raw, [], None, is_too_large=True)


@dataclass(frozen=True)
class Feed:
    """Lines as the reader takes them; it survives an exception, as a generator would not."""

    rows: Rows

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return self.rows.take()


def table_records(reading: Reading, content: Content, delimiter: str) -> Iterator[Record | Rejection]:
    """One record a row, numbered from 0 behind the row of names."""
    rows = Rows(content, delimiter, reading.limits.max_record_bytes)
    header: Row | None = None
    number, is_told = 0, False
    for row in rows:
        is_told = row.flaw is not None and row.flaw == content.flaw
        if header is not None:
            yield row_outcome(reading, content, header.cells, row, number)
            number += 1
            continue
        header = row
        flaw = header_flaw(header)
        if flaw is not None:
            where = f"row of names ({header.lines})"
            yield rejected_row(reading, content, replace(header, flaw=flaw), reading.key, where)
            return
    if content.flaw is not None and not is_told:
        yield reading.rejected(reading.record_key(number), content.flaw, "", f"line {rows.next_line}")


def header_flaw(header: Row) -> Flaw | None:
    if header.flaw is not None or header.is_too_large or not is_text(header.raw):
        return header.flaw or Flaw("malformed_row", "it cannot be read")
    twice = repeated(name for name in header.cells if name)
    return None if twice is None else Flaw("duplicate_key", f"the name {twice} stands twice")


def row_outcome(
    reading: Reading, content: Content, names: list[str], row: Row, number: int
) -> Record | Rejection:
    key, where = reading.record_key(number), f"record {number} ({row.lines})"
    if row.flaw is None and not row.is_too_large and is_text(row.raw):
        if len(row.cells) == len(names):
            return reading.outcome(key, dict(zip(names, row.cells, strict=True)), row.raw, where)
        detail = f"{len(row.cells)} cells, the row of names has {len(names)}"
        row = replace(row, flaw=Flaw("ragged_row", detail))
    return rejected_row(reading, content, row, key, where)


def rejected_row(reading: Reading, content: Content, row: Row, key: str, where: str) -> Rejection:
    raw = row.raw.encode(errors="surrogateescape")
    if row.is_too_large:
        return reading.too_large(key, raw, "max_record_bytes", where)
    return reading.rejected_bytes(key, row.flaw or content.encoding.flaw_of(raw), raw, where)
