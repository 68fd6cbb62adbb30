"""Text in Markdown, whatever signs it holds."""

import re
from html import escape


def code_span(text: str) -> str:
    """`text` on one line, between more backticks than it holds."""
    line = " ".join(text.split())
    ticks = "`" * (1 + longest_backticks(line))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{padding}{line}{padding}{ticks}"


def fenced(text: str) -> str:
    fence = "`" * max(3, 1 + longest_backticks(text))
    return f"{fence}text\n{text}\n{fence}"


def longest_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def folded(summary: str, content: str) -> str:
    """Content behind a line to click on."""
    return f"<details><summary>{escape(' '.join(summary.split()))}</summary>\n\n{content}\n\n</details>"
