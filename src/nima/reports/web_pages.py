"""HTML pages from templates in `pages`: one file each, nothing from the network, all text escaped."""

import re
from pathlib import Path
from typing import Any

import jinja2

from nima.workspace.errors import UserError

PAGES = Path(__file__).parent.parent / "pages"
# What stands on the right of a table's cell.
FIGURE = re.compile(r"[-+]?[\d,]+(\.\d+)?(e[-+]?\d+)?( ± .*|%)?|—")


def rendered(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = "{:,}".format
    environment.tests["figure"] = FIGURE.fullmatch
    return environment.get_template(template).render(**values) + "\n"


def write_text(option: str, path: Path, text: str) -> None:
    """Raises `UserError` that names the option if the file can't be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}") from None
