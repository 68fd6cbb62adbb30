"""Documents as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from nima.inspection.documents import DocumentView
from nima.workspace.errors import UserError

TEMPLATE = Path(__file__).parent.parent / "pages" / "inspection.html"


def page(documents: Sequence[DocumentView], *, ids: bool) -> str:
    """Text is escaped as a whole: nothing of a document is read as HTML."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = "{:,}".format
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(documents=documents, ids=ids) + "\n"


def write_page(path: Path, documents: Sequence[DocumentView], *, ids: bool) -> None:
    """Raises `UserError` if it cannot write."""
    try:
        path.write_text(page(documents, ids=ids), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path}: cannot be written: {error.strerror}") from None
