"""From sources to documents: each record ends as one document or as one rejection.

Records are read, cleaned and judged portion by portion, by as many workers as there are. Each portion is
compared with those before it and written, while the workers are at the next ones. Near duplicates need all of
them: then a first pass over the portions' outcomes reads only hashes, and a second one writes. The result is
the same whatever the number of workers and the cuts between portions.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nima.corpus import outcomes
from nima.corpus.cleaning.boilerplate import shared_lines
from nima.corpus.document import DOCUMENT_SCHEMA, REJECTION_SCHEMA, ShardWriter
from nima.corpus.duplicates.digests import NEW, SeenDigests
from nima.corpus.duplicates.similarity import near_duplicates, united_groups
from nima.corpus.portions import Portion, portions_of
from nima.corpus.refinement import edge_lines, refined, shown
from nima.corpus.sources.sources import files_of
from nima.workers.parallel import Workers
from nima.workspace.columns import array_of, column, numbers
from nima.workspace.params import PrepareParams, SourceParams


@dataclass
class Tally:
    """What became of the records of one source, or of all."""

    num_files: int = 0
    num_records: int = 0
    num_documents: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the documents that were kept."""
    num_near_duplicates: int = 0
    """Documents that share most of their text with an earlier one, whether kept or not."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Number of rejected records by reason."""
    masked: Counter[str] = field(default_factory=Counter)
    """Pieces of personal data that were masked, by kind."""

    def __iadd__(self, other: "Tally") -> "Tally":
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)
        return self

    def figures(self) -> dict[str, Any]:
        return {
            "num_files": self.num_files,
            "num_records": self.num_records,
            "num_documents": self.num_documents,
            "text_bytes": self.text_bytes,
            "num_rejected": self.rejected.total(),
            "rejected": dict(sorted(self.rejected.items())),
            "num_near_duplicates": self.num_near_duplicates,
            "masked": dict(sorted(self.masked.items())),
        }


@dataclass(frozen=True)
class Reading:
    """A portion whose outcomes lie on disk, and what is known of its documents, one entry each."""

    source: SourceParams
    path: Path
    num_rows: int
    """Outcomes that count; those behind belong to samples beyond the source's `max_samples`."""
    exact: np.ndarray
    """int64: the number of the first document with the same text, or `NEW`."""
    near: np.ndarray
    """int64: the number of the first document that is nearly the same, or `NEW`."""
    groups: np.ndarray
    """uint64"""

    def kept(self, drop_near: bool) -> np.ndarray:
        return (self.exact == NEW) & ((self.near == NEW) if drop_near else True)


class Collection:
    """One run over all sources. What is done waits in `folder`, also for a run that continues this one."""

    def __init__(
        self, settings: PrepareParams, *, folder: Path, packages: Path, downloads: Path, code: str
    ) -> None:
        self.settings, self.folder, self.code = settings, folder, code
        self.packages, self.downloads = packages, downloads
        self.tallies = {source.name: Tally() for source in settings.sources}
        self.full: set[str] = set()
        """Sources that have given their `max_samples`."""

    def write(self, workers: Workers, documents: ShardWriter[Any], rejected: ShardWriter[Any]) -> None:
        """Read everything and write what is kept and what is not. Raises `SourceError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(self.settings, self.folder / "sketches")
        for reading in comparison.decided(self.readings(workers, comparison)):
            self.write_portion(reading, comparison, documents, rejected)

    # --------------------------------------------------------------------------------- reading

    def portions(self) -> Iterator[Portion]:
        for source in self.settings.sources:
            files = files_of(source, self.packages, self.settings.limits, self.downloads)
            for portion in portions_of(source, files):
                if source.name in self.full:
                    break
                yield portion

    def boilerplate(self, workers: Workers) -> frozenset[int]:
        rules = self.settings.cleaning.boilerplate
        if rules is None:
            return frozenset()
        find = partial(edge_lines, settings=self.settings)
        drawn: list[Portion] = []
        num_documents: Counter[str] = Counter()
        hashes = []
        for number, (found, count) in enumerate(workers.map(find, remembered(self.portions(), drawn))):
            source = drawn[number].source
            if source.name not in self.full:
                hashes.append(found)
                num_documents[source.name] += count
            # A source that is capped is not read further than it is likely to be taken.
            if source.max_samples is not None and num_documents[source.name] >= source.max_samples:
                self.full.add(source.name)
        self.full.clear()
        return shared_lines(hashes, rules.min_documents)

    def readings(self, workers: Workers, comparison: "Comparison") -> Iterator[Reading]:
        """All portions, compared with those before them."""
        refine = partial(
            refined,
            settings=self.settings,
            code=self.code,
            boilerplate=self.boilerplate(workers),
            folder=self.folder,
        )
        drawn: list[Portion] = []
        for number, (path, summary) in enumerate(workers.map(refine, remembered(self.portions(), drawn))):
            source = drawn[number].source
            if source.name in self.full:  # it was under way when an earlier portion filled the source
                continue
            tally = self.tallies[source.name]
            tally.num_files += drawn[number].num_files
            tally.masked.update(summary.masked)
            reading = comparison.add(path, source)
            if source.max_samples is not None and comparison.num_kept[source.name] >= source.max_samples:
                self.full.add(source.name)
            yield reading

    # --------------------------------------------------------------------------------- writing

    def write_portion(
        self,
        reading: Reading,
        comparison: "Comparison",
        documents: ShardWriter[Any],
        rejected: ShardWriter[Any],
    ) -> None:
        near = self.settings.duplicates.near
        kept = reading.kept(near is not None and near.action == "drop")
        tally = self.tallies[reading.source.name]
        start, rows_left = 0, reading.num_rows
        for batch in outcomes.batches(reading.path):
            batch = batch.slice(0, rows_left)
            rows_left -= len(batch)
            is_document = array_of(batch["reason"].is_null())
            numbers = start + np.cumsum(is_document) - 1
            start += int(is_document.sum())
            keep, num_bytes = is_document.copy(), array_of(batch["num_bytes"])
            keep[is_document] = kept[numbers[is_document]]
            table = document_table(batch, reading.source, keep, reading.groups[numbers[keep]])
            documents.append(table, num_bytes[keep])
            tally.num_records += len(batch)
            tally.num_documents += len(table)
            tally.text_bytes += int(num_bytes[keep].sum())
            tally.num_near_duplicates += int((reading.near[numbers[is_document]] != NEW).sum())
            refused = rejection_table(batch, reading, ~keep, numbers, comparison)
            tally.rejected.update(refused["reason"].to_pylist())
            rejected.append(refused, array_of(pc.binary_length(refused["text"])))

    def figures(self) -> dict[str, Any]:
        """The counts in total and by source, as plain values."""
        total = Tally()
        for tally in self.tallies.values():
            total += tally
        return total.figures() | {"sources": {name: tally.figures() for name, tally in self.tallies.items()}}


def remembered(portions: Iterator[Portion], drawn: list[Portion]) -> Iterator[Portion]:
    for portion in portions:
        drawn.append(portion)
        yield portion


class Comparison:
    """Finds duplicates among documents that come portion by portion."""

    def __init__(self, settings: PrepareParams, sketches: Path) -> None:
        self.duplicates = settings.duplicates
        self.seen = SeenDigests()
        self.sketches = sketches
        self.sketches.unlink(missing_ok=True)
        self.num_kept: Counter[str] = Counter()
        """Documents of each source that repeat no earlier one."""
        self.ids: list[np.ndarray] = []
        """uint64: those of each batch of documents."""
        self.starts: list[int] = []
        """The number of the first document of each."""

    def add(self, path: Path, source: SourceParams) -> Reading:
        """A portion, its documents compared with all that were added before; up to `max_samples`."""
        num_rows = 0
        exact, groups = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for batch in outcomes.batches(path, outcomes.COMPARED):
            is_document = batch["reason"].is_null()
            found = batch.filter(is_document)
            places = np.flatnonzero(array_of(is_document))
            digests = np.frombuffer(found["digest"].buffers()[1], np.uint64)[: 2 * len(found)].reshape(-1, 2)
            first = self.seen.firsts(digests) if self.duplicates.exact else np.full(len(found), NEW)
            room = None if source.max_samples is None else source.max_samples - self.num_kept[source.name]
            count = len(found) if room is None else rows_until(first == NEW, room)
            found, first = found.slice(0, count), first[:count]
            self.remember(found, digests[:count], first, source.name)
            exact.append(first)
            groups.append(hex_numbers(found["group"]))
            if room is not None and (first == NEW).sum() == room:
                num_rows += int(places[count - 1]) + 1
                break
            num_rows += len(batch)
        first = np.concatenate(exact)
        return Reading(source, path, num_rows, first, np.full_like(first, NEW), np.concatenate(groups))

    def remember(self, found: pa.RecordBatch, digests: np.ndarray, first: np.ndarray, source: str) -> None:
        self.num_kept[source] += int((first == NEW).sum())
        self.starts.append(self.seen.num_documents)
        self.ids.append(hex_numbers(found["id"]))
        self.seen.add(digests, first)
        if self.duplicates.near is not None:
            sketches = found["sketch"].filter(numbers(first == NEW))
            with self.sketches.open("ab") as file:
                file.write(b"".join(sketches.to_pylist()))

    def decided(self, readings: Iterator[Reading]) -> Iterator[Reading]:
        """The portions with all that is to be known of their documents, as soon as it is known."""
        if self.duplicates.near is None:
            yield from readings
            return
        waiting = list(readings)
        exact = np.concatenate([np.zeros(0, np.int64), *(reading.exact for reading in waiting)])
        groups = np.concatenate([np.zeros(0, np.uint64), *(reading.groups for reading in waiting)])
        near = self.near(exact, groups, self.duplicates.near.min_similarity)
        start = 0
        for reading in waiting:
            own = slice(start, start + len(reading.exact))
            start = own.stop
            yield replace(reading, near=near[own], groups=groups[own])

    def near(self, exact: np.ndarray, groups: np.ndarray, min_similarity: float) -> np.ndarray:
        """int64: the first document that each is nearly the same as, or `NEW`; unites their `groups`."""
        near = np.full_like(exact, NEW)
        unique = np.flatnonzero(exact == NEW)
        if len(unique):
            sketches = np.memmap(self.sketches, dtype=np.uint32, mode="r").reshape(len(unique), -1)
            first = near_duplicates(sketches, min_similarity).first_of
            repeats = first != np.arange(len(unique))
            near[unique[repeats]] = unique[first[repeats]]
            groups[unique] = united_groups(groups[unique], first)
        return near

    def id_of(self, number: int) -> str:
        batch = bisect_right(self.starts, number) - 1
        return f"{int(self.ids[batch][number - self.starts[batch]]):016x}"


def rows_until(kept: np.ndarray, room: int) -> int:
    """How many rows it takes until `room` of them are kept; all if there are fewer."""
    counts = np.cumsum(kept)
    return int(np.searchsorted(counts, room)) + 1 if len(kept) and counts[-1] >= room else len(kept)


def hex_numbers(column: pa.Array) -> np.ndarray:
    """uint64: texts of 16 hex characters as numbers."""
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), dtype=">u8").astype(np.uint64)


def hex_texts(numbers: np.ndarray) -> list[str]:
    return [f"{number:016x}" for number in numbers.tolist()]


def document_table(
    batch: pa.RecordBatch, source: SourceParams, keep: np.ndarray, groups: np.ndarray
) -> pa.Table:
    chosen = batch.filter(numbers(keep))
    same = {"source": source.name, "licence": source.licence or "", "split": source.split or ""}
    columns = {name: column([value] * len(chosen), pa.string()) for name, value in same.items()}
    columns["weight"] = numbers(np.full(len(chosen), source.weight, np.float64))
    columns |= {name: chosen[name] for name in ("id", "key", "text", "messages")}
    columns["group"] = column(hex_texts(groups), pa.string())
    return pa.Table.from_arrays([columns[name] for name in DOCUMENT_SCHEMA.names], schema=DOCUMENT_SCHEMA)


def rejection_table(
    batch: pa.RecordBatch,
    reading: Reading,
    refused: np.ndarray,
    numbers: np.ndarray,
    comparison: Comparison,
) -> pa.Table:
    if not refused.any():
        return pa.Table.from_batches([], REJECTION_SCHEMA)
    rows = []
    for place in np.flatnonzero(refused).tolist():
        row = {name: batch[name][place].as_py() for name in ("id", "key", "reason", "detail", "text", "raw")}
        if row["reason"] is None:
            row["text"] = shown(row["text"], batch["messages"][place].as_py())
            row["reason"], row["detail"] = repetition_of(int(numbers[place]), reading, comparison)
        rows.append(row | {"source": reading.source.name})
    return pa.Table.from_pylist(rows, REJECTION_SCHEMA)


def repetition_of(number: int, reading: Reading, comparison: Comparison) -> tuple[str, str]:
    """Why a portion's document is refused that has no flaw of its own."""
    if (first := int(reading.exact[number])) != NEW:
        return "exact_duplicate", f"same text as document {comparison.id_of(first)}"
    first = int(reading.near[number])
    return "near_duplicate", f"shares most of its text with document {comparison.id_of(first)}"
