"""Objects as documents and conversations, and what the readers of a file share."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from nima.corpus.document import Message, Rejection, document_id
from nima.corpus.formats.chats import TurnFields, messages_of
from nima.corpus.formats.fields import Unusable, field_text, first, group_text, kind_name, optional_text, pair
from nima.corpus.quality.blocks import Markup
from nima.corpus.quality.quality import Flaw
from nima.workspace.params import LimitsParams, SourceParams

EXCERPT_BYTES = 65_536
"""How much is kept of what is too long, or is left behind a place where reading ended."""


@dataclass(slots=True)  # to freeze one takes as long as to read it
class Record:
    """What a file says once: a text, or the messages of a conversation."""

    key: str
    text: str
    messages: tuple[Message, ...] | None
    markup: Markup
    origin: str | Mapping[str, Any]
    """As it was read: text, or the row of a table."""
    group: str = ""
    """Records of one group are never in two splits; "" groups by content."""

    @property
    def raw(self) -> str:
        """As it was read, as text; for the rejected records."""
        return written(self.origin)


def written(origin: str | Mapping[str, Any]) -> str:
    """A record as text that UTF-8 can hold; a row becomes JSON."""
    if isinstance(origin, str):
        return origin
    return json.dumps(origin, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()


def rejection(source: str, key: str, flaw: Flaw, text: str, raw: bytes | None = None) -> Rejection:
    return Rejection(document_id(source, key), source, key, flaw.reason, flaw.detail, text, raw)


class RecordShape:
    """Which fields of a source's records hold what: the names in its params, or else the usual ones."""

    def __init__(self, source: SourceParams) -> None:
        given = source.fields
        self.declared = source.record
        self.text = names(given.text, "text", "content")
        self.title = names(given.title, "title")
        self.question = names(given.question, "question")
        self.answer = names(given.answer, "answer")
        self.instruction = names(given.instruction, "instruction")
        self.input = names(given.input, "input")
        self.output = names(given.output, "output")
        self.system = names(given.system, "system")
        self.messages = names(given.messages, "messages", "conversations", "conversation")
        self.turn = TurnFields(
            names(given.role, "role", "from", "sender"), names(given.content, "content", "value", "text")
        )
        self.group_field = (source.group_by or "").partition("field:")[2]
        said = self.messages + self.instruction + self.question + self.answer
        self.conversation_fields = first_parts(said)

    def read(self, key: str, value: Any, origin: str | Mapping[str, Any], group: str) -> Record:
        """The record that `value` is; a field that groups goes before `group`. Raises `Unusable`."""
        if isinstance(value, list) and self.is_conversation(value):
            value = {self.messages[0]: value}
        if not isinstance(value, dict):
            raise Unusable("wrong_type", f"expected an object, found {kind_name(value)}")
        if self.group_field:
            group = group_text(value, self.group_field)
        kind = self.kind_of(value)
        if kind == "document":
            return Record(key, self.document_text(value), None, "markdown", origin, group)
        return Record(key, "", self.conversation(kind, value), "markdown", origin, group)

    def is_conversation(self, value: Sequence[Any]) -> bool:
        """Whether a bare list is one: of objects, or of texts where the source declares chats."""
        kinds = {type(turn) for turn in value}
        return (kinds == {dict} and self.declared in ("auto", "chat")) or (
            kinds == {str} and self.declared == "chat"
        )

    def member_of(self, list_name: str, value: Any) -> Any:
        """A value of the list under a name: a list there is a conversation if that is what the name says."""
        says_so = list_name in (*self.messages, "conversations")
        return {self.messages[0]: value} if says_so and isinstance(value, list) else value

    def kind_of(self, value: Mapping[str, Any]) -> str:
        if self.declared != "auto":
            return self.declared
        if self.conversation_fields.isdisjoint(value):
            return "document"
        if isinstance(first(value, self.messages)[1], list):
            return "chat"
        if first(value, self.instruction)[1] is not None:
            return "instruction"
        asks = first(value, self.question + self.answer)[1] is not None
        names_both = any(name in value for name in self.question + self.answer)
        says_more = first(value, self.text)[1] is not None
        return "qa" if asks or (names_both and not says_more) else "document"

    def main_fields(self) -> frozenset[str]:
        """Fields, one of which each record of the source has."""
        exchange, task = self.question + self.answer, self.instruction + self.output
        fields = {
            "document": self.text,
            "qa": exchange,
            "instruction": task,
            "chat": self.messages,
            "auto": self.text + exchange + self.instruction + self.messages,
        }
        return first_parts(fields[self.declared])

    def document_text(self, value: Mapping[str, Any]) -> str:
        """The text, under its title if there is one."""
        text = field_text(value, self.text)
        title = optional_text(value, self.title)
        return text if title is None else f"{title}\n\n{text}"

    def conversation(self, kind: str, value: Mapping[str, Any]) -> tuple[Message, ...]:
        if kind == "qa":
            question, answer = pair(value, self.question, self.answer)
            return Message("user", question), Message("assistant", answer)
        messages = self.chat(value) if kind == "chat" else self.task(value)
        system = optional_text(value, self.system)
        if system is None or messages[0].role == "system":
            return messages
        return Message("system", system), *messages

    def task(self, value: Mapping[str, Any]) -> tuple[Message, ...]:
        """An instruction with its input, and the output."""
        instruction, output = pair(value, self.instruction, self.output)
        given = optional_text(value, self.input)
        asked = instruction if given is None else f"{instruction}\n\n{given}"
        return Message("user", asked), Message("assistant", output)

    def chat(self, value: Mapping[str, Any]) -> tuple[Message, ...]:
        name, turns = first(value, self.messages)
        if not isinstance(turns, list):
            there = "is missing" if turns is None else f"must be an array, found {kind_name(turns)}"
            reason = "missing_field" if turns is None else "wrong_type"
            raise Unusable(reason, f"field {name!r} {there}")
        return messages_of(turns, self.turn)


def names(given: str | None, *usual: str) -> tuple[str, ...]:
    return usual if given is None else (given,)


def first_parts(fields: Sequence[str]) -> frozenset[str]:
    """Names of fields, and of the objects that hold them."""
    return frozenset(fields) | {name.partition(".")[0] for name in fields}


# -------------------------------------------------------------------------------------- records of a file


@dataclass(frozen=True)
class Reading:
    """One file on its way to records."""

    key: str
    place: str
    source: SourceParams
    limits: LimitsParams
    shape: RecordShape

    @cached_property
    def group(self) -> str:
        """The group of the file's records, where the source groups by file or folder."""
        if self.source.group_by == "folder":
            return PurePosixPath(self.key).parent.as_posix()
        return self.key if self.source.group_by == "file" else ""

    def record_key(self, number: int) -> str:
        return f"{self.key}#{number}"

    def text_record(self, text: str, markup: Markup, origin: str) -> Record:
        """The file as one document. Raises `Unusable`."""
        if self.shape.group_field:
            raise Unusable(
                "missing_field", f"no field {self.shape.group_field!r} to group by: the file is one text"
            )
        return Record(self.key, text, None, markup, origin, self.group)

    def outcome(
        self, key: str, value: Any, origin: str | Mapping[str, Any], where: str
    ) -> Record | Rejection:
        """The record of one value, or why it is none."""
        try:
            return self.shape.read(key, value, origin, self.group)
        except Unusable as error:
            return self.rejected(key, error.flaw, written(origin), where)

    def rejected(self, key: str, flaw: Flaw, text: str, where: str, raw: bytes | None = None) -> Rejection:
        detail = f"{where}: {flaw.detail}" if where else flaw.detail
        return rejection(self.source.name, key, Flaw(flaw.reason, detail), text, raw)

    def rejected_bytes(self, key: str, flaw: Flaw, content: bytes, where: str) -> Rejection:
        """Of bytes that may be no text, or too many: shown with escapes, and kept where that loses some."""
        if len(content) > self.limits.max_record_bytes:
            content = content[:EXCERPT_BYTES]
            flaw = Flaw(flaw.reason, f"{flaw.detail}; only its first {EXCERPT_BYTES} bytes are kept")
        text = content.decode(errors="backslashreplace")
        raw = content if "\0" in text or text.encode() != content else None
        return self.rejected(key, flaw, text, where, raw)

    def too_large(self, key: str, content: bytes, limit: str, where: str) -> Rejection:
        """Of what begins with `content` and goes beyond the limit of that name."""
        max_bytes = getattr(self.limits, limit)
        kept = content[:EXCERPT_BYTES]
        detail = f"over {max_bytes} bytes (prepare.limits.{limit}); its first {len(kept)} bytes are kept"
        return self.rejected_bytes(key, Flaw("too_large", detail), kept, where)
