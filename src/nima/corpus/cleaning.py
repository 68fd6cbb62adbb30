"""Repairs to prose. Code, tables and indentation stay as they are, to the byte."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from nima.corpus.blocks import Markup, is_blank, verbatim_lines
from nima.params import CleaningParams

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
SPACES = "\t \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"


def clean(text: str, rules: CleaningParams, markup: Markup) -> str:
    """`text` with its prose repaired; cleaning the result again changes nothing.

    Lines end in a plain newline. Code and tables are found in the repaired lines, whether they are kept
    raw or not: so the second cleaning finds the same ones.
    """
    body, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
    raw = body.split("\n")
    repaired = [repair(line, rules) for line in raw]
    verbatim = verbatim_lines(repaired, markup)
    lines = (
        (raw_line, True) if is_verbatim else (repaired_line, False)
        for raw_line, repaired_line, is_verbatim in zip(raw, repaired, verbatim, strict=True)
    )
    return "\n".join(without_long_gaps(lines, rules.max_blank_lines)) + end


def repair(line: str, rules: CleaningParams) -> str:
    # In this order: a character that goes may bring two together that NFC makes one.
    if rules.control_characters:
        line = CONTROL.sub("", line)
    if rules.unicode == "NFC" and not line.isascii():
        line = unicodedata.normalize("NFC", line)
    return line.rstrip(SPACES) if rules.trailing_space else line


def without_long_gaps(lines: Iterable[tuple[str, bool]], max_blank_lines: int | None) -> Iterator[str]:
    """Drops each blank line of prose that follows `max_blank_lines` others; None keeps all."""
    num_blank = 0
    for line, is_verbatim in lines:
        num_blank = num_blank + 1 if is_blank(line) and not is_verbatim else 0
        if max_blank_lines is None or num_blank <= max_blank_lines:
            yield line
