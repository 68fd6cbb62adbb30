"""Records from far away, kept as JSONL page files: an interrupted download goes on where it stopped.

A download's folder is named by its source and by all that decides its records. In it:

    lock                 held while a page is fetched
    page-00000.jsonl     one record a line
    progress.json        size and sha256 of the finished pages, and where the next one begins
    complete.json        the same once nothing is left; from then on no network is needed

A page is fetched when it is asked for: whoever needs fewer records fetches fewer.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from nima.corpus.sources.files import SourceFile, checksum, local_file
from nima.workspace.errors import SourceError
from nima.workspace.outputs import writing_to
from nima.workspace.params import SourceParams

PAGE_BYTES = 4_000_000
PAGE_RECORDS = 4096
"""A page ends at whichever of the two it reaches first."""
GROWTH_PAGES = 32
MAX_GROWTH = 16
"""Every so many pages they get longer by their first length, up to so many times it: few files for much."""
COMPLETE, PROGRESS = "complete.json", "progress.json"


@dataclass(frozen=True)
class Page:
    """What a finished page file must be."""

    num_records: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Progress:
    """How far a download has come. Plain values, since it lives in JSON."""

    pages: tuple[Page, ...] = ()
    cursor: Any = None
    """Where the next page begins, in the stream's own terms; None at the very beginning."""
    origin: Any = None
    """What the stream found at the very beginning and wants to find again."""
    is_complete: bool = False

    @property
    def num_records(self) -> int:
        return sum(page.num_records for page in self.pages)


class Stream(Protocol):
    """Records as they arrive, from where a `Progress` ended."""

    origin: Any

    @property
    def lines(self) -> Iterator[bytes]:
        """One record each, as JSON with its newline. Raises `SourceError`."""

    def cursor(self) -> Any:
        """Where the record after the last one taken from `lines` begins."""

    def finish(self, num_records: int) -> None:
        """Called after the last of all `num_records`. Raises `SourceError` if they can't be all."""


Opening = Callable[[Progress], AbstractContextManager[Stream]]


def page_files(
    source: SourceParams, downloads: Path, settings: Mapping[str, Any], open_stream: Opening
) -> Iterator[SourceFile]:
    """The pages of a download below the folder `downloads`, those not yet there fetched one by one.

    `settings` are all that decides the records. Runs that need the same pages share the work: each page is
    fetched by one of them. Raises `SourceError`.
    """
    refuse_file_settings(source)
    folder = downloads / f"{source.name}-{digest_of(settings)}"
    given = 0
    stream: Stream | None = None
    reached: Progress | None = None
    with ExitStack() as streams:
        while True:
            progress = read_progress(folder)
            for number, page in enumerate(progress.pages[given:], start=given):
                yield finished_page(folder, number, page)
            given = len(progress.pages)
            if progress.is_complete:
                return
            with locked(folder):
                if read_progress(folder) != progress:  # another run was faster
                    continue
                if stream is None or reached != progress:
                    streams.close()
                    stream = streams.enter_context(open_stream(progress))
                fetch_page(folder, progress, stream, settings)
                reached = read_progress(folder)


def refuse_file_settings(source: SourceParams) -> None:
    """Pages are JSONL in UTF-8: any other format or encoding would garble them."""
    for name, value, right in (
        ("format", source.format, ("auto", "jsonl")),
        ("encoding", source.encoding.lower(), ("utf-8", "utf8")),
    ):
        if value not in right:
            raise SourceError(
                f"source {source.name}: {name} {value!r} is for files, not for records of a hub data set "
                f"or a vector database; leave {name!r} out"
            )


def digest_of(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def state_of(folder: Path) -> list[list[Any]]:
    """Name, size and time of each file below a local folder: another list when the content may be another."""
    paths = (path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in paths)
    return sorted([name, status.st_size, status.st_mtime_ns] for name, status in found)


# ---------------------------------------------------------------------------------------------- fetching


def fetch_page(folder: Path, progress: Progress, stream: Stream, settings: Mapping[str, Any]) -> None:
    """Write the next page and note it; at the end of the stream note that nothing is left."""
    number = len(progress.pages)
    partial = folder / f"partial-{page_name(number)}"
    page, is_last = write_page(partial, stream, min(1 + number // GROWTH_PAGES, MAX_GROWTH))
    if is_last:
        stream.finish(progress.num_records + page.num_records)
    with writing_to(folder):
        if page.num_records:
            partial.replace(folder / page_name(number))
        else:
            partial.unlink()
    pages = progress.pages + ((page,) if page.num_records else ())
    write_progress(folder, Progress(pages, stream.cursor(), stream.origin, is_last), settings)


def write_page(path: Path, stream: Stream, growth: int) -> tuple[Page, bool]:
    """Take a page's worth of records; says also whether the stream ended with them."""
    digest = hashlib.sha256()
    num_records = num_bytes = 0
    is_last = True
    with writing_to(path.parent), path.open("wb") as file:
        for line in stream.lines:
            file.write(line)
            digest.update(line)
            num_records, num_bytes = num_records + 1, num_bytes + len(line)
            if num_records >= PAGE_RECORDS * growth or num_bytes >= PAGE_BYTES * growth:
                is_last = False
                break
        sync(file.fileno(), file.flush)
    return Page(num_records, num_bytes, digest.hexdigest()), is_last


def sync(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in the folder, among all processes; waits while another fetches a page."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------- what is there


def page_name(number: int) -> str:
    return f"page-{number:05d}.jsonl"


def finished_page(folder: Path, number: int, page: Page) -> SourceFile:
    """Raises `SourceError` if the file is not what was fetched."""
    path = folder / page_name(number)
    if not path.is_file() or checksum(path) != page.sha256:
        raise SourceError(f"{path}: missing or damaged; delete the folder {folder} to download it again")
    return local_file(path, page_name(number))


def read_progress(folder: Path) -> Progress:
    for name in (COMPLETE, PROGRESS):
        path = folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            pages = tuple(Page(**page) for page in content["pages"])
            return Progress(pages, content["cursor"], content["origin"], name == COMPLETE)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise SourceError(f"{path}: damaged; delete the folder {folder} to download it again") from None
    return Progress()


def write_progress(folder: Path, progress: Progress, settings: Mapping[str, Any]) -> None:
    content = asdict(progress) | {"settings": settings}
    del content["is_complete"]
    partial = folder / f"partial-{PROGRESS}"
    with writing_to(folder):
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            sync(file.fileno(), file.flush)
        partial.replace(folder / (COMPLETE if progress.is_complete else PROGRESS))
        if progress.is_complete:
            (folder / PROGRESS).unlink(missing_ok=True)
        # The new names must outlive a power cut too, or a page would be noted that is not there.
        names = os.open(folder, os.O_RDONLY)
        sync(names, lambda: None)
        os.close(names)


# ------------------------------------------------------------------------------------------------- JSON


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as one line of JSON, its keys sorted. Raises `TypeError` for a value that JSON can't hold.

    Dates become ISO text, decimals text, and numbers that are not finite become null.
    """
    try:
        text = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False, default=plain)
    except ValueError:
        text = json.dumps(finite(record), ensure_ascii=False, sort_keys=True, default=plain)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: the reader of the page rejects the record by name
        return json.dumps(finite(record), sort_keys=True, default=plain).encode() + b"\n"


def plain(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__}")


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
