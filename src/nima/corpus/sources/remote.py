"""What the urls of a source stand for: files, folders of object stores, wildcards, archives."""

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from nima.corpus.sources.archives import archive_files, is_archive
from nima.corpus.sources.choices import Choice, files_by_key, matched
from nima.corpus.sources.downloads import copy_of, pinned_copy
from nima.corpus.sources.files import SourceFile, local_file
from nima.corpus.sources.globs import selected, split_at_wildcard, texts
from nima.corpus.sources.streams import RemoteFile, described, files_below, path_of
from nima.corpus.stores.buckets import STORES
from nima.corpus.stores.failures import redacted, scheme_of, without_secrets
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams, SourceParams

POSSIBLE = "https://, http://, s3://, gs:// or az://, and a server or bucket"


def remote_files(source: SourceParams, limits: LimitsParams, downloads: Path) -> Iterator[SourceFile]:
    """The files that the source's urls stand for, sorted by key.

    Archives, and a file with a checksum, are copied to the folder `downloads`; the rest is read as streams.
    Raises `SourceError`.
    """
    for url in texts(source.url):
        if not is_possible(url):
            raise SourceError(f"source {source.name}: {redacted(url)!a}: expected {POSSIBLE}")
    if source.sha256 is not None:
        yield from pinned_files(source, source.sha256, limits, downloads)
        return

    def inside(file: RemoteFile, prefix: str) -> list[SourceFile]:
        path = copy_of(file, downloads)
        return archive_files(source, path, limits, downloads, file.place, prefix=prefix)

    def as_file(file: RemoteFile, key: str) -> SourceFile:
        return SourceFile(key, file.place, file)

    choices = [choice_of(source, url, limits.max_archive_bytes) for url in texts(source.url)]
    yield from files_by_key(choices, as_file, inside)


def is_possible(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_server = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return has_server and scheme_of(url) in ("http", *STORES)


def pinned_files(
    source: SourceParams, sha256: str, limits: LimitsParams, downloads: Path
) -> Iterator[SourceFile]:
    """What the only url stands for; without the network, once it is there."""
    url = str(source.url)
    path = pinned_copy(url, sha256, downloads, limits.max_archive_bytes)
    if is_archive(path.name):
        yield from archive_files(source, path, limits, downloads, without_secrets(url))
    else:
        yield local_file(path, folder_and_name(url)[1])


def choice_of(source: SourceParams, url: str, max_bytes: int) -> Choice[RemoteFile]:
    is_web = scheme_of(url) == "http"
    fixed, glob = (url, "") if is_web else split_at_wildcard(url)
    if glob:
        found = files_below(fixed, max_bytes)
        return choice_in_folder("wildcard", fixed, found, matched(found, glob, source, fixed))
    folder, name = folder_and_name(url)
    if name and (file := described(url, max_bytes)):
        return Choice("file", folder, {name: file})
    if is_web:
        raise SourceError(
            f"source {source.name}: {without_secrets(url)}: web servers list no folders; name the files"
        )
    found = files_below(url, max_bytes)
    return choice_in_folder("folder", url, found, selected(found, source, url))


def choice_in_folder(
    kind: Literal["folder", "wildcard"], url: str, found: dict[str, RemoteFile], keys: list[str]
) -> Choice[RemoteFile]:
    return Choice(kind, "/" + path_of(url).strip("/"), {key: found[key] for key in keys})


def folder_and_name(url: str) -> tuple[str, str]:
    """Where a file lies, the server first, and its name, as keys show them; no name for a folder."""
    if scheme_of(url) != "http":
        return posixpath.split(f"/{path_of(url)}")
    parts = urlsplit(without_secrets(url))
    return posixpath.split(f"/{parts.netloc}{unquote(parts.path)}")
