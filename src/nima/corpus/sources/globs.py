"""Which files of a place are taken: globs over whole paths."""

import re
from collections.abc import Iterable
from functools import lru_cache

from nima.workspace.errors import SourceError
from nima.workspace.params import SourceParams

WILDCARDS = re.compile(r"[*?[]")


def selected(keys: Iterable[str], source: SourceParams, place: str) -> list[str]:
    """The keys that a glob of `source` takes and no exclusion drops, sorted; hidden files are never taken.

    Raises `SourceError` if nothing is left.
    """
    visible = [key for key in keys if not is_hidden(key)]
    globs = texts(source.glob)
    wanted = [glob_pattern(glob) for glob in globs]
    unwanted = [glob_pattern(glob) for glob in source.exclude]
    matching = [key for key in visible if matches(key, wanted) and not matches(key, unwanted)]
    if not matching:
        excluding = f" without {', '.join(map(repr, source.exclude))}" if source.exclude else ""
        raise SourceError(
            f"source {source.name}: glob {', '.join(map(repr, globs))}{excluding} matches none of the "
            f"{len(visible)} files in {place}; it is matched against the whole path inside"
        )
    return sorted(matching)


def texts(one_or_several: str | list[str] | None) -> list[str]:
    """One text, or several, as a list."""
    return [one_or_several] if isinstance(one_or_several, str) else list(one_or_several or ())


def matches(key: str, patterns: list[re.Pattern[str]]) -> bool:
    return any(pattern.fullmatch(key) for pattern in patterns)


def is_hidden(key: str) -> bool:
    return key.startswith(".") or "/." in key


def split_at_wildcard(path: str) -> tuple[str, str]:
    """The folder before the first part with a wildcard, and the glob from there on; "" if there is none."""
    parts = path.split("/")
    fixed = next((number for number, part in enumerate(parts) if WILDCARDS.search(part)), len(parts))
    return "/".join(parts[:fixed]), "/".join(parts[fixed:])


@lru_cache(maxsize=256)
def glob_pattern(glob: str) -> re.Pattern[str]:
    """`**/` is any number of folders, none included; `*`, `?` and `[...]` stay within one name."""
    *folders, name = re.sub(r"(\*\*/)+", "**/", glob.removeprefix("./")).split("/")
    text = "".join("(?:[^/]+/)*" if part == "**" else name_pattern(part) + "/" for part in folders)
    try:
        return re.compile(text + (".+" if name == "**" else name_pattern(name)), re.DOTALL)
    except re.error as error:
        raise SourceError(f"glob {glob!r}: {error.msg}") from None


def name_pattern(glob: str) -> str:
    return re.sub(r"\*+|\?|\[!?\]?[^\]]*\]|.", lambda match: wildcard(match.group()), glob, flags=re.DOTALL)


def wildcard(text: str) -> str:
    """A wildcard, or one plain character, as a regular expression."""
    if text.startswith("*"):
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if len(text) == 1:
        return re.escape(text)
    inside, negated = text[1:-1].removeprefix("!"), text.startswith("[!")
    escaped = re.sub(r"[\\\[\]^]", r"\\\g<0>", inside)
    return f"(?!/)[{'^' if negated else ''}{escaped}]"
