"""Which lines of a text are code or tables, in Markdown, reStructuredText, plain text and source code.

In doubt a line counts as code: prose that stays as it was is a blemish, code that changes is damage.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

Markup = Literal["markdown", "rst", "text", "code"]

TAB_COLUMNS = 4
CODE_COLUMNS = 4
"""Indentation, relative to the text around it, that makes a line code."""

MARKER = r"(?:[-*+•]|\d{1,9}[.)]|#\.)"
LIST_ITEM = re.compile(rf"[ \t]*{MARKER}(?:[ \t]+|$)")
FENCE_PREFIX = rf"(?P<prefix>[ \t]*(?:(?:{MARKER}[ \t]+)|>[ \t]?)*[ \t]*)"
FENCE = re.compile(FENCE_PREFIX + r"(?P<fence>`{3,}(?!.*`)|~{3,})")
FENCE_END = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*$")
QUOTE = re.compile(r"[ \t]*(?:>[ \t]?)+")
QUOTED_CODE = re.compile(r" {0,3}>(?: {5}|\t)")
HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$")
TABLE_ROW = re.compile(r"[ \t]*(?:\||\+[-=]+\+)")
DELIMITER_CELL = r"[ \t]*:?-+:?[ \t]*"
TABLE_DELIMITER = re.compile(rf"{DELIMITER_CELL}(?:(?:\|{DELIMITER_CELL})+\|?|\|[ \t]*)$")
SIMPLE_TABLE_BORDER = re.compile(r"[ \t]*=+(?: +=+)+[ \t]*$")
DIRECTIVE = re.compile(r"(?P<indent>[ \t]*)\.\.[ \t]+(?P<name>[\w.+:-]+)::(?:[ \t]|$)")
COMMENT = re.compile(r"[ \t]*\.\.(?:[ \t]|$)")
PLAIN_SIGNS = "\"'()[]{}$@/\\,;!?%&"
"""With these no heading, rule, list, fence, quotation, table, directive or session begins."""
PROSE_DIRECTIVES = re.compile(
    "admonition|attention|caution|centered|compound|container|contents|danger|deprecated|epigraph|error|"
    "figure|footer|header|highlights|hint|image|important|include|note|pull-quote|rubric|seealso|sidebar|"
    "tip|toctree|topic|versionadded|versionchanged|warning"
)


def verbatim_lines(lines: Sequence[str], markup: Markup, asked: int | None = None) -> list[bool]:
    """For each line, whether it must stay as it is, to the byte. Only the first `asked` need be right."""
    flags = [False] * len(lines)
    for start, end in verbatim_blocks(lines, markup, len(lines) if asked is None else asked):
        flags[start:end] = [True] * (end - start)
    return flags


def verbatim_blocks(lines: Sequence[str], markup: Markup, asked: int) -> Iterator[tuple[int, int]]:
    """[start, end) of each block of code or table that begins in the first `asked` lines, ascending."""
    if markup == "code":
        yield 0, len(lines)
        return
    # Columns where the text of the open list items and directives begins.
    columns: list[int] = []
    in_paragraph = False
    at = 0
    while at < asked:
        line = lines[at]
        if not line or line.isspace():
            in_paragraph = False
            at += 1
            continue
        plain = is_plain(line)
        if not in_paragraph or (not plain and interrupts(line)):
            while columns and indent_of(line) < columns[-1]:
                columns.pop()
        column = columns[-1] if columns else 0
        end = at if in_paragraph else indented_end(lines, at, column)
        if end == at and not plain:
            end = block_end(lines, at, in_paragraph, markup)
        if end > at:
            yield at, end
            in_paragraph, at = False, end
            continue
        if plain:
            in_paragraph = True
            at += 1
            continue
        in_paragraph = not (HEADING.match(line) or RULE.match(line))
        columns += [] if RULE.match(line) else item_columns(line)
        at += 1
        if markup == "rst":
            start, end = literal_block(lines, at - 1, columns)
            if end > start:
                yield start, end
                in_paragraph, at = False, end


def indented_end(lines: Sequence[str], at: int, column: int) -> int:
    """The end of the code that the indentation of line `at` begins, in text at `column`; else `at`."""
    if not lines[at].startswith((" ", "\t")):
        return at
    first = column + CODE_COLUMNS
    return dedent_end(lines, at, first) if indent_of(lines[at]) >= first else at


def block_end(lines: Sequence[str], at: int, in_paragraph: bool, markup: Markup) -> int:
    """The end of the block that marks on line `at` begin; `at` if none does."""
    line = lines[at]
    # Below a paragraph's line, a row of backticks in rst underlines a title.
    if (fence := FENCE.match(line)) and not (markup == "rst" and in_paragraph):
        return fence_end(lines, at, fence)
    if markup == "rst" and line.lstrip().startswith(">>> "):
        return run_end(lines, at, not_blank)
    if markup != "rst" and line.lstrip().lower().startswith("<pre"):
        return next((end + 1 for end in range(at, len(lines)) if "</pre>" in lines[end].lower()), len(lines))
    if markup != "rst" and QUOTED_CODE.match(line) and not in_paragraph:
        return run_end(lines, at, matches(QUOTED_CODE))
    return table_end(lines, at, markup)


def fence_end(lines: Sequence[str], at: int, fence: re.Match[str]) -> int:
    """Past the closing fence; past the last line if the fence is never closed."""
    mark, prefix = fence["fence"], fence["prefix"]
    quoted = ">" in prefix
    for end in range(at + 1, len(lines)):
        line = lines[end]
        if quoted:
            quote = QUOTE.match(line)
            if quote is None:
                return end
            line = line[quote.end() :]
        close = FENCE_END.match(line)
        if close is None or not close["fence"].startswith(mark):
            continue
        if quoted or width(close["indent"]) < width(prefix) + CODE_COLUMNS:
            return end + 1
    return len(lines)


def table_end(lines: Sequence[str], at: int, markup: Markup) -> int:
    if TABLE_ROW.match(lines[at]):
        return run_end(lines, at, matches(TABLE_ROW))
    if markup == "rst":
        return simple_table_end(lines, at)
    if "|" in lines[at] and at + 1 < len(lines) and TABLE_DELIMITER.match(lines[at + 1]):
        return max(at + 2, run_end(lines, at, lambda line: "|" in line))
    return at


def simple_table_end(lines: Sequence[str], at: int) -> int:
    """Past the last border of a simple table: the one with nothing below it."""
    if not SIMPLE_TABLE_BORDER.match(lines[at]):
        return at
    for end in range(at + 1, len(lines)):
        if SIMPLE_TABLE_BORDER.match(lines[end]) and (end + 1 == len(lines) or is_blank(lines[end + 1])):
            return end + 1
    return at


def literal_block(lines: Sequence[str], at: int, columns: list[int]) -> tuple[int, int]:
    """[start, end) of the block that line `at` announces, by `::` or a directive; empty if it does not.

    The body of a directive that holds prose becomes a new column of text instead.
    """
    line = lines[at]
    start = next((end for end in range(at + 1, len(lines)) if not is_blank(lines[end])), len(lines))
    if start == len(lines):
        return at, at
    directive = DIRECTIVE.match(line)
    if directive:
        column = indent_of(line)
    elif line.rstrip().endswith("::") and not COMMENT.match(line):
        column = (item_columns(line) or [indent_of(line)])[-1]
    else:
        return at, at
    if indent_of(lines[start]) <= column:
        return at, at
    if directive and PROSE_DIRECTIVES.fullmatch(directive["name"]):
        columns.append(indent_of(lines[start]))
        return at, at
    return start, dedent_end(lines, start, column + 1)


def dedent_end(lines: Sequence[str], at: int, column: int) -> int:
    """Past the last line that begins at `column` or later; blank lines in between belong to the block."""
    end, indentation = at, " " * column
    for position in range(at, len(lines)):
        line = lines[position]
        if not line or line.isspace():
            continue
        if not line.startswith(indentation) and indent_of(line) < column:
            break
        end = position + 1
    return end


def run_end(lines: Sequence[str], at: int, belongs: Callable[[str], bool]) -> int:
    end = at
    while end < len(lines) and belongs(lines[end]):
        end += 1
    return end


def matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda line: pattern.match(line) is not None


def item_columns(line: str) -> list[int]:
    """The column where the text of a list item begins; several for items that open on one line."""
    columns, end = [], 0
    while match := LIST_ITEM.match(line, end):
        marker_end = len(match.group().rstrip()) + end
        gap = width(line[: match.end()]) - width(line[:marker_end])
        # A wide gap is indented code inside the item.
        columns.append(width(line[:marker_end]) + (gap if 1 <= gap <= CODE_COLUMNS else 1))
        if match.end() == end or match.end() == len(line):
            break
        end = match.end()
    return columns


def interrupts(line: str) -> bool:
    """Whether a line ends the paragraph above it without a blank line between them."""
    return any(pattern.match(line) for pattern in (HEADING, RULE, LIST_ITEM, FENCE))


def is_plain(line: str) -> bool:
    """Whether only its indentation can make a line other than one of a paragraph; False: not sure."""
    first = line.lstrip(" \t")[0]
    return (first.isalpha() or first in PLAIN_SIGNS) and "|" not in line and "::" not in line


def is_blank(line: str) -> bool:
    return not line or line.isspace()


def not_blank(line: str) -> bool:
    return not is_blank(line)


def indent_of(line: str) -> int:
    """Columns of white space in front of a line's text."""
    if not line.startswith((" ", "\t")):
        return 0
    return width(line[: len(line) - len(line.lstrip(" \t"))])


def width(text: str) -> int:
    return len(text.expandtabs(TAB_COLUMNS))
