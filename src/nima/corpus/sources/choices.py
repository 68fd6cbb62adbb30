"""What the paths or urls of a source stand for, together and sorted by key."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from nima.corpus.sources.archives import is_archive
from nima.corpus.sources.files import SourceFile
from nima.corpus.sources.globs import glob_pattern, is_hidden, selected
from nima.workspace.errors import SourceError
from nima.workspace.params import SourceParams

Found = TypeVar("Found")


@dataclass(frozen=True)
class Choice(Generic[Found]):
    """The files that one path or url stands for."""

    kind: Literal["file", "folder", "wildcard"]
    folder: str
    """Where they lie: parts joined by `/`, alike for all choices of a source."""
    files: Mapping[str, Found]
    """By their path in the folder."""


def files_by_key(
    choices: list[Choice[Found]],
    as_file: Callable[[Found, str], SourceFile],
    as_archive: Callable[[Found, str], list[SourceFile]],
) -> Iterator[SourceFile]:
    """The files of all choices, each once, sorted by key; `as_file` is called for one at a time.

    Keys are relative to the folder that all choices share. An archive that is named, alone or by a wildcard,
    stands for what is inside, below its own key; named alone as the only one, for just that. In a folder an
    archive is a file like any other. `as_archive` is given what those keys begin with.
    """
    top = os.path.commonpath([choice.folder for choice in choices])
    found: dict[str, Found | SourceFile] = {}
    for choice in choices:
        above = os.path.relpath(choice.folder, top)
        is_alone = choice.kind == "file" and len(choices) == 1
        for name, file in choice.files.items():
            key = name if above == "." else f"{above}/{name}"
            if choice.kind != "folder" and is_archive(name):
                found |= {inner.key: inner for inner in as_archive(file, "" if is_alone else f"{key}/")}
            else:
                found[key] = file
    for key in sorted(found):
        chosen = found[key]
        yield chosen if isinstance(chosen, SourceFile) else as_file(chosen, key)


def matched(keys: Iterable[str], glob: str, source: SourceParams, place: str) -> list[str]:
    """The keys that the wildcards at a path's end stand for, `place` being the folder before them.

    The source's own glob chooses among the files, and later inside the archives. Raises `SourceError`.
    """
    visible = [key for key in keys if not is_hidden(key)]
    pattern = glob_pattern(glob)
    matching = [key for key in visible if pattern.fullmatch(key)]
    if not matching:
        raise SourceError(
            f"source {source.name}: {place}/{glob}: matches none of the {len(visible)} files there; "
            "** stands for any number of folders"
        )
    archives = [key for key in matching if is_archive(key)]
    files = [key for key in matching if not is_archive(key)]
    return archives + (selected(files, source, place) if files else [])
