"""HTML as Markdown: its text, headings, lists and tables; code as it is.

What is no content goes: scripts, styles, navigation, forms' controls. So do links' targets and emphasis.
Preformatted text becomes a fenced block at the margin, even inside a list, so that it stays to the byte.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import cast

from selectolax.lexbor import LexborHTMLParser, LexborNode

from nima.corpus.formats.fields import Unusable


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


DROPPED = names(
    "head script style noscript template nav footer svg canvas audio video iframe object embed map "
    "button select input textarea dialog"
)
DROPPED_CLASSES = re.compile(r"(?:^|\s)(?:headerlink|linenos?|linenumbers?|sr-only|visually-hidden)(?:\s|$)")
PREFORMATTED = frozenset({"pre", "xmp", "listing", "plaintext"})
CODE = frozenset({"code", "kbd", "samp", "tt"})
HEADINGS = {f"h{level}": level for level in range(1, 7)}
LISTS = frozenset({"ul", "ol"})
BLOCKS = names(
    "html body div p section article main header aside address figure figcaption details summary hgroup "
    "fieldset legend form center dl dt dd table caption thead tbody tfoot tr td th search menu dir li "
    "blockquote hr"
)
BLOCKS |= HEADINGS.keys() | LISTS | PREFORMATTED
NOT_IN_CELLS = PREFORMATTED | LISTS | {"table", "blockquote"}

LIST_INDENT = "  "
MAX_LEVELS = 20
"""Of lists and quotations that are still told apart."""
NEWLINE = "\n"
BREAK = "\0"
"""Ends a line inside a block; no text holds it."""
SPACE = re.compile(r"[ \t\n\r\f]+")
BACKTICKS = re.compile("`+")
LANGUAGE = re.compile(r"(?:^|\s)(?:language|lang|highlight(?:-source)?)-([a-z0-9+#]{1,20})(?:[\s-]|$)")
NO_LANGUAGES = frozenset({"default", "none", "text", "plaintext", "notranslate"})

TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]{0,30})([^>]*)")
VOID = names("area base br col embed hr img input link meta param source track wbr")
ENDS_OPTIONAL = names("html head body p li dt dd tr td th thead tbody tfoot colgroup option optgroup rt rp")
LONG_TAG_CHARS = 1000
MAX_EFFORT = 300_000_000
"""A page of 500,000 tags that are 40 deep has 20 million."""


def markdown_of(html: str) -> str:
    """The content of a page under its title. Raises `Unusable` if the page is built to take forever."""
    if effort(html) > MAX_EFFORT:
        raise Unusable("too_deep", "tags so deep, or so rich in attributes, that reading takes forever")
    tree = LexborHTMLParser(html)
    page = Page()
    if tree.root is not None:
        page.add(tree.root)
    found = tree.css_first("head > title")
    title = "" if found is None else f"# {one_line(found.text())}"
    return page.text(title if len(title) > 2 else "")


def effort(html: str) -> int:
    """Steps that parsing may take: a tag looks at all open ones, an attribute at all before it."""
    steps = depth = 0
    opened: Counter[str] = Counter()
    for slash, name, attributes in TAG.findall(html):
        name = name.lower()
        steps += depth
        if len(attributes) > LONG_TAG_CHARS:
            steps += len(attributes.split()) ** 2
        if name in VOID or name in ENDS_OPTIONAL:
            continue
        if not slash:
            opened[name] += 1
            depth += 1
        elif opened[name]:
            opened[name] -= 1
            depth -= 1
    return steps


class Page:
    """Blocks of Markdown, collected while walking over a tree."""

    def __init__(self) -> None:
        self.blocks: list[tuple[str, bool]] = []
        """Each with whether it begins an item of a list."""
        self.words: list[str] = []
        self.level = 0
        """Of the heading that is open."""
        self.items: list[int | None] = []
        """The open lists: the number of the next item, or None for bullets."""
        self.marker: str | None = None
        """Of the item whose first block comes next."""
        self.quotes = 0

    def text(self, title: str = "") -> str:
        """The blocks with blank lines between them, but for items that follow each other."""
        blocks = self.blocks
        if title and (title, False) not in blocks:
            blocks = [(title, False), *blocks]
        joined = [
            ("\n" if is_item and was_item else "\n\n") + block
            for (_, was_item), (block, is_item) in itertools.pairwise([("", False), *blocks])
        ]
        return "".join(joined).removeprefix("\n\n")

    def add(self, root: LexborNode) -> None:
        """All of `root`, without recursion: pages nest as deep as they like."""
        node, depth = root, 0
        while True:
            if self.enter(node) and (child := node.first_child) is not None:
                node, depth = child, depth + 1
                continue
            self.leave(node)
            while depth and node.next is None:
                node, depth = cast(LexborNode, node.parent), depth - 1
                self.leave(node)
            if not depth:
                break
            node = cast(LexborNode, node.next)
        self.end_block()

    def enter(self, node: LexborNode) -> bool:
        """Whether to go on below `node`."""
        tag = node.tag or ""
        if tag == "-text":
            self.words.append(node.text_content or "")
            return False
        if is_dropped(node, tag):
            return False
        if tag in CODE:
            self.words.append(inline_code(node))
            return False
        if tag == "br":
            self.words.append(BREAK)
        return self.enter_block(node, tag) if tag in BLOCKS else True

    def enter_block(self, node: LexborNode, tag: str) -> bool:
        self.end_block()
        if tag in PREFORMATTED:
            self.append(fenced(node))
            return False
        if tag == "table" and (rows := table_rows(node)):
            self.append(self.quoted("\n".join(rows)))
            return False
        if tag == "hr":
            self.append(self.quoted("---"))
        elif tag in LISTS:
            self.items.append(1 if tag == "ol" else None)
        elif tag == "li":
            self.begin_item()
        self.level = HEADINGS.get(tag, 0)
        self.quotes += tag == "blockquote"
        return True

    def leave(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if tag not in BLOCKS or is_dropped(node, tag):
            return
        self.end_block()
        self.level = 0
        if tag in LISTS:
            self.items.pop()
        if tag in LISTS or tag == "li":
            self.marker = None
        self.quotes -= tag == "blockquote"

    def begin_item(self) -> None:
        number = self.items[-1] if self.items else None
        self.marker = "- " if number is None else f"{number}. "
        if number is not None:
            self.items[-1] = number + 1

    def end_block(self) -> None:
        """The words since the last block as one."""
        text = wrapped("".join(self.words))
        self.words = []
        if not text:
            return
        if self.level:
            text = f"{'#' * self.level} {one_line(text)}"
        is_item = self.marker is not None
        if self.items or is_item:
            text = self.in_list(text)
        self.append(self.quoted(text), is_item)

    def in_list(self, text: str) -> str:
        """Behind the marker of its item, or below the item's first block."""
        margin = LIST_INDENT * min(max(len(self.items) - 1, 0), MAX_LEVELS)
        marker = LIST_INDENT if self.marker is None else self.marker
        self.marker = None
        return f"{margin}{marker}" + text.replace("\n", f"\n{margin}{LIST_INDENT}")

    def quoted(self, text: str) -> str:
        mark = "> " * min(self.quotes, MAX_LEVELS)
        return "\n".join(f"{mark}{line}" for line in text.split("\n")) if mark else text

    def append(self, block: str, is_item: bool = False) -> None:
        if block:
            self.blocks.append((block, is_item))


# ------------------------------------------------------------------------------------------------ nodes


def is_dropped(node: LexborNode, tag: str) -> bool:
    if tag in DROPPED:
        return True
    if tag not in BLOCKS and tag not in ("a", "span"):
        return False
    attributes = node.attributes
    return (
        "hidden" in attributes
        or attributes.get("role") == "navigation"
        or DROPPED_CLASSES.search(attributes.get("class") or "") is not None
    )


def texts_below(node: LexborNode) -> Iterator[str]:
    for below in node.traverse(include_text=True):
        if below.tag == "-text":
            yield below.text_content or ""
        elif below.tag == "br":
            yield "\n"


def inline_code(node: LexborNode) -> str:
    text = one_line("".join(texts_below(node)))
    mark = "`" * (longest_run(text) + 1)
    return f"{mark}{text}{mark}" if text else ""


def fenced(node: LexborNode) -> str:
    """Preformatted text between fences, which are longer than any in it; "" if it is blank."""
    code = "".join(texts_below(node))
    if not code.strip():
        return ""
    fence = "`" * max(longest_run(code) + 1, 3)
    return f"{fence}{language_of(node)}\n{code.removesuffix(NEWLINE)}\n{fence}"


def longest_run(text: str) -> int:
    return max((len(run) for run in BACKTICKS.findall(text)), default=0)


def language_of(node: LexborNode) -> str:
    """As the classes of the block tell it, of its `code`, or of what stands around it."""
    parent = node.parent
    around = [node.first_child, node, parent, parent.parent if parent is not None else None]
    for other in around:
        if other is not None and other.is_element_node:
            found = LANGUAGE.search((other.attributes.get("class") or "").lower())
            if found and found[1] not in NO_LANGUAGES:
                return found[1]
    return ""


def table_rows(table: LexborNode) -> list[str]:
    """Rows of a table in pipes; none if it has a single column, or holds what pipes cannot."""
    if any((node.tag or "") in NOT_IN_CELLS and node.mem_id != table.mem_id for node in table.traverse()):
        return []
    captions: list[str] = []
    rows: list[list[str]] = []
    for node in table.traverse():
        tag = node.tag or ""
        if tag == "tr":
            rows.append([])
        elif tag in ("td", "th") and rows and not is_dropped(node, tag):
            rows[-1].append(cell_text(node))
        elif tag == "caption":
            captions += [cell_text(node), ""]
    num_columns = max((len(row) for row in rows), default=0)
    if num_columns < 2:
        return []
    padded = [row + [""] * (num_columns - len(row)) for row in rows if any(row)]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return [*captions, *lines[:1], f"|{' --- |' * num_columns}", *lines[1:]]


def cell_text(node: LexborNode) -> str:
    page = Page()
    page.add(node)
    return one_line(page.text()).replace("|", "\\|")


# ------------------------------------------------------------------------------------------------- text


def one_line(text: str) -> str:
    return SPACE.sub(" ", text.replace(BREAK, " ")).strip(" ")


def wrapped(text: str) -> str:
    """Words with single spaces, on lines that only breaks end."""
    lines = [line.strip(" ") for line in SPACE.sub(" ", text).split(BREAK)]
    return "\n".join(lines).strip("\n")
