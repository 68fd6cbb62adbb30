"""JSON as RFC 8259 has it, where Python's parser is more lenient or less: each value, or why it is none.

Refused are duplicate keys, NaN and Infinity, numbers of thousands of digits, and values nested deeper than
any record is.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nima.corpus.formats.fields import Unusable, repeated
from nima.corpus.quality.quality import Flaw

MAX_DEPTH = 200
"""So deep that no record reaches it; far below what the parser can take, wherever it is called from."""

SPACE = re.compile(r"[ \t\n\r]*")
STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# A quote that opens no string is one that is never closed.
BRACKETS = re.compile(rf'{STRING}|[\[\]{{}}"]', re.DOTALL)
SCALAR = re.compile(rf'{STRING}|[^\s"\[\]{{}},:]+', re.DOTALL)


class Malformed(Unusable):
    """A value that cannot be read."""


@dataclass(frozen=True, slots=True)
class Item:
    """A value of an array, or what stands where one should."""

    start: int
    end: int
    value: Any
    flaw: Flaw | None
    is_rest: bool = False
    """Reading ended here: all that follows belongs to it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A name of an object, and where its value lies."""

    name: str
    start: int
    end: int | None


@dataclass(slots=True)
class Members:
    """What an object holds, as far as it can be followed."""

    found: list[Member] = field(default_factory=list)
    end: int | None = None
    """Behind the closing bracket; None if the object is not whole."""
    rest: Item | None = None
    """Where no member could be found."""


class JsonParser:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self.flaws: list[tuple[str, str]] = []
        self.is_careful = False
        decoder = json.JSONDecoder(object_pairs_hook=self.object_of, parse_constant=self.refuse_constant)
        self.decode = decoder.raw_decode

    def object_of(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            twice = repeated(name for name, _ in pairs)
            self.flaws.append(("duplicate_key", f"the key {twice} stands twice in one object"))
        return value

    def refuse_constant(self, name: str) -> None:
        self.flaws.append(("malformed_json", f"{name} is no JSON"))

    def whole(self, text: str) -> Any:
        """The only value of `text`. Raises `Malformed`."""
        value, end = self.value(text, skip_space(text, 0))
        rest = skip_space(text, end)
        if rest < len(text):
            raise malformed("nothing may follow the value, found more", rest)
        return value

    def value(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends. Raises `Malformed`."""
        self.flaws = []
        try:
            value, end = self.decode(text, start)
        except json.JSONDecodeError as error:
            raise malformed(error.msg, error.pos - start) from None
        except RecursionError:
            raise too_deep() from None
        except ValueError:
            raise Malformed("huge_number", "a number of thousands of digits") from None
        if self.flaws:
            raise Malformed(*self.flaws[0])
        if holds_containers(value):
            # Each level opens a bracket: few brackets need no closer look.
            brackets = text.count("[", start, end) + text.count("{", start, end)
            if brackets > MAX_DEPTH and depth(text, start, end) > MAX_DEPTH:
                raise too_deep()
        return value, end

    def items(self, text: str, start: int, *, is_all: bool) -> Iterator[Item]:
        """The values of the array that begins at `start`, one by one; `is_all`: nothing may follow it.

        A value that cannot be read is passed over if its brackets tell where it ends.
        """
        position = skip_space(text, start + 1)
        if text.startswith("]", position):
            yield from rest_of(text, position + 1, is_all)
            return
        while True:
            item = self.item(text, position)
            yield item
            if item.is_rest:
                return
            position = skip_space(text, item.end)
            if not text.startswith(",", position):
                break
            position = skip_space(text, position + 1)
        if text.startswith("]", position):
            yield from rest_of(text, position + 1, is_all)
        else:
            yield rest(text, position, "malformed_json", "expected ',' or ']' after a record")

    def item(self, text: str, start: int) -> Item:
        if self.is_careful:
            return self.cut_out_item(text, start)
        try:
            value, end = self.value(text, start)
        except Malformed:
            # Python's parser counts all lines before an error: from now on it gets each value alone.
            self.is_careful = True
            return self.cut_out_item(text, start)
        return Item(start, end, value, None)

    def cut_out_item(self, text: str, start: int) -> Item:
        end = value_end(text, start)
        try:
            value, num_chars = self.value(text[start:end], 0)
        except Malformed as error:
            if end is None:
                return rest(text, start, *error.flaw)
            return Item(start, end, None, error.flaw)
        return Item(start, start + num_chars, value, None)

    def members(self, text: str, start: int) -> Members:
        """The members of the object that begins at `start`, their values unread."""
        members = Members()
        position = skip_space(text, start + 1)
        while members.found or not text.startswith("}", position):
            try:
                member = self.member(text, position)
            except Malformed as error:
                members.rest = rest(text, position, *error.flaw)
                return members
            members.found.append(member)
            if member.end is None:
                return members
            position = skip_space(text, member.end)
            if not text.startswith(",", position):
                break
            position = skip_space(text, position + 1)
        if text.startswith("}", position):
            members.end = position + 1
        else:
            members.rest = rest(text, position, "malformed_json", "expected ',' or '}' after a member")
        return members

    def member(self, text: str, start: int) -> Member:
        name, end = self.value(text, start)
        colon = skip_space(text, end)
        if not isinstance(name, str) or not text.startswith(":", colon):
            raise malformed("Expecting a name and ':'", 0)
        value = skip_space(text, colon + 1)
        return Member(name, value, value_end(text, value))


def rest(text: str, start: int, reason: str, detail: str) -> Item:
    return Item(start, len(text), None, Flaw(reason, f"{detail}; reading ended here"), is_rest=True)


def rest_of(text: str, end: int, is_all: bool) -> Iterator[Item]:
    """What follows the end, if nothing may."""
    position = skip_space(text, end)
    if is_all and position < len(text):
        yield rest(text, position, "malformed_json", "nothing may follow the end of the array")


def malformed(message: str, position: int) -> Malformed:
    """`position` counts from where the value begins."""
    return Malformed("malformed_json", f"{message}: character {position}")


def too_deep() -> Malformed:
    return Malformed("too_deep", f"brackets nested deeper than {MAX_DEPTH}")


def holds_containers(value: Any) -> bool:
    """Whether an object or an array holds another one."""
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in members:  # noqa: SIM110 - `any` takes three times as long on a few members
        if isinstance(member, (dict, list)):
            return True
    return False


def skip_space(text: str, position: int) -> int:
    if text[position : position + 1] > " ":
        return position
    match = SPACE.match(text, position)
    return match.end() if match else position


def value_end(text: str, start: int) -> int | None:
    """Where the value that begins at `start` ends, judged by brackets and quotes alone."""
    if not text.startswith(("[", "{"), start):
        match = SCALAR.match(text, start)
        return match.end() if match else None
    return next((end for end, level in levels(text, start) if level == 0), None)


def depth(text: str, start: int, end: int) -> int:
    return max((level for _, level in levels(text, start, end)), default=0)


def levels(text: str, start: int, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Behind each bracket outside of quotes: the position, and how many brackets are open."""
    level = 0
    for match in BRACKETS.finditer(text, start, len(text) if end is None else end):
        bracket = match.group() if match.end() - match.start() == 1 else ""
        if bracket == '"':
            return
        if bracket:
            level += 1 if bracket in "[{" else -1
            yield match.end(), level
