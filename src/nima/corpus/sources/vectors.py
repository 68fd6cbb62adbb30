"""Collections of a Qdrant vector database, scrolled into page files: the payloads, without their vectors."""

import os
import pickletools
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nima.corpus.sources.files import SourceFile
from nima.corpus.sources.pages import Progress, json_line, page_files, state_of
from nima.corpus.stores.failures import without_secrets
from nima.workspace.errors import SourceError, UserError
from nima.workspace.params import SourceParams
from nima.workspace.params.sources import QdrantParams

UNREADABLE = (OSError, ValueError, RuntimeError, sqlite3.Error)
TIMEOUT_SECONDS = 60
"""For each answer of a server."""
MAX_REASON_CHARS = 300

# The embedded form keeps points as pickles, whose unpickling can run anything: only these may appear there.
POINT_CLASSES = {
    "qdrant_client.http.models.models.PointStruct",
    "qdrant_client.http.models.models.SparseVector",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "uuid.UUID",
}
UNKNOWN = "something unknown"
TEXT_OPERATIONS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
# Persistent ids, the registry of extensions, and the memo as older protocols number it.
OTHER_LOOKUPS = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "PUT", "BINPUT", "LONG_BINPUT", "GET"}


def qdrant_files(source: SourceParams, downloads: Path) -> Iterator[SourceFile]:
    """The payloads of `source.qdrant` as JSONL files below `downloads`, in order of their points' ids.

    Each record is a point's payload, with the point's id as `_id`. Pages are fetched as they are asked for.
    Raises `SourceError`.
    """
    qdrant = wanted(source)
    embedded = None if qdrant.path is None else state_of(folder_of(source, qdrant.path))
    decisive = {"collection": qdrant.collection, "filter": qdrant.filter}
    settings = {"qdrant": decisive, "at": where_of(qdrant), "files": embedded}
    yield from page_files(source, downloads, settings, partial(opened, source))


def wanted(source: SourceParams) -> QdrantParams:
    if source.qdrant is None:
        raise ValueError(f"source {source.name} is none of Qdrant")
    for key, value in source.qdrant.filter.items():
        if value == []:
            raise SourceError(
                f"source {source.name}: filter {key!r} is an empty list; name the wanted values"
            )
    return source.qdrant


def folder_of(source: SourceParams, path: str) -> Path:
    if not (Path(path) / "meta.json").is_file():
        raise SourceError(
            f"source {source.name}: {path}: holds no embedded Qdrant database (no meta.json); "
            "a server is named by 'url'"
        )
    return Path(path)


def where_of(qdrant: QdrantParams) -> str:
    return without_secrets(qdrant.url) if qdrant.url is not None else str(qdrant.path)


def place(source: SourceParams) -> str:
    qdrant = wanted(source)
    return f"source {source.name}: collection {qdrant.collection!r} at {where_of(qdrant)}"


@contextmanager
def opened(source: SourceParams, progress: Progress) -> Iterator["Scroll"]:
    """The collection's records from where `progress` ended."""
    qdrant = wanted(source)
    require_client(source)
    with explained(source):
        client = client_of(source, qdrant)
    with closing(client):
        yield Scroll(source, client, progress)


class Scroll:
    def __init__(self, source: SourceParams, client: Any, progress: Progress) -> None:
        self.source = source
        self.qdrant = wanted(source)
        self.client = client
        self.filter = filter_of(self.qdrant.filter)
        self.num_records = progress.num_records
        self.next_id = progress.cursor["next_id"] if progress.cursor else None
        num_points = self.count()
        self.origin = num_points if progress.origin is None else progress.origin
        if num_points != self.origin:
            raise self.changed(f"{num_points} now")
        if num_points == 0:
            matching = " that match its filter" if self.qdrant.filter else ""
            raise SourceError(f"{place(source)}: holds no points{matching}")
        is_at_end = progress.cursor is not None and self.next_id is None
        self.lines = iter(()) if is_at_end else self.read()

    def count(self) -> int:
        """Points that match the filter, exactly."""
        with explained(self.source):
            return int(self.client.count(self.qdrant.collection, count_filter=self.filter, exact=True).count)

    def cursor(self) -> dict[str, Any]:
        return {"next_id": self.next_id}

    def finish(self, num_records: int) -> None:
        num_points = self.count()
        if num_points != self.origin:
            raise self.changed(f"{num_points} now")
        if num_records != num_points:
            raise self.changed(f"{num_records} came")

    def changed(self, found: str) -> SourceError:
        return SourceError(
            f"{place(self.source)}: changed while it was read: {self.origin} points at first, {found}; "
            f"delete the folder {self.source.name}-* among the downloads and run again while nothing writes "
            "to the collection"
        )

    def read(self) -> Iterator[bytes]:
        """Each point's line; `next_id` is then the point after it."""
        while True:
            points, next_page = self.page()
            following = [*(point.id for point in points[1:]), next_page]
            for point, self.next_id in zip(points, following, strict=False):
                self.num_records += 1
                yield json_line({**(point.payload or {}), "_id": point.id})
            if self.next_id is None or not points:
                return
            if self.num_records >= self.origin:
                raise self.changed("more came")

    def page(self) -> tuple[list[Any], Any]:
        """Points in ascending order of their ids, and the id that follows them if there is one."""
        with explained(self.source):
            return self.client.scroll(
                self.qdrant.collection,
                scroll_filter=self.filter,
                limit=self.qdrant.page_points,
                offset=self.next_id,
                with_payload=True,
                with_vectors=False,
            )


# ------------------------------------------------------------------------------------------- the client


def require_client(source: SourceParams) -> None:
    try:
        import qdrant_client  # noqa: F401
    except ImportError:
        raise UserError(
            f"source {source.name}: needs the extra qdrant: pip install 'nima-lm[qdrant]'"
        ) from None


def client_of(source: SourceParams, qdrant: QdrantParams) -> Any:
    from qdrant_client import QdrantClient

    if qdrant.path is not None:
        folder = folder_of(source, qdrant.path)
        refuse_foreign_classes(folder)
        return QdrantClient(path=str(folder))
    return QdrantClient(
        url=qdrant.url,
        api_key=os.environ.get("QDRANT_API_KEY") or None,
        timeout=TIMEOUT_SECONDS,
        check_compatibility=False,  # it would ask, and warn, from a thread of its own
    )


def filter_of(wanted_values: Mapping[str, Any]) -> Any:
    """Points whose payload has each key at its value, or at one of its values; None for all points."""
    from qdrant_client import models

    def condition(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return models.Filter(should=[condition(key, one) for one in value])
        if isinstance(value, float):
            return models.FieldCondition(key=key, range=models.Range(gte=value, lte=value))
        return models.FieldCondition(key=key, match=models.MatchValue(value=value))

    conditions = [condition(key, value) for key, value in wanted_values.items()]
    return models.Filter(must=conditions) if conditions else None


@contextmanager
def explained(source: SourceParams) -> Iterator[None]:
    """Turn what the client raises into one line with a way out."""
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    # The embedded form tells of a missing collection by ValueError, of a lock by RuntimeError; an answer
    # without a result is an AssertionError.
    except (ApiException, QdrantException, AssertionError, *UNREADABLE) as error:
        raise SourceError(f"{place(source)}: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    import httpx
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    cause = error.source if isinstance(error, ResponseHandlingException) else error
    said = " ".join(str(cause).split())[:MAX_REASON_CHARS]
    if isinstance(cause, httpx.TimeoutException):
        return (
            f"no answer within {TIMEOUT_SECONDS} seconds; run again to go on from the last finished page, "
            "with fewer page_points if the server is slow"
        )
    if isinstance(cause, httpx.TransportError):
        return f"the server does not answer ({said}); run again to go on from the last finished page"
    if isinstance(cause, UnexpectedResponse):
        if cause.status_code in (401, 403):
            return f"access refused ({cause.status_code}); set QDRANT_API_KEY to a key that may read it"
        if cause.status_code == 404:
            return "not found there; check url and collection"
    if "already accessed by another instance" in said:
        return "another client has this folder open; close it, or run a Qdrant server"
    return f"cannot be read: {said}"


# ------------------------------------------------------------------------------------ the embedded form


def refuse_foreign_classes(folder: Path) -> None:
    """Raise `ValueError` unless all stored points are made of `POINT_CLASSES` and plain values."""
    for storage in sorted(folder.glob("collection/*/storage.sqlite")):
        with closing(sqlite3.connect(f"{storage.absolute().as_uri()}?mode=ro", uri=True)) as database:
            for row, point in database.execute("SELECT rowid, point FROM points"):
                foreign = set(classes_in(point)) - POINT_CLASSES
                if foreign:
                    raise ValueError(
                        f"{storage}: row {row} holds {min(foreign)}, which is no part of a point and could "
                        "run code when it is loaded"
                    )


def classes_in(pickled: bytes) -> Iterator[str]:
    """Dotted names of all that unpickling would look up, without unpickling."""
    memo: list[str | None] = []
    # What the last two operations pushed, where that was text.
    top: deque[str | None] = deque([None, None], maxlen=2)
    for operation, argument, _ in pickletools.genops(pickled):
        name = operation.name
        if name == "STACK_GLOBAL":
            yield ".".join(text or UNKNOWN for text in top)
        elif name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif name in OTHER_LOOKUPS:
            yield UNKNOWN
        if name == "MEMOIZE":
            memo.append(top[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            number = int(argument or 0)
            top.append(memo[number] if number < len(memo) else None)
        elif name not in ("PROTO", "FRAME"):
            top.append(argument if name in TEXT_OPERATIONS else None)
