"""Fields of a record: found by name, as text that a file can hold, or the reason why not."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nima.corpus.quality.quality import Flaw

MAX_NAMES = 5
MAX_NAME_CHARS = 40
KINDS = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}


class Unusable(Exception):  # noqa: N818 - it ends one record, not the run
    """A record that will be rejected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.flaw = Flaw(reason, detail)


def usable(text: str, where: str) -> str:
    """`text` with plain newlines. Raises `Unusable` for characters that no text file holds."""
    if "\0" in text:
        position = text.index("\0")
        raise Unusable("nul_byte", f"{where}: character {position} is NUL; binary, or another encoding")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            detail = f"{where}: half a surrogate pair at character {error.start}"
            raise Unusable("invalid_unicode", detail) from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def found(value: Mapping[str, Any], name: str) -> Any:
    """The field `name`, or what its parts between dots lead to; None if there is nothing."""
    if name in value or "." not in name:
        return value.get(name)
    node: Any = value
    for part in name.split("."):
        if not isinstance(node, dict):
            return None
        node = node.get(part)
    return node


def first(value: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """Name and content of the first field that is there; the first name and None if none is."""
    for name in names:
        if (content := found(value, name)) is not None:
            return name, content
    return names[0], None


def optional_text(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """None if no such field is there, or it says nothing. Raises `Unusable` if it is no text."""
    name, content = first(value, names)
    if isinstance(content, str):
        return usable(content, f"field {name!r}") if content and not content.isspace() else None
    if content is None or is_nan(content):
        return None
    raise Unusable("wrong_type", f"field {name!r} must be text, found {kind_name(content)}")


def field_text(value: Mapping[str, Any], names: Sequence[str]) -> str:
    text = optional_text(value, names)
    if text is None:
        raise missing(value, names)
    return text


def pair(value: Mapping[str, Any], asking: Sequence[str], answering: Sequence[str]) -> tuple[str, str]:
    """What is asked and what is answered; one without the other is incomplete."""
    question, answer = optional_text(value, asking), optional_text(value, answering)
    if question is not None and answer is not None:
        return question, answer
    flaw = missing(value, asking if question is None else answering).flaw
    raise Unusable(flaw.reason if question is answer else "incomplete", flaw.detail)


def missing(value: Mapping[str, Any], names: Sequence[str]) -> Unusable:
    name, content = first(value, names)
    if content is not None or name in value:
        return Unusable("missing_field", f"field {name!r} is {'NaN' if is_nan(content) else 'empty'}")
    there = [shortened(str(key)) for key in list(value)[:MAX_NAMES]]
    there += ["..."] if len(value) > MAX_NAMES else []
    return Unusable("missing_field", f"field {name!r} is missing; found {', '.join(there) or 'no field'}")


def group_text(value: Mapping[str, Any], name: str) -> str:
    """The field by which a source groups, as text."""
    content = found(value, name)
    if isinstance(content, str) and content:
        return usable(content, f"field {name!r}")
    if content is None or content == "" or is_nan(content):
        raise Unusable("missing_field", f"field {name!r}, by which the source groups, is missing or empty")
    if isinstance(content, bool | int | float):
        return json.dumps(content)
    raise Unusable("wrong_type", f"field {name!r} must be text or a number, found {kind_name(content)}")


def is_nan(content: Any) -> bool:
    return isinstance(content, float) and math.isnan(content)


def repeated(names: Iterable[str]) -> str | None:
    """The first name that was there before, as it may stand in a message."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return shortened(name)
        seen.add(name)
    return None


def kind_name(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    return KINDS.get(type(value), type(value).__name__)


def shortened(text: str) -> str:
    """A name as it may stand in a message: on one line, in ASCII."""
    return ascii(text if len(text) <= MAX_NAME_CHARS else f"{text[: MAX_NAME_CHARS - 3]}...")
