"""Records of YAML: conversations as the ChatterBot corpus has them, a list of records, or one record."""

from collections.abc import Iterator
from typing import Any

from nima.corpus.document import Rejection
from nima.corpus.formats.content import Content, bytes_of
from nima.corpus.formats.encodings import SURROGATE, TextEncoding, is_text
from nima.corpus.formats.fields import Unusable
from nima.corpus.formats.layouts import Kind, layout_of
from nima.corpus.formats.records import Reading, Record
from nima.corpus.formats.yaml_tree import YamlTree
from nima.corpus.quality.quality import Flaw

REPLACEMENT = "\ufffd"
NO_RECORD = Flaw("wrong_type", "neither a list nor an object")


def yaml_records(reading: Reading, content: Content) -> Iterator[Record | Rejection]:
    """The records of all documents in a file, numbered from 0."""
    data = bytes_of(reading, content, "max_file_bytes")
    if isinstance(data, Rejection):
        yield data
        return
    text = content.encoding.escaped_text(data)
    if text is None or content.flaw is not None:
        flaw = content.flaw or content.encoding.flaw_of(data)
        yield reading.rejected_bytes(reading.key, flaw, data, "")
    else:
        yield from YamlFile(reading, content.encoding, text)


class YamlFile:
    """Iterate over it once. Bytes that are no text are surrogates in `text`: only their record is lost."""

    def __init__(self, reading: Reading, encoding: TextEncoding, text: str) -> None:
        self.reading, self.encoding, self.text = reading, encoding, text
        # The parser takes no surrogates; another character in their place leaves all positions as they are.
        self.tree = YamlTree(text if is_text(text) else SURROGATE.sub(REPLACEMENT, text))
        self.number = 0
        self.is_rest_told = self.is_whole_told = False

    def __iter__(self) -> Iterator[Record | Rejection]:
        for root in self.tree.roots:
            if isinstance(root, list):
                for value in root:
                    yield self.outcome(value)
            elif isinstance(root, dict):
                yield from self.object_records(root)
            elif root is not None:
                yield self.whole(NO_RECORD)
        if self.tree.rest is not None and not self.is_rest_told:
            where = f"record {self.number} (line {self.tree.rest_line})"
            yield self.rejected(self.next_key(), self.tree.rest, self.tree.rest_start, None, where)

    def object_records(self, root: dict[str, Any]) -> Iterator[Record | Rejection]:
        place = self.tree.collections[id(root)]
        try:
            kinds = {name: kind_of(value) for name, value in root.items()}
            layout = layout_of(kinds, self.reading.shape.main_fields())
        except Unusable as error:
            yield self.whole(error.flaw)
            return
        if place.flaw is not None and (place.owns_flaw or layout.kind == "record"):
            yield self.whole(place.flaw)
        elif layout.kind == "record":
            yield self.outcome(root)
        elif layout.kind == "list":
            for value in root[layout.name]:
                yield self.outcome(value, layout.name)
        else:
            for value in root.values():
                yield self.outcome(value)

    def outcome(self, value: Any, list_name: str = "") -> Record | Rejection:
        place, number = self.tree.place_of(value), self.number
        key = self.next_key()
        if place is None:
            return self.reading.outcome(key, value, str(value or ""), f"record {number}")
        where = f"record {number} (line {place.line})"
        if place.flaw is not None:
            return self.rejected(key, place.flaw, place.start, place.end, where)
        raw = self.text[place.start : place.end].rstrip()
        content = raw.encode(errors="surrogateescape")
        if len(content) > self.reading.limits.max_record_bytes:
            return self.reading.too_large(key, content, "max_record_bytes", where)
        if not is_text(raw):
            return self.reading.rejected_bytes(key, self.encoding.flaw_of(content), content, where)
        return self.reading.outcome(key, self.reading.shape.member_of(list_name, value), raw, where)

    def whole(self, flaw: Flaw) -> Rejection:
        """The whole text as one that is of no use; by the file's key, but a second document needs its own."""
        key = self.next_key() if self.is_whole_told else self.reading.key
        self.is_whole_told = True
        return self.rejected(key, flaw, 0, None, "")

    def rejected(self, key: str, flaw: Flaw, start: int, end: int | None, where: str) -> Rejection:
        """What stands from `start` to `end`; what is not closed is all the rest."""
        self.is_rest_told = self.is_rest_told or end is None
        content = self.text[start:end].encode(errors="surrogateescape")
        return self.reading.rejected_bytes(key, flaw, content, where)

    def next_key(self) -> str:
        self.number += 1
        return self.reading.record_key(self.number - 1)


def kind_of(value: Any) -> Kind:
    """As layouts tell them apart."""
    if isinstance(value, dict):
        return "object"
    if not isinstance(value, list):
        return "scalar"
    if not value:
        return "empty"
    return "objects" if isinstance(value[0], dict) else "lists" if isinstance(value[0], list) else "list"
