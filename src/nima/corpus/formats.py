"""Bytes of any supported format as records: documents and conversations.

A file that is one text becomes one record. A record that cannot be used is rejected, with its raw text;
a JSON file that cannot be parsed raises, because it would lose all its records at once.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from nima.corpus.blocks import Markup
from nima.corpus.document import Message, Rejection, document_id
from nima.corpus.quality import Flaw
from nima.corpus.sources import SourceFile
from nima.errors import SourceError
from nima.params import SourceParams

FORMATS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".rst": "rst",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
BOM = "\ufeff"
JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Record:
    """What a file says once: a text, or the messages of a conversation."""

    key: str
    text: str
    messages: tuple[Message, ...] | None
    markup: Markup
    raw: str
    """As it was read, for the rejected records."""


class Unusable(Exception):  # noqa: N818 - it ends one record, not the run
    """A record that will be rejected."""

    def __init__(self, reason: str, detail: str) -> None:
        self.flaw = Flaw(reason, detail)


def read_records(file: SourceFile, source: SourceParams) -> Iterator[Record | Rejection]:
    """The records of one file, in their order.

    Raises `SourceError` if the file cannot be read, or is JSON that cannot be parsed.
    """
    kind = source.format
    if kind == "auto":
        kind = FORMATS.get(PurePosixPath(file.key).suffix.lower(), "text")  # type: ignore[assignment]
    with file.open() as stream:
        if kind == "jsonl":
            yield from jsonl_records(file, stream, source)
        elif kind == "json":
            yield from json_records(file, stream.read(), source)
        else:
            yield text_record(file.key, stream.read(), kind, source)  # type: ignore[arg-type]


def rejection(source: str, key: str, flaw: Flaw, text: str, raw: bytes | None = None) -> Rejection:
    return Rejection(document_id(source, key), source, key, flaw.reason, flaw.detail, text, raw)


# ------------------------------------------------------------------------------------------------ text


def text_record(key: str, content: bytes, markup: Markup, source: SourceParams) -> Record | Rejection:
    try:
        text = decoded(content)
        return Record(key, usable(text, "the file"), None, markup, text)
    except UnicodeDecodeError as error:
        return undecodable(source.name, key, error, content)
    except Unusable as error:
        return rejection(source.name, key, error.flaw, content.decode("utf-8", "backslashreplace"), content)


def undecodable(
    source: str, key: str, error: UnicodeDecodeError, content: bytes, where: str = ""
) -> Rejection:
    flaw = Flaw("invalid_utf8", f"{where}byte {error.start}: {error.reason}")
    return rejection(source, key, flaw, content.decode("utf-8", "backslashreplace"), content)


def decoded(content: bytes, offset: int = 0) -> str:
    """UTF-8 as text, no byte order mark; positions in the error count from `offset` bytes earlier."""
    try:
        return content.decode().removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise UnicodeDecodeError(
            error.encoding, error.object, error.start + offset, error.end + offset, error.reason
        ) from None


def usable(text: str, where: str) -> str:
    """`text` with plain newlines. Raises `Unusable` for characters that no text file holds."""
    if "\0" in text:
        position = text.index("\0")
        raise Unusable("nul_byte", f"{where}: character {position} is NUL; binary, or not UTF-8")
    if not text.isascii() and (surrogate := re.search("[\ud800-\udfff]", text)):
        raise Unusable("invalid_unicode", f"{where}: half a surrogate pair at character {surrogate.start()}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ------------------------------------------------------------------------------------------------ JSON


def json_records(file: SourceFile, content: bytes, source: SourceParams) -> Iterator[Record | Rejection]:
    """An array of records, or one record. The array is decoded record by record, to keep each raw text."""
    text = json_text(file, content)
    start = skip_space(text, 0)
    if not text.startswith("[", start):
        value, end = json_value(file, text, start)
        if not isinstance(value, dict):
            raise SourceError(
                f"{file.place}:{line_at(text, start)}: expected an array of records or one record, "
                f"found {json_kind(value)}"
            )
        refuse_rest(file, text, end)
        yield record_of(file.key, value, text, source, "record 0")
        return
    line, counted = 1, 0
    for number, (value, begin, end) in enumerate(json_array(file, text, start)):
        line, counted = line + text.count("\n", counted, begin), begin
        where = f"record {number} (line {line})"
        yield record_of(f"{file.key}#{number}", value, text[begin:end], source, where)


def json_text(file: SourceFile, content: bytes) -> str:
    try:
        return decoded(content)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SourceError(f"{file.place}:{line}: not UTF-8: byte {error.start}: {error.reason}") from None


def json_array(file: SourceFile, text: str, start: int) -> Iterator[tuple[Any, int, int]]:
    """Each value of the array that begins at `start`, with its start and end in `text`."""
    position = skip_space(text, start + 1)
    if text.startswith("]", position):
        return refuse_rest(file, text, position + 1)
    while True:
        value, end = json_value(file, text, position)
        yield value, position, end
        after = skip_space(text, end)
        if text.startswith("]", after):
            return refuse_rest(file, text, after + 1)
        if not text.startswith(",", after):
            raise malformed(file, text, after, "expected ',' or ']' after a record")
        position = skip_space(text, after + 1)


def json_value(file: SourceFile, text: str, start: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise malformed(file, text, error.pos, error.msg) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise malformed(file, text, start, str(error)) from None


def refuse_rest(file: SourceFile, text: str, end: int) -> None:
    rest = skip_space(text, end)
    if rest < len(text):
        raise malformed(file, text, rest, "nothing may follow the end of the value")


def malformed(file: SourceFile, text: str, position: int, message: str) -> SourceError:
    return SourceError(f"{file.place}:{line_at(text, position)}: malformed JSON: {message}")


def skip_space(text: str, position: int) -> int:
    match = JSON_SPACE.match(text, position)
    return match.end() if match else position


def line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def jsonl_records(file: SourceFile, stream: BinaryIO, source: SourceParams) -> Iterator[Record | Rejection]:
    """One record a line, read line by line; empty lines are skipped."""
    number = offset = 0
    for line_number, line in enumerate(stream, start=1):
        if line.removeprefix(BOM.encode()).strip():
            where = f"record {number} (line {line_number})"
            yield jsonl_record(f"{file.key}#{number}", line.rstrip(b"\r\n"), source, where, offset)
            number += 1
        offset += len(line)


def jsonl_record(key: str, line: bytes, source: SourceParams, where: str, offset: int) -> Record | Rejection:
    try:
        text = decoded(line, offset)
        return record_of(key, json.loads(text), text, source, where)
    except UnicodeDecodeError as error:
        return undecodable(source.name, key, error, line, f"{where}: ")
    except (ValueError, RecursionError) as error:
        message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return rejection(source.name, key, Flaw("malformed_json", f"{where}: {message}"), text)


# --------------------------------------------------------------------------------------------- records


def record_of(key: str, value: Any, raw: str, source: SourceParams, where: str) -> Record | Rejection:
    try:
        if not isinstance(value, dict):
            raise Unusable("wrong_type", f"{where}: expected an object, found {json_kind(value)}")
        if source.record == "qa" or (source.record == "auto" and value.keys() & {"question", "answer"}):
            return Record(key, "", question_and_answer(value, where), "markdown", raw)
        return Record(key, document_text(value, where), None, "markdown", raw)
    except Unusable as error:
        return rejection(source.name, key, error.flaw, raw)


def question_and_answer(value: dict[str, Any], where: str) -> tuple[Message, ...]:
    return (
        Message("user", field_text(value, "question", where)),
        Message("assistant", field_text(value, "answer", where)),
    )


def document_text(value: dict[str, Any], where: str) -> str:
    """The text, under its title if there is one."""
    name = "content" if "content" in value and "text" not in value else "text"
    text = field_text(value, name, where)
    if value.get("title") is None:
        return text
    return f"{field_text(value, 'title', where)}\n\n{text}"


def field_text(value: dict[str, Any], name: str, where: str) -> str:
    text = value.get(name)
    if text is None:
        raise Unusable("missing_field", f"{where}: field {name!r} is missing")
    if not isinstance(text, str):
        raise Unusable("wrong_type", f"{where}: field {name!r} must be text, found {json_kind(text)}")
    if not text.strip():
        raise Unusable("missing_field", f"{where}: field {name!r} is empty")
    return usable(text, f"{where}: field {name!r}")


def json_kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
