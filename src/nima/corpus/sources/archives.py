"""Files inside archives, read where they lie: zip, wheel, tar and compressed tar.

An archive is somebody else's word: names that point outside, entries that share bytes and contents that
unpack without end are refused, by what is there and not by what a header says.
"""

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from nima.corpus.sources.files import LocalFile, SourceFile
from nima.corpus.sources.globs import selected
from nima.corpus.sources.tars import OPENERS, TarMember, tar_members
from nima.corpus.sources.zips import ZipMember, zip_members
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams, SourceParams

ZIP_SUFFIXES = (".zip", ".whl")
TAR_SUFFIXES = (".tar", *OPENERS)

Member = ZipMember | TarMember


def is_archive(name: str) -> bool:
    """Whether a file of this name is read as an archive."""
    return name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES)


def archive_files(
    source: SourceParams,
    path: Path,
    limits: LimitsParams,
    scratch: Path,
    place: str,
    *,
    prefix: str = "",
    without_top: bool = False,
) -> list[SourceFile]:
    """The chosen files inside the archive at `path`, sorted by key; archives inside it are not entered.

    Keys begin with `prefix`. `without_top` leaves the one folder around everything out of them. `scratch` is
    a folder for the plain form of a compressed tar. Raises `SourceError`: no archive, a broken or dangerous
    one, nothing chosen, or something chosen that cannot be read.
    """
    members = members_of(path, limits, scratch)
    if without_top:
        members = without_top_folder(members)
    files = []
    for key in selected(members, source, place):
        if flaw := flaw_of(key, members[key]):
            raise SourceError(f"{place}:{key!a}: {flaw}; exclude the file, or pack the archive anew")
        files.append(SourceFile(prefix + key, f"{place}:{key}", members[key]))
    return files


def flaw_of(key: str, member: Member) -> str:
    if not key.isascii() and re.search("[\ud800-\udfff]", key):
        return "its name is not UTF-8"
    return member.flaw


def members_of(path: Path, limits: LimitsParams, scratch: Path) -> dict[str, Member]:
    """Every regular file of an archive by its name. Raises `SourceError`."""
    try:
        archive = LocalFile.found_at(path)
        if path.name.lower().endswith(ZIP_SUFFIXES):
            return checked(zip_members(archive, limits), path, limits)
        return checked(tar_members(archive, limits, scratch), path, limits)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None


def checked(members: Iterable[tuple[str, Member]], path: Path, limits: LimitsParams) -> dict[str, Member]:
    """By name: each inside the archive, none twice, not too much in all."""
    found: dict[str, Member] = {}
    num_bytes = 0
    for name, member in members:
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
            raise SourceError(f"{path}: holds a file named {name!a}, which points outside the archive")
        key = posixpath.normpath(name)
        if key == ".":
            raise SourceError(f"{path}: holds a file without a name")
        if key in found:
            raise SourceError(f"{path}: holds two files named {key!a}; pack the archive anew")
        num_bytes += member.num_bytes
        if num_bytes > limits.max_archive_bytes:
            raise SourceError(
                f"{path}: its files have more bytes than prepare.limits.max_archive_bytes "
                f"({limits.max_archive_bytes}); raise it if you trust the archive"
            )
        found[key] = member
    return found


def without_top_folder(members: dict[str, Member]) -> dict[str, Member]:
    tops = {name.partition("/")[0] for name in members}
    if len(tops) != 1 or any("/" not in name for name in members):
        return members
    return {name.partition("/")[2]: member for name, member in members.items()}
