"""Files on this machine: those that paths name, alone, in folders, by wildcards or inside archives."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from nima.corpus.sources.archives import archive_files
from nima.corpus.sources.choices import Choice, files_by_key, matched
from nima.corpus.sources.files import SourceFile, local_file
from nima.corpus.sources.globs import selected, split_at_wildcard, texts
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams, SourceParams


def local_files(source: SourceParams, limits: LimitsParams, scratch: Path) -> Iterator[SourceFile]:
    """The files that the source's paths name, sorted by key. Raises `SourceError`."""

    def inside(path: Path, prefix: str) -> list[SourceFile]:
        return archive_files(source, path, limits, scratch, str(path), prefix=prefix)

    yield from files_by_key([choice_of(source, path) for path in texts(source.path)], local_file, inside)


def choice_of(source: SourceParams, text: str) -> Choice[Path]:
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if split_at_wildcard(text)[1]:
            return chosen_by_wildcard(source, text)
        raise SourceError(
            f"source {source.name}: {path}: not found; set its path to a file or folder"
        ) from None
    except OSError as error:
        raise SourceError(f"source {source.name}: {path}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        return choice_in_folder("folder", path, selected(keys_below(path), source, str(path)))
    if stat.S_ISREG(mode):
        return Choice("file", str(path.parent.absolute()), {path.name: path})
    raise SourceError(f"source {source.name}: {path}: neither a file nor a folder")


def chosen_by_wildcard(source: SourceParams, text: str) -> Choice[Path]:
    fixed, glob = split_at_wildcard(text)
    folder = Path(fixed or ("/" if text.startswith("/") else "."))
    if not folder.is_dir():
        raise SourceError(f"source {source.name}: {text}: there is no folder {folder}")
    keys = keys_below(folder, None if "**" in glob else glob.count("/"))
    return choice_in_folder("wildcard", folder, matched(keys, glob, source, str(folder)))


def choice_in_folder(kind: Literal["folder", "wildcard"], folder: Path, keys: list[str]) -> Choice[Path]:
    files = {key: folder / key for key in keys if is_regular(folder, key)}
    return Choice(kind, str(folder.absolute()), files)


def keys_below(root: Path, max_depth: int | None = None) -> Iterator[str]:
    """Files below `root`, at most `max_depth` folders deep. Nothing hidden, no linked folders."""
    waiting = [("", 0)]
    while waiting:
        prefix, depth = waiting.pop()
        try:
            with os.scandir(root / prefix) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise SourceError(f"{root / prefix}: cannot be read: {error.strerror}") from None
        for entry in visible:
            if not entry.is_dir():
                yield prefix + entry.name
            elif entry.is_symlink():
                refuse_link_outside(root, root / prefix / entry.name)
            elif max_depth is None or depth < max_depth:
                waiting.append((f"{prefix}{entry.name}/", depth + 1))


def is_regular(root: Path, key: str) -> bool:
    """Whether `key` is a regular file of the folder; a link that leaves the folder is refused."""
    path = root / key
    try:
        key.encode()
    except UnicodeEncodeError:
        raise SourceError(f"{str(path)!a}: the file's name is not UTF-8; rename it") from None
    refuse_link_outside(root, path)
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None


def refuse_link_outside(root: Path, path: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{path}: a link to a place outside {root}; copy the file or add a source for it")
