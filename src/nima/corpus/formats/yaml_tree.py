"""YAML as lists, objects and texts, with the place of each list and object.

A scalar is the text that was written: `yes` and `1.10` stay as they are; only an empty one, `~` and `null`
are nothing. Refused are aliases (nine of them in nine lines may stand for billions of values), tags and
duplicate keys. Where the text is malformed reading ends; what was whole before survives.
"""

from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)

from nima.corpus.formats.fields import shortened
from nima.corpus.quality.quality import Flaw

MAX_DEPTH = 50
PLAIN_TAGS = ("!", "tag:yaml.org,2002:str")
NOTHING = ("", "~", "null", "Null", "NULL")


@dataclass(slots=True)
class Collection:
    """A list or object of the text, and where it stands."""

    value: Any
    start: int
    line: int
    """From 1."""
    end: int | None = None
    """None while it is open; what is never closed is not whole."""
    key: str | None = None
    """Of the member that comes next."""
    flaw: Flaw | None = None
    """What is wrong in it, or in what it holds."""
    owns_flaw: bool = False
    """Something is wrong in itself."""


class YamlTree:
    """What a text says: one root a document."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.roots: list[Any] = []
        self.collections: dict[int, Collection] = {}
        """By the id of their value."""
        self.open: list[Collection] = []
        self.rest: Flaw | None = None
        """Why reading ended early; collections that were open then bear it too."""
        self.rest_start, self.rest_line = 0, 1
        try:
            for event in YAML(typ="safe").parse(text):
                self.rest_start, self.rest_line = event.start_mark.index, event.start_mark.line + 1
                if len(self.open) == MAX_DEPTH and isinstance(event, CollectionStartEvent):
                    self.end(Flaw("too_deep", f"nested deeper than {MAX_DEPTH}"))
                    return
                self.add(event)
        except YAMLError as error:
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            self.end(Flaw("malformed_yaml", problem))

    def end(self, flaw: Flaw) -> None:
        self.rest = flaw
        for collection in self.open:
            collection.flaw = collection.flaw or flaw

    def add(self, event: Event) -> None:
        if isinstance(event, CollectionEndEvent):
            self.open.pop().end = event.end_mark.index
        elif isinstance(event, AliasEvent):
            self.refuse("alias", f"an alias, *{event.anchor}; write out what it stands for")
            self.place(None)
        elif isinstance(event, ScalarEvent):
            self.check_tag(event)
            is_nothing = event.implicit[0] and event.value in NOTHING
            self.place(None if is_nothing else event.value)
        elif isinstance(event, CollectionStartEvent):
            self.check_tag(event)
            self.begin(event)

    def begin(self, event: CollectionStartEvent) -> None:
        value: Any = {} if isinstance(event, MappingStartEvent) else []
        collection = Collection(value, event.start_mark.index, event.start_mark.line + 1)
        self.collections[id(value)] = collection
        self.place(value)
        self.open.append(collection)

    def place(self, value: Any) -> None:
        """Put a value where it belongs: among the roots, into a list, or as a key or its value."""
        if not self.open:
            self.roots.append(value)
            return
        holder = self.open[-1]
        if isinstance(holder.value, list):
            holder.value.append(value)
        elif holder.key is None:
            holder.key = self.checked_key(value, holder.value)
        else:
            holder.value[holder.key] = value
            holder.key = None

    def checked_key(self, key: Any, members: dict[str, Any]) -> str:
        if not isinstance(key, str):
            self.refuse("wrong_type", "a key that is no text")
            return ""
        if key in members:
            self.refuse("duplicate_key", f"the key {shortened(key)} stands twice in one object")
        return key

    def check_tag(self, event: ScalarEvent | CollectionStartEvent) -> None:
        if event.tag is not None and str(event.tag) not in PLAIN_TAGS:
            self.refuse("tag", f"a tag, {shortened(str(event.tag))}; write plain values")

    def refuse(self, reason: str, detail: str) -> None:
        """Mark all that is open: the record around a flaw is of no use, others are."""
        if self.open:
            self.open[-1].owns_flaw = True
        for collection in self.open:
            collection.flaw = collection.flaw or Flaw(reason, f"line {self.rest_line}: {detail}")

    def place_of(self, value: Any) -> Collection | None:
        """Where a list or object stands; None for a text."""
        return self.collections.get(id(value)) if isinstance(value, list | dict) else None
