"""What conversions from HTML leave in prose: stray tags and entities."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from html import unescape
from html.entities import html5
from itertools import chain

from nima.corpus.quality.blocks import is_blank

# A tag of these parts words and lines.
BLOCKS = (
    "article|aside|blockquote|br|center|dd|dir|div|dl|dt|fieldset|figcaption|figure|footer|frame|frameset"
)
BLOCKS += (
    "|h1|h2|h3|h4|h5|h6|hgroup|hr|iframe|img|legend|li|nav|noframes|noscript|ol|optgroup|p|tbody|td|tfoot"
)
BLOCKS += "|th|thead|tr|ul"
INLINE = (
    "abbr|acronym|bdi|bdo|big|blink|cite|colgroup|dfn|em|font|ins|marquee|mark|nobr|small|span|strike|strong"
)
INLINE += "|sub|sup|wbr"
# Also names of placeholders, types and commands, as in `ssh <address>`: elements only with an attribute, or
# in a text that closes one of that name.
AMBIGUOUS_BLOCKS = (
    "address|area|audio|body|button|canvas|caption|col|details|dialog|embed|form|head|header|html"
)
AMBIGUOUS_BLOCKS += (
    "|input|label|link|main|map|menu|meta|meter|object|option|output|param|picture|progress|search"
)
AMBIGUOUS_BLOCKS += "|section|select|source|summary|svg|table|template|title|track|video"
AMBIGUOUS_INLINE = "a|b|base|data|del|i|q|rp|rt|ruby|s|slot|time|u"
# Their content is code, so they stay with all that is between them.
CODE = "code|kbd|math|pre|samp|script|style|textarea|tt|var|xmp"

AMBIGUOUS = f"{AMBIGUOUS_BLOCKS}|{AMBIGUOUS_INLINE}"
NAMES = f"{BLOCKS}|{INLINE}|{AMBIGUOUS}"
IS_BLOCK = re.compile(f"{BLOCKS}|{AMBIGUOUS_BLOCKS}")
IS_AMBIGUOUS = re.compile(AMBIGUOUS)
VALUE = r"\"[^\"<>\n]*\"|'[^'<>\n]*'|[^\s\"'<>=`]+"
FLAGS = (
    "async|autoplay|checked|compact|controls|defer|disabled|hidden|loop|multiple|muted|noshade|nowrap|open"
)
FLAGS += "|readonly|required|reversed|selected"
ATTRIBUTE = rf"[ \t]+(?:[A-Za-z_:@][\w:.@-]*[ \t]*=[ \t]*(?:{VALUE})|(?:{FLAGS})(?=[\s/>]))"
RESIDUE = (
    rf"(?P<code><(?P<kind>{CODE})\b[^<>\n]*>.{{0,400}}?</(?P=kind)[ \t]*>)"
    rf"|&lt;/?(?:{NAMES}|{CODE})\b(?:[^<>&\n]*&gt;)?"
    rf"|<(?P<slash>/?)(?P<name>{NAMES})(?P<attributes>(?:{ATTRIBUTE})*)[ \t]*/?>(?P<after>[ \t]*)"
    r"|<!--[^\n]{0,4000}?-->"
    r"|(?P<entity>&(?:\#\d{1,7}|\#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});)"
)
# Each begins with one character, which is searched for at many times the speed of a choice.
TAG_SIGN = re.compile(r"<(?:/?[A-Za-z]|!--)")
ENTITY_SIGN = re.compile(r"&[#A-Za-z]")
CLOSING = re.compile(rf"</({AMBIGUOUS})[ \t]*>", re.IGNORECASE | re.ASCII)
LEADING_BLOCK = re.compile(rf"[ \t]*</?(?:{BLOCKS}|{AMBIGUOUS_BLOCKS})\b", re.IGNORECASE | re.ASCII)
BACKTICKS = re.compile(r"`+")
# They open code and tables, so they stay in the form that does not.
STRUCTURAL = "`|"
INVISIBLE = "\u00ad\u200b\ufeff"


@cache
def residue() -> re.Pattern[str]:
    """Compiled at the first need: it takes as long as importing all of this package."""
    return re.compile(RESIDUE, re.IGNORECASE | re.ASCII)


def may_hold_residue(text: str) -> bool:
    """False only where `without_residue` would change nothing: residue begins at a sign of it."""
    signs = chain(TAG_SIGN.finditer(text), ENTITY_SIGN.finditer(text))
    return any(residue().match(text, sign.start()) for sign in signs)


def without_residue(lines: list[str], verbatim: Sequence[bool], settle: Callable[[str], str]) -> list[str]:
    """The lines without stray tags, comments and entities; doing it again changes nothing.

    Only real elements of HTML count as tags: `<cluster-name>` stays. Verbatim lines and inline code stay
    too. An escaped tag such as `&lt;br&gt;` is a tag that is talked about, and stays escaped. A block's
    tag inside a line becomes a space. `settle` repairs a line that has changed.
    """
    while True:
        bare = stripped_once(lines, verbatim, settle)
        if bare == lines:
            return lines
        lines = bare


def stripped_once(lines: list[str], verbatim: Sequence[bool], settle: Callable[[str], str]) -> list[str]:
    paragraphs = list(paragraphs_of(lines, verbatim))
    closed = {name for start, end in paragraphs for name in closed_names("\n".join(lines[start:end]))}
    bare = list(lines)
    for start, end in paragraphs:
        new_lines = stripped("\n".join(lines[start:end]), closed).split("\n")
        for number, (old, new) in enumerate(zip(lines[start:end], new_lines, strict=True), start):
            if old != new:
                # In HTML indentation means nothing; in what stays it would mean code.
                indented = LEADING_BLOCK.match(new) or not LEADING_BLOCK.match(old)
                bare[number] = settle(new if indented else new.lstrip(" \t"))
    return bare


def paragraphs_of(lines: Sequence[str], verbatim: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """[start, end) of each run of prose that holds a sign of HTML."""
    start = None
    for number in range(len(lines) + 1):
        is_prose = number < len(lines) and not verbatim[number] and not is_blank(lines[number])
        if is_prose and start is None:
            start = number
        elif not is_prose and start is not None:
            if any(TAG_SIGN.search(line) or ENTITY_SIGN.search(line) for line in lines[start:number]):
                yield start, number
            start = None


def closed_names(paragraph: str) -> list[str]:
    """Names of the ambiguous elements that are closed outside inline code."""
    spans = code_spans(paragraph)
    return [
        match[1].lower()
        for match in CLOSING.finditer(paragraph)
        if not touches(spans, match.start(), match.end())
    ]


def stripped(paragraph: str, closed: set[str]) -> str:
    """The paragraph without its residue; as many lines as before."""
    spans = code_spans(paragraph)
    parts, at, last = [], 0, "\n"
    for match in residue().finditer(paragraph):
        if touches(spans, match.start(), match.end()):
            continue
        parts.append(paragraph[at : match.start()])
        last = parts[-1][-1:] or last
        parts.append(replacement(match, closed, last))
        last, at = parts[-1][-1:] or last, match.end()
    return "".join([*parts, paragraph[at:]])


def replacement(match: re.Match[str], closed: set[str], last: str) -> str:
    """What stays in the place of residue that follows the character `last`."""
    if match["entity"]:
        return character(match["entity"])
    if match["name"]:
        return gap(match, closed, last)
    return "" if match[0].startswith("<!--") else match[0]


def gap(match: re.Match[str], closed: set[str], last: str) -> str:
    """What stays in the place of a tag and the space after it."""
    name = match["name"].lower()
    is_bare = not match["slash"] and not match["attributes"]
    if is_bare and IS_AMBIGUOUS.fullmatch(name) and name not in closed:
        return match[0]
    if not IS_BLOCK.fullmatch(name):
        return match["after"]
    ends_line = match.string[match.end() : match.end() + 1] in ("", "\n")
    return "" if ends_line or last in " \t\n" else " "


def character(entity: str) -> str:
    """The character of an entity; the entity itself if it is unknown or its character would be markup."""
    name = entity[1:]
    found = unescape(entity) if name.startswith("#") else html5.get(name, "")
    if found and found in INVISIBLE:
        return ""
    if found.isspace() or (len(found) == 1 and unicodedata.category(found) == "Zs"):
        return " "
    if not found or found in STRUCTURAL or found == "\ufffd" or not found.isprintable():
        return entity
    return found


def code_spans(paragraph: str) -> list[tuple[int, int]]:
    """[start, end) of each piece of inline code: from a run of backticks to the next one as long."""
    runs = [match.span() for match in BACKTICKS.finditer(paragraph)]
    next_with: dict[int, int] = {}
    closing = [0] * len(runs)
    for number in range(len(runs) - 1, -1, -1):
        length = runs[number][1] - runs[number][0]
        closing[number] = next_with.get(length, 0)
        next_with[length] = number
    spans, number = [], 0
    while number < len(runs):
        if closing[number]:
            spans.append((runs[number][0], runs[closing[number]][1]))
            number = closing[number]
        number += 1
    return spans


def touches(spans: list[tuple[int, int]], start: int, end: int) -> bool:
    at = bisect_right(spans, end - 1, key=lambda span: span[0]) - 1
    return at >= 0 and spans[at][1] > start
