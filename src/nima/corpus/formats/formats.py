"""Bytes of any supported format as records: documents and conversations.

A file that is one text becomes one record. What cannot be used is rejected with its reason, be it a record
or all that follows a damaged place; good records around it survive.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from nima.corpus.document import Rejection
from nima.corpus.formats.content import Content, num_head_bytes, text_of
from nima.corpus.formats.encodings import TextEncoding
from nima.corpus.formats.fields import Unusable, usable
from nima.corpus.formats.html import markdown_of
from nima.corpus.formats.json_files import json_records, jsonl_records
from nima.corpus.formats.lines import Span
from nima.corpus.formats.parquet import parquet_records
from nima.corpus.formats.records import Reading, Record, RecordShape, rejection
from nima.corpus.formats.tables import table_records
from nima.corpus.formats.unpacking import SUFFIXES, is_on_disk
from nima.corpus.quality.blocks import Markup
from nima.corpus.sources.sources import SourceFile
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams, SourceParams

__all__ = ["Record", "Span", "is_splittable", "read_records", "rejection"]

FORMATS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdx": "mdx",
    ".rst": "rst",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".py": "python",
    ".pyi": "python",
    ".js": "javascript",
    ".mjs": "javascript",
    ".cjs": "javascript",
    ".jsx": "javascript",
    ".ts": "typescript",
    ".mts": "typescript",
    ".cts": "typescript",
    ".tsx": "typescript",
    ".xml": "xml",
    ".xsd": "xml",
    ".xsl": "xml",
    ".xslt": "xml",
}
MARKUPS: dict[str, Markup] = {"markdown": "markdown", "mdx": "markdown", "rst": "rst", "text": "text"}
MARKUPS |= {"html": "markdown", "python": "code", "javascript": "code", "typescript": "code", "xml": "code"}
DELIMITERS = {"csv": ",", "tsv": "\t"}
USUAL_LIMITS = LimitsParams()


def read_records(
    file: SourceFile, source: SourceParams, limits: LimitsParams = USUAL_LIMITS, span: Span | None = None
) -> Iterator[Record | Rejection]:
    """The records of one file in their order, or those of a part of one that `is_splittable`.

    Raises `SourceError` if the file cannot be read, or if its source names an unknown encoding.
    """
    name, compression = format_of(file, source)
    reading = Reading(file.key, file.place, source, limits, RecordShape(source))
    with file.open() as stream:
        if name == "parquet":
            yield from parquet_records(reading, stream, compression)
        else:
            yield from records_of(name, reading, Content(stream, compression, reading, span))


def is_splittable(file: SourceFile, source: SourceParams) -> bool:
    """Whether parts of the file can be read by themselves: JSON Lines on disk, with the byte 10 at ends."""
    if format_of(file, source) != ("jsonl", None):
        return False
    try:
        with file.open() as stream:
            head = stream.read(num_head_bytes(source.encoding))
            return is_on_disk(stream) and not TextEncoding(head, source.encoding, file.place).is_wide
    except SourceError:  # whoever reads it will say so
        return False


def format_of(file: SourceFile, source: SourceParams) -> tuple[str, str | None]:
    """Name of the format, declared or by the file's name, and of the compression."""
    path = PurePosixPath(file.key.lower())
    compression = SUFFIXES.get(path.suffix)
    suffix = path.suffix if compression is None else path.with_suffix("").suffix
    name = source.format if source.format != "auto" else FORMATS.get(suffix, "text")
    return name, compression


def records_of(name: str, reading: Reading, content: Content) -> Iterator[Record | Rejection]:
    if name == "json":
        yield from json_records(reading, content)
    elif name == "jsonl":
        yield from jsonl_records(reading, content)
    elif name in DELIMITERS:
        yield from table_records(reading, content, DELIMITERS[name])
    elif name == "yaml":
        from nima.corpus.formats.yaml_files import (
            yaml_records,  # few need its parser, which takes a tenth of a second
        )

        yield from yaml_records(reading, content)
    else:
        yield text_record(name, reading, content)


def text_record(name: str, reading: Reading, content: Content) -> Record | Rejection:
    """The file as one text."""
    origin = text_of(reading, content, "max_record_bytes")
    if isinstance(origin, Rejection):
        return origin
    try:
        text = usable(origin, "the file")
        return reading.text_record(markdown_of(text) if name == "html" else text, MARKUPS[name], origin)
    except Unusable as error:
        return reading.rejected_bytes(reading.key, error.flaw, origin.encode(errors="replace"), "")
