"""Data sets of the Hugging Face hub, or local folders of one, streamed into page files by `datasets`.

A hub data set is read at one commit from its first page to its last, whatever the hub's branch does in the
meantime. No code of a data set ever runs, and no cache of `datasets` is read: it could hold another version.
"""

import lzma
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nima.corpus.sources.files import SourceFile
from nima.corpus.sources.pages import Progress, json_line, page_files, state_of
from nima.corpus.stores.failures import redacted
from nima.workspace.errors import SourceError, UserError
from nima.workspace.params import SourceParams
from nima.workspace.params.sources import HubParams

HUB_NAME = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*", re.ASCII | re.IGNORECASE)
READ_ATTEMPTS = 2
"""Each tries the network several times over; what a failed run has fetched is not lost."""
MAX_REASON_CHARS = 300
BUSY = {429, 500, 502, 503, 504}
# Parts of a message, not of a record.
INNER_FIELDS = {"role", "content"}


def hub_files(source: SourceParams, downloads: Path) -> Iterator[SourceFile]:
    """The records of `source.hub` as JSONL files below `downloads`, each fetched when it is asked for.

    Empty fields are left out, and so are those with values that JSON can't hold (images, bytes); the number
    of these is in the download's complete.json. Raises `SourceError`.
    """
    hub = wanted(source)
    local = state_of(Path(hub.dataset)) if is_local(hub) else None
    settings = {"hub": hub.model_dump(), "files": local}
    yield from page_files(source, downloads, settings, partial(opened, source))


def wanted(source: SourceParams) -> HubParams:
    if source.hub is None:
        raise ValueError(f"source {source.name} is none of the hub")
    if not is_local(source.hub) and not HUB_NAME.fullmatch(source.hub.dataset):
        raise SourceError(
            f"source {source.name}: hub data set {source.hub.dataset!r}: no such folder, and the hub's names "
            "look like owner/name"
        )
    return source.hub


def is_local(hub: HubParams) -> bool:
    return Path(hub.dataset).is_dir()


@contextmanager
def opened(source: SourceParams, progress: Progress) -> Iterator["HubStream"]:
    """The data set's records from where `progress` ended."""
    hub = wanted(source)
    # An empty cache: `datasets` would take what an earlier use left there when the hub can't be reached.
    with tempfile.TemporaryDirectory(prefix="nima-hub-") as cache:
        with explained(source):
            revision = progress.origin or (None if is_local(hub) else commit_of(hub))
            dataset = streamed(hub, revision, cache)
            stream = HubStream(source, dataset, revision, progress.cursor)
        with closing(stream.lines):  # its files too
            yield stream


class HubStream:
    def __init__(self, source: SourceParams, dataset: Any, revision: str | None, cursor: Any) -> None:
        self.source = source
        self.dataset = dataset
        self.origin = revision
        self.left_out = Counter(cursor["left_out"] if cursor else {})
        """Number of records by column whose value JSON can't hold."""
        if cursor is not None:
            dataset.load_state_dict(cursor["state"])
        self.needed = needed_columns(source)
        self.lines = self.read(must_have_columns=cursor is None)

    def cursor(self) -> dict[str, Any]:
        return {"state": self.dataset.state_dict(), "left_out": dict(sorted(self.left_out.items()))}

    def finish(self, num_records: int) -> None:
        if num_records == 0:
            raise without_records(self.source)

    def read(self, must_have_columns: bool) -> Generator[bytes]:
        for record in self.records():
            if must_have_columns:
                self.refuse_missing_columns(record)
                must_have_columns = False
            yield self.line(record)

    def records(self) -> Iterator[dict[str, Any]]:
        with explained(self.source):
            yield from self.dataset

    def line(self, record: Mapping[str, Any]) -> bytes:
        # Arrow tables fill up with empty values what a record does not have.
        present = {name: value for name, value in record.items() if value is not None}
        try:
            return json_line(present)
        except TypeError:
            return json_line({name: value for name, value in present.items() if self.is_plain(name, value)})

    def is_plain(self, name: str, value: Any) -> bool:
        try:
            json_line({name: value})
        except TypeError as error:
            if any(needed == name or needed.startswith(f"{name}.") for needed in self.needed):
                raise SourceError(
                    f"{place(self.source)}: column {name!r} holds {error}, which is neither text nor data; "
                    "set 'fields' to columns of text"
                ) from None
            self.left_out[name] += 1
            return False
        return True

    def refuse_missing_columns(self, record: Mapping[str, Any]) -> None:
        for name in self.needed:
            if name not in record and name.partition(".")[0] not in record:
                raise SourceError(
                    f"{place(self.source)}: has no column {name!r}; it has {', '.join(sorted(record))}"
                )


def without_records(source: SourceParams) -> SourceError:
    return SourceError(f"{place(source)}: holds no records; check its split and data_files")


def needed_columns(source: SourceParams) -> list[str]:
    """What `fields` and `group_by` name, sorted."""
    named = source.fields.model_dump(exclude=INNER_FIELDS, exclude_none=True).values()
    kind, _, field = (source.group_by or "").partition(":")
    return sorted({*named, *([field] if kind == "field" else [])})


def place(source: SourceParams) -> str:
    hub = wanted(source)
    config = "" if hub.config is None else f" ({hub.config})"
    return f"source {source.name}: hub data set {hub.dataset}{config}, split {hub.split}"


# ------------------------------------------------------------------------------------------ the library


def library(source: SourceParams) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"source {source.name}: needs the extra hub: pip install 'nima-lm[hub]'") from None
    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # nobody is told what is read here
    datasets.config.STREAMING_READ_MAX_RETRIES = READ_ATTEMPTS
    return datasets


def token() -> str | bool:
    """Of the environment alone: one that lies in a home folder would make runs differ from user to user."""
    return os.environ.get("HF_TOKEN") or False


def commit_of(hub: HubParams) -> str:
    """The commit that the revision, or else the main branch, stands at now."""
    import datasets
    from huggingface_hub import HfApi

    return str(
        HfApi(datasets.config.HF_ENDPOINT, token()).dataset_info(hub.dataset, revision=hub.revision).sha
    )


def streamed(hub: HubParams, revision: str | None, cache: str) -> Any:
    import datasets

    dataset = datasets.load_dataset(
        hub.dataset,
        name=hub.config,
        split=hub.split,
        revision=revision,
        data_files=hub.data_files,
        streaming=True,
        cache_dir=cache,
        token=token(),
    )
    # Images and sounds stay the bytes they are: nobody here looks at them.
    return dataset if dataset.features is None else dataset.decode(False)


@contextmanager
def explained(source: SourceParams) -> Iterator[None]:
    """Turn what `datasets` and the network raise into one line with a way out."""
    datasets = library(source)
    from huggingface_hub.utils import httpx

    # What broken files, and files that hold no data at all, make their many readers raise.
    unreadable = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError)
    try:
        yield
    except StopIteration:  # of JSON files without a line
        raise without_records(source) from None
    except (*unreadable, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(f"{place(source)}: {reason_of(list(causes(error)), wanted(source))}") from None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised for, and so on to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def reason_of(chain: list[BaseException], hub: HubParams) -> str:
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(error, kinds) for error in chain)

    said = redacted(" ".join(str(chain[0]).split()))[:MAX_REASON_CHARS]
    statuses = {getattr(getattr(error, "response", None), "status_code", None) for error in chain}
    if among(errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to fetch it; unset it, or bring the download from another machine"
    if among(errors.RevisionNotFoundError):
        return f"has no revision {hub.revision!r}"
    if among(errors.GatedRepoError):
        return "gated: ask for access on its page, and set HF_TOKEN to a token of yours"
    if among(errors.RepositoryNotFoundError):
        return "not found, or private: check the name, and set HF_TOKEN if it is private"
    if statuses & {401, 403}:
        return f"the hub refuses access; check HF_TOKEN: {said}"
    if among(httpx.RequestError, ConnectionError) or statuses & BUSY:
        return f"the hub does not answer; run again to go on from the last finished page: {said}"
    if "scripts are no longer supported" in said:
        return (
            f"it is a program ({said.rpartition(' ')[2]}), and no data set's program is run here; "
            "its files as Parquet are often at revision refs/convert/parquet"
        )
    return f"cannot be read: {said}"
