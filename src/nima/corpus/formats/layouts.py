"""Where the records of a tree of objects and lists lie."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from nima.corpus.formats.fields import Unusable, shortened

LIST_NAMES = ("data", "examples", "rows", "train", "records", "conversations")
"""Usual names of the one list of records in an object."""

Kind = Literal["object", "objects", "lists", "list", "empty", "scalar"]
"""What a member of an object is; lists are `objects`, `lists` or `list` by their first element."""


@dataclass(frozen=True)
class Layout:
    """One record, the list of records under a name, or a record under each name."""

    kind: Literal["record", "list", "mapping"]
    name: str = ""


def layout_of(members: Mapping[str, Kind], main_fields: Collection[str]) -> Layout:
    """How the records lie in an object with these members. Raises `Unusable` if that cannot be told.

    An object with a main field is a record itself; but a list of lists holds conversations, if it is not
    one in which each sender's messages are a list.
    """
    if any(name in main_fields and kind != "lists" for name, kind in members.items()):
        return Layout("record")
    if members.get("messages") == "lists":
        return Layout("record")
    lists = [name for name, kind in members.items() if kind in ("objects", "lists")]
    lists = lists or [name for name, kind in members.items() if kind == "empty" and name in LIST_NAMES]
    if len(lists) == 1:
        return Layout("list", lists[0])
    if any(name in LIST_NAMES for name in lists):
        found = ", ".join(shortened(name) for name in lists)
        raise Unusable("ambiguous", f"several lists may be the records: {found}; keep one in a file")
    nested = all(kind != "scalar" for kind in members.values())
    return Layout("mapping" if members and nested else "record")
