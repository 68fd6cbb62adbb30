"""What makes two documents equal, and the group that equal documents share."""

import hashlib
import re
from collections.abc import Sequence

from nima.corpus.document import Message

TRAILING_SPACE = re.compile(r"[^\S\n](?:\n|\Z)")
RARE_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001)))).translate(
    dict.fromkeys(map(ord, " \t\n"))
)
RARE_ASCII_SPACES = "".join(filter(str.isascii, RARE_SPACES))


def content_digest(text: str, messages: Sequence[Message] | None) -> bytes:
    """SHA-256 of what a document says; space at line ends and around the text does not matter.

    Indentation and blank lines inside do: in code they carry meaning.
    """
    digest = hashlib.sha256()
    if messages is None:
        digest.update(b"text\0" + normalised(text).encode())
    else:
        for message in messages:
            content = normalised(message.content).encode()
            digest.update(f"{message.role}\0{len(content)}\0".encode() + content)
    return digest.digest()


def group_of(digest: bytes) -> str:
    """The group of a document, 16 hex characters: equal contents share it, and so their split."""
    return digest.hex()[:16]


def normalised(text: str) -> str:
    if has_trailing_space(text):
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    return text.strip("\n")


def has_trailing_space(text: str) -> bool:
    """Most texts have none, and need not be taken apart. Searches for fixed texts are the fastest."""
    if any(map(text.__contains__, RARE_ASCII_SPACES if text.isascii() else RARE_SPACES)):
        return TRAILING_SPACE.search(text) is not None
    return " \n" in text or ("\t" in text and "\t\n" in text) or text.endswith((" ", "\t"))
