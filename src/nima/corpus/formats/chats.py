"""Messages of a conversation, from the forms in which chats are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nima.corpus.document import Message
from nima.corpus.formats.fields import Unusable, first, kind_name, shortened, usable

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",
    "gpt": "assistant",
}
"""The roles of OpenAI's messages and of ShareGPT's, and what they are here."""
SPEAKERS = ("user", "assistant")
"""Two who write to each other, in order of appearance."""
SENDER = "sender"


@dataclass(frozen=True)
class TurnFields:
    """What the fields of one message may be called."""

    role: Sequence[str]
    content: Sequence[str]


class Turn(NamedTuple):
    """One message as it was stored."""

    role_field: str
    role: str
    content: str


def messages_of(turns: Sequence[Any], fields: TurnFields) -> tuple[Message, ...]:
    """Objects with role and content, objects with sender and text, or texts that alternate.

    Raises `Unusable`, also for a conversation in which the assistant says nothing.
    """
    if any(isinstance(turn, str) for turn in turns):
        messages = alternating(turns)
    else:
        stored = [turn_of(turn, number, fields) for number, turn in enumerate(ungrouped(turns))]
        messages = by_appearance(stored) if has_senders(stored) else by_role(stored)
    if not any(message.role == "assistant" for message in messages):
        raise Unusable("incomplete", f"{len(messages)} messages, none of the assistant")
    return tuple(messages)


def turn_of(turn: Any, number: int, fields: TurnFields) -> Turn:
    if not isinstance(turn, dict):
        raise Unusable("wrong_type", f"message {number}: expected an object, found {kind_name(turn)}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Unusable("tool_call", f"message {number} calls a tool; only text can be trained")
    name, role = first(turn, fields.role)
    if role is None:
        raise Unusable("missing_field", f"message {number}: field {name!r} is missing")
    if not isinstance(role, str):
        raise Unusable(
            "wrong_type", f"message {number}: field {name!r} must be text, found {kind_name(role)}"
        )
    return Turn(name, role, content_text(first(turn, fields.content)[1], number))


def content_text(content: Any, number: int) -> str:
    """Text, or a list of parts that are texts, as OpenAI's interface takes it."""
    if isinstance(content, list):
        content = "\n".join(part_text(part, number) for part in content)
    if content is None or (isinstance(content, str) and not content.strip()):
        raise Unusable("empty_message", f"message {number} is empty")
    if not isinstance(content, str):
        raise Unusable("wrong_type", f"message {number} must be text, found {kind_name(content)}")
    return usable(content, f"message {number}")


def part_text(part: Any, number: int) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    text = part.get("text") if isinstance(part, dict) else part
    if kind != "text":
        raise Unusable("wrong_type", f"message {number}: a part of type {shortened(str(kind))}, not text")
    if not isinstance(text, str):
        raise Unusable("wrong_type", f"message {number}: a part must be text, found {kind_name(text)}")
    return text


def by_role(turns: Sequence[Turn]) -> list[Message]:
    for number, turn in enumerate(turns):
        if turn.role not in ROLES:
            known = ", ".join(ROLES)
            detail = f"message {number} is of role {shortened(turn.role)}; known are {known}"
            raise Unusable("unknown_role", detail)
    return [Message(ROLES[turn.role], turn.content) for turn in turns]


def has_senders(turns: Sequence[Turn]) -> bool:
    """Whether these are messages of two people by name, not of roles."""
    senders = all(turn.role_field == SENDER for turn in turns)
    return senders and not all(turn.role in ROLES for turn in turns)


def by_appearance(turns: Sequence[Turn]) -> list[Message]:
    """Who writes first is the user; what one writes in a row is one message."""
    senders = list(dict.fromkeys(turn.role for turn in turns))
    if len(senders) > len(SPEAKERS):
        raise Unusable("unknown_role", f"{len(senders)} senders; a conversation has {len(SPEAKERS)}")
    messages: list[Message] = []
    for turn in turns:
        role, content = SPEAKERS[senders.index(turn.role)], turn.content
        if messages and messages[-1].role == role:
            content = f"{messages.pop().content}\n{content}"
        messages.append(Message(role, content))
    return messages


def ungrouped(turns: Sequence[Any]) -> Sequence[Any]:
    """Messages out of the lists in which some logs put what one sender writes in a row."""
    groups = [turn if isinstance(turn, list) else [turn] for turn in turns]
    together = [turn for group in groups for turn in group]
    has_sender = all(isinstance(turn, dict) and SENDER in turn for turn in together)
    return together if has_sender else turns


def alternating(texts: Sequence[Any]) -> list[Message]:
    """Texts of two who speak in turn, the user first."""
    contents = [content_text(text, number) for number, text in enumerate(texts)]
    return [Message(SPEAKERS[number % 2], content) for number, content in enumerate(contents)]
