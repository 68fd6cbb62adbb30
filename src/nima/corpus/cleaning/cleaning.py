"""Repairs to prose. Code, tables and indentation stay as they are, to the byte."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from nima.corpus.cleaning.residue import may_hold_residue, without_residue
from nima.corpus.quality.blocks import Markup, is_blank, verbatim_lines
from nima.workspace.params import CleaningParams

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ASCII_CONTROLS = bytes([*range(9), *range(11, 32), 127])
SPACES = "\t \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
RARE_SPACES = SPACES.lstrip("\t ") + "\u2028\u2029"
# What mojibake is made of: the letters and signs of the legacy encodings that ftfy knows.
LEGACY_RANGES = (range(0x80, 0x180), range(0x2C6, 0x2DE), range(0x384, 0x492), range(0x2010, 0x2600))
LEGACY = "".join(chr(code) for codes in LEGACY_RANGES for code in codes) + "\u0192\uf8ff\ufb01\ufb02\ufffd"
SMALL = "".join(letter for letter in LEGACY if "\u00df" <= letter < "\u0490" and letter.islower())
SMALL = SMALL.replace("\u0192", "")
CAPITALS = "".join(letter for letter in LEGACY if letter.isupper())
NOT_SMALL = "".join(sorted(set(LEGACY) - set(SMALL)))
SIGNS = "".join(sorted(set(NOT_SMALL) - set(CAPITALS)))
# ftfy's heuristic reacts to no text without one of these. Searching for them is many times as fast.
SUSPECT = re.compile(
    rf"[{LEGACY}][{NOT_SMALL}]|[{SIGNS}][{SMALL}]|[\u00ce\u00d0][\u0161\u017e]|[\x80-\x9f\u00c2\u00c3\u0152\u0153]"
)


def clean(text: str, rules: CleaningParams, markup: Markup) -> str:
    """`text` with its prose repaired; cleaning the result again changes nothing.

    Lines end in a plain newline. Code and tables are found in the repaired lines, whether they are kept
    raw or not: so the second cleaning finds the same ones. What HTML left behind stays where its removal
    would move the border of a block of code.
    """
    if markup == "code" or needs_nothing(text, rules):
        return text
    body, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
    raw = body.split("\n")
    repaired = repaired_lines(raw, rules)
    joined = "\n".join(repaired)
    may_strip = rules.html_residue and may_hold_residue(joined)
    looks_at_all = may_strip or (may_have_gap(joined, rules) and has_long_gap(joined, rules.max_blank_lines))
    if repaired == raw and not looks_at_all:
        return text
    verbatim = verbatim_lines(repaired, markup, None if looks_at_all else last_change(raw, repaired) + 1)
    if may_strip:
        bare = without_residue(repaired, verbatim, lambda line: settled(line, rules))
        if bare != repaired and verbatim_lines(bare, markup) == verbatim:
            repaired = bare
    lines = [
        raw_line if is_verbatim else repaired_line
        for raw_line, repaired_line, is_verbatim in zip(raw, repaired, verbatim, strict=True)
    ]
    body = "\n".join(lines)
    if looks_at_all and has_long_gap(body, rules.max_blank_lines):
        body = "\n".join(without_long_gaps(zip(lines, verbatim, strict=True), rules.max_blank_lines or 0))
    return body + end


def last_change(lines: Sequence[str], changed: Sequence[str]) -> int:
    """The last place where two lists of lines differ; they do."""
    return next(place for place in reversed(range(len(lines))) if lines[place] != changed[place])


def needs_nothing(text: str, rules: CleaningParams) -> bool:
    """Whether a few fast searches prove that no rule changes `text`; False may also mean "not proven"."""
    # Most texts have no tab, and to search for one character is many times as fast as for two.
    if " \n" in text or ("\t" in text and "\t\n" in text) or text.endswith((" ", "\t")):
        return False
    if rules.max_blank_lines is not None:
        gap = "\n" * (rules.max_blank_lines + 1)
        if "\n" + gap in text or text.startswith(gap):
            return False
    if rules.html_residue and ("<" in text or "&" in text):
        return False
    if has_controls(text):
        return False
    return text.isascii() or not (
        any(space in text for space in RARE_SPACES)
        or (rules.unicode != "none" and not unicodedata.is_normalized(rules.unicode, text))
        or (rules.encoding_repair and SUSPECT.search(text))
    )


def has_controls(text: str) -> bool:
    if text.isascii():
        content = text.encode()
        return len(content.translate(None, ASCII_CONTROLS)) < len(content)
    return CONTROL.search(text) is not None


def repaired_lines(lines: list[str], rules: CleaningParams) -> list[str]:
    """Each line as if it were prose."""
    text = "\n".join(lines)
    if not text.isascii():
        lines = [line if line.isascii() else settled(line, rules) for line in lines]
        text = "\n".join(lines)
    if rules.control_characters and has_controls(text):
        lines = CONTROL.sub("", text).split("\n")
    return [line.rstrip(SPACES) for line in lines] if rules.trailing_space else lines


def settled(line: str, rules: CleaningParams) -> str:
    """`line` repaired until a further repair changes nothing."""
    while (better := repair(line, rules)) != line:
        line = better
    return line


def repair(line: str, rules: CleaningParams) -> str:
    # In this order: a control character or a hard space may be half of a mangled letter, and a character
    # that goes may bring two together that NFC makes one.
    if rules.encoding_repair and SUSPECT.search(line):
        import ftfy  # most texts don't need it

        line = ftfy.fix_encoding(line)
    if rules.control_characters:
        line = CONTROL.sub("", line)
    if rules.unicode != "none" and not line.isascii():
        line = unicodedata.normalize(rules.unicode, line)
    return line.rstrip(SPACES) if rules.trailing_space else line


def may_have_gap(repaired: str, rules: CleaningParams) -> bool:
    """False where blank lines hold nothing and are few, for sure: `has_long_gap` need not look into them."""
    are_empty = rules.trailing_space and rules.control_characters and repaired.isascii()
    return not are_empty or "\n" * (2 + (rules.max_blank_lines or 0)) in f"\n{repaired}\n"


def has_long_gap(body: str, max_blank_lines: int | None) -> bool:
    """Whether more than `max_blank_lines` blank lines follow each other, code included; None allows all."""
    return max_blank_lines is not None and long_gap(max_blank_lines).search(f"\n{body}\n") is not None


@cache
def long_gap(max_blank_lines: int) -> re.Pattern[str]:
    return re.compile(rf"\n(?:[^\S\n]*+\n){{{max_blank_lines + 1}}}")


def without_long_gaps(lines: Iterable[tuple[str, bool]], max_blank_lines: int) -> Iterator[str]:
    """Drops each blank line of prose that follows `max_blank_lines` others."""
    num_blank = 0
    for line, is_verbatim in lines:
        num_blank = num_blank + 1 if is_blank(line) and not is_verbatim else 0
        if num_blank <= max_blank_lines:
            yield line
