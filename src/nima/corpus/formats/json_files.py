"""Records of JSON and JSON Lines.

A JSON file holds an array of records, one record, an object with one list of records, or a record under
each id; JSON Lines under the name of a JSON file are recognised.
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import replace

from nima.corpus.document import Rejection
from nima.corpus.formats.content import Content, bytes_of
from nima.corpus.formats.encodings import TextEncoding, is_text
from nima.corpus.formats.fields import Unusable, kind_name, shortened
from nima.corpus.formats.json_text import Item, JsonParser, Malformed, Member, skip_space
from nima.corpus.formats.layouts import Kind, layout_of
from nima.corpus.formats.lines import Line, lines_of
from nima.corpus.formats.records import Reading, Record
from nima.corpus.formats.squad import questions_of
from nima.corpus.quality.quality import Flaw

Outcome = Record | Rejection
SPACE = b" \t\r\n"
MAX_UTF8_BYTES = 4
"""Of one character."""
KINDS: dict[str, Kind] = {"{": "objects", "[": "lists", "]": "empty"}


# --------------------------------------------------------------------------------------------- JSON Lines


def jsonl_records(reading: Reading, content: Content) -> Iterator[Outcome]:
    """One record a line; blank lines are skipped, and count."""
    parser = JsonParser()
    number, cut = content.span.first_line, b""
    for line in lines_of(content, reading.limits.max_record_bytes, number, content.span.start_bytes):
        if content.flaw is not None:  # only after the last byte: this line has no end
            cut = line.content
            break
        number = line.number + 1
        if not is_blank(line):
            yield line_outcome(reading, content.encoding, parser, line)
    if content.flaw is not None:
        key, where = reading.record_key(number), f"line {number + 1}"
        yield reading.rejected_bytes(key, content.flaw, cut, where)


def is_blank(line: Line) -> bool:
    return line.content.strip(SPACE) in (b"", codecs.BOM_UTF8)


def line_outcome(reading: Reading, encoding: TextEncoding, parser: JsonParser, line: Line) -> Outcome:
    key, where = reading.record_key(line.number), f"line {line.number + 1}"
    content = line.content.removesuffix(b"\r")
    if line.num_bytes > reading.limits.max_record_bytes:
        return reading.too_large(key, content, "max_record_bytes", where)
    try:
        text = encoding.text(content, line.start_bytes)
    except Unusable as error:
        return reading.rejected_bytes(key, error.flaw, content, where)
    try:
        value = parser.whole(text)
    except Malformed as error:
        return reading.rejected(key, error.flaw, text, where)
    return reading.outcome(key, value, text, where)


# --------------------------------------------------------------------------------------------------- JSON


def json_records(reading: Reading, content: Content) -> Iterator[Outcome]:
    """The records of a file, up to where it is damaged."""
    data = bytes_of(reading, content, "max_file_bytes")
    if isinstance(data, Rejection):
        yield data
        return
    text = content.encoding.escaped_text(data)
    if text is None:
        yield reading.rejected_bytes(reading.key, content.encoding.flaw_of(data), data, "")
    else:
        yield from JsonFile(reading, content, data, text)


class JsonFile:
    """A file, read whole or up to where it is damaged; iterate over its records once.

    Bytes that are no text stand in `text` as surrogates: only their record is lost.
    """

    def __init__(self, reading: Reading, content: Content, data: bytes, text: str) -> None:
        self.reading, self.encoding, self.damage = reading, content.encoding, content.flaw
        self.data = data
        self.parser = JsonParser()
        self.number = 0
        self.line, self.counted = 1, 0
        self.text = text
        self.is_clean = is_text(text)

    def __iter__(self) -> Iterator[Outcome]:
        start = skip_space(self.text, 0)
        if self.text.startswith("[", start):
            yield from self.list_records(start)
        elif self.text.startswith("{", start):
            yield from self.object_records(start)
        else:
            yield self.single_record(start)
        if self.damage is not None:
            yield self.rejected_rest(len(self.text), self.damage)

    def object_records(self, start: int) -> Iterator[Outcome]:
        members = self.parser.members(self.text, start)
        if members.end is not None and self.has_lines(start, members.end):
            yield from self.line_records()
            return
        try:
            layout = layout_of(self.kinds(members.found), self.reading.shape.main_fields())
        except Unusable as error:
            yield self.rejected_rest(start, error.flaw, self.reading.key)
            return
        if layout.kind == "record":
            yield self.single_record(start)
            return
        if layout.kind == "list":
            member = next(member for member in members.found if member.name == layout.name)
            yield from self.list_records(member.start, member.name)
        else:
            yield from self.named_records(members.found)
        if members.rest is not None:
            yield self.outcome(members.rest)

    def has_lines(self, start: int, end: int) -> bool:
        """Whether more objects follow the first one, which is alone on its line."""
        after = skip_space(self.text, end)
        parted = "\n" in self.text[end:after] and self.text.startswith("{", after)
        return parted and "\n" not in self.text[start:end]

    def line_records(self) -> Iterator[Outcome]:
        whole = self.data if self.damage is None else self.data[: self.data.rfind(b"\n") + 1]
        for line in lines_of([whole], self.reading.limits.max_record_bytes):
            self.number = line.number + 1
            if not is_blank(line):
                yield line_outcome(self.reading, self.encoding, self.parser, line)
        if self.damage is not None:
            yield self.rejected_rest(self.text.rfind("\n") + 1, self.damage)

    def kinds(self, members: Iterable[Member]) -> dict[str, Kind]:
        return {member.name: self.kind(member) for member in members}

    def kind(self, member: Member) -> Kind:
        if not self.text.startswith("[", member.start):
            # What is cut off may have been anything: it must not hide that all the others are records.
            is_object = self.text.startswith("{", member.start) or member.end is None
            return "object" if is_object else "scalar"
        first = skip_space(self.text, member.start + 1)
        return KINDS.get(self.text[first : first + 1], "list")

    def list_records(self, start: int, name: str | None = None) -> Iterator[Outcome]:
        """The values of an array: all of the file, or the member `name` of its object."""
        for item in self.parser.items(self.text, start, is_all=name is None):
            questions = questions_of(item.value)
            if questions is None:
                value = self.reading.shape.member_of(name or "", item.value)
                yield self.outcome(replace(item, value=value))
                continue
            for question in questions:
                where = self.place(item.start)
                yield self.reading.outcome(self.next_key(), question, question, where)

    def named_records(self, members: Iterable[Member]) -> Iterator[Outcome]:
        seen: set[str] = set()
        for member in members:
            item = self.parser.item(self.text, member.start)
            if member.name in seen:
                flaw = Flaw("duplicate_key", "the name stands twice in the file")
                item = replace(item, flaw=item.flaw or flaw)
            seen.add(member.name)
            yield self.outcome(item, f", {shortened(member.name)}")

    def single_record(self, start: int) -> Outcome:
        """The file as one record, under the file's own key."""
        key, where = self.reading.key, self.place(start)
        unreadable = self.unreadable(key, start, len(self.text), where)
        if unreadable is not None:
            return unreadable
        try:
            value = self.parser.whole(self.text)
        except Malformed as error:
            return self.rejected_rest(start, error.flaw, key)
        if not isinstance(value, dict):
            detail = f"expected an array of records or one record, found {kind_name(value)}"
            return self.rejected_rest(start, Flaw("wrong_type", detail), key)
        return self.reading.outcome(key, value, self.text, where)

    def outcome(self, item: Item, name: str = "") -> Outcome:
        if item.is_rest:
            return self.rejected_rest(item.start, item.flaw or Flaw("malformed_json", ""))
        where, key = self.place(item.start, name), self.next_key()
        unreadable = self.unreadable(key, item.start, item.end, where)
        if unreadable is not None:
            return unreadable
        raw = self.text[item.start : item.end]
        if item.flaw is not None:
            return self.reading.rejected(key, item.flaw, raw, where)
        return self.reading.outcome(key, item.value, raw, where)

    def unreadable(self, key: str, start: int, end: int, where: str) -> Rejection | None:
        """Why the text from `start` to `end` is no record, whatever it says."""
        max_bytes = self.reading.limits.max_record_bytes
        if end - start > max_bytes // MAX_UTF8_BYTES:
            content = self.bytes_from(start, end)
            if len(content) > max_bytes:
                return self.reading.too_large(key, content, "max_record_bytes", where)
        if self.is_clean or is_text(self.text[start:end]):
            return None
        content = self.bytes_from(start, end)
        return self.reading.rejected_bytes(key, self.encoding.flaw_of(content), content, where)

    def rejected_rest(self, start: int, flaw: Flaw, key: str = "") -> Rejection:
        """What begins at `start` and cannot be read on; damage of the file explains it best."""
        where, flaw = self.place(start), self.damage or flaw
        self.damage = None
        content = self.bytes_from(start, start + self.reading.limits.max_record_bytes + 1)
        return self.reading.rejected_bytes(key or self.next_key(), flaw, content, where)

    def place(self, position: int, name: str = "") -> str:
        """What messages call the record at `position`; positions must ascend."""
        self.line += self.text.count("\n", self.counted, position)
        self.counted = max(self.counted, position)
        return f"record {self.number} (line {self.line}{name})"

    def next_key(self) -> str:
        self.number += 1
        return self.reading.record_key(self.number - 1)

    def bytes_from(self, start: int, end: int) -> bytes:
        return self.text[start:end].encode(errors="surrogateescape")
