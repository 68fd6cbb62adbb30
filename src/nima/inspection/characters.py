"""Text that shows what it is made of: nothing in it moves a terminal's cursor or hides."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple


class Part(NamedTuple):
    """Text as it stands, or what stands for bytes and characters that can't be shown."""

    text: str
    coded: bool


JOINERS = "\u200c\u200d"
"""Words of some scripts and many emoji need them; by themselves they show nothing."""
WHITESPACE = {" ": "·", "\n": "⏎\n", "\t": "→\t", "\u00a0": "⍽", "\r": "␍"}


def visible_bytes(content: bytes, *, whitespace: bool = False) -> list[Part]:
    """Bytes that may hold parts of characters: these are shown as hexadecimal digits."""
    text = content.decode("utf-8", errors="surrogateescape")
    return visible(text, whitespace=whitespace)


def visible(text: str, *, whitespace: bool = False) -> list[Part]:
    """`whitespace` shows spaces, tabs and line ends as signs."""
    parts: list[Part] = []
    for char in text:
        part = shown(char, whitespace)
        if parts and parts[-1].coded == part.coded:
            part = Part(parts.pop().text + (" " if part.coded else "") + part.text, part.coded)
        parts.append(part)
    return parts


def shown(char: str, whitespace: bool) -> Part:
    if "\udc80" <= char <= "\udcff":
        return Part(f"{ord(char) - 0xDC00:02X}", True)
    if whitespace and char in WHITESPACE:
        return Part(WHITESPACE[char], False)
    if char.isprintable() or char in "\n\t" or char in JOINERS or unicodedata.category(char) == "Zs":
        return Part(char, False)
    return Part(f"U+{ord(char):04X}", True)
