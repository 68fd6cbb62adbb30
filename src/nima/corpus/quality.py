"""Which documents are good enough, and why the others are not."""

from typing import NamedTuple


class Flaw(NamedTuple):
    reason: str
    """One word for counting, such as `too_short`."""
    detail: str
    """What was found and what would be right."""


def flaw_in(text: str, min_chars: int, max_chars: int) -> Flaw | None:
    """The first flaw of a cleaned text, or None. Space around the text does not count as length."""
    num_chars = len(text.strip())
    if num_chars == 0:
        return Flaw("empty", "no text")
    if num_chars < min_chars:
        return Flaw("too_short", f"{num_chars} characters, min_chars is {min_chars}")
    if num_chars > max_chars:
        return Flaw("too_long", f"{num_chars} characters, max_chars is {max_chars}")
    return None
