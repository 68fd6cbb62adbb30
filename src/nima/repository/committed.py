"""YAML and JSON files as a commit has them, read by Git alone."""

import json
from pathlib import Path
from typing import Any

from nima.repository import git
from nima.workspace.errors import ParamsError
from nima.workspace.params import params_file


def yaml_at(root: Path, commit: str, path: str) -> dict[str, Any]:
    """A mapping; empty if the commit has no such file or it can't be read."""
    try:
        return dict(
            params_file.plain(params_file.parse_text(git.text_at(root, commit, path) or "", Path(path)))
        )
    except ParamsError:
        return {}


def json_at(root: Path, commit: str, path: str) -> dict[str, Any]:
    """An object; empty if the commit has no such file or it can't be read."""
    try:
        found = json.loads(git.text_at(root, commit, path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
