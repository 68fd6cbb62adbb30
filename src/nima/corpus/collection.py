"""From sources to documents: each record ends as one document or as one rejection."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nima.corpus.cleaning import clean
from nima.corpus.document import Document, Message, Rejection, document_id, text_bytes
from nima.corpus.duplicates import ExactDuplicates, content_digest, group_of
from nima.corpus.formats import Record, read_records, rejection
from nima.corpus.quality import Flaw, flaw_in
from nima.corpus.sources import files_of
from nima.params import PrepareParams, SourceParams


@dataclass
class Tally:
    """What became of the records of one source."""

    num_files: int = 0
    num_records: int = 0
    num_documents: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the documents that were kept."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Number of rejected records by reason."""

    def add(self, outcome: Document | Rejection) -> None:
        self.num_records += 1
        if isinstance(outcome, Rejection):
            self.rejected[outcome.reason] += 1
        else:
            self.num_documents += 1
            self.text_bytes += text_bytes(outcome)

    def figures(self) -> dict[str, Any]:
        return {
            "num_files": self.num_files,
            "num_records": self.num_records,
            "num_documents": self.num_documents,
            "text_bytes": self.text_bytes,
            "num_rejected": self.rejected.total(),
            "rejected": dict(sorted(self.rejected.items())),
        }


class Collection:
    """Iterate over it once; `tallies` then holds the counts of every source.

    Memory does not grow with the corpus, but for one hash a document.
    """

    def __init__(self, params: PrepareParams, packages: Path) -> None:
        self.params = params
        self.packages = packages
        self.tallies = {source.name: Tally() for source in params.sources}
        self.duplicates = ExactDuplicates()

    def __iter__(self) -> Iterator[Document | Rejection]:
        """Documents and rejections in order of sources, files and records. Raises `SourceError`."""
        for source in self.params.sources:
            tally = self.tallies[source.name]
            for outcome in self.outcomes(source, tally):
                tally.add(outcome)
                yield outcome
                if tally.num_documents == source.max_samples:
                    break

    def outcomes(self, source: SourceParams, tally: Tally) -> Iterator[Document | Rejection]:
        for file in files_of(source, self.packages):
            tally.num_files += 1
            for record in read_records(file, source):
                yield record if isinstance(record, Rejection) else self.outcome(record, source)

    def outcome(self, record: Record, source: SourceParams) -> Document | Rejection:
        text = clean(record.text, self.params.cleaning, record.markup)
        messages = None if record.messages is None else self.cleaned(record)
        said = text if messages is None else "\n".join(message.content for message in messages)
        flaw = flaw_in(said, self.params.quality.min_chars, self.params.quality.max_chars)
        if flaw is not None:
            return rejection(source.name, record.key, flaw, record.raw)
        digest = content_digest(text, messages)
        id_hex = document_id(source.name, record.key)
        first = self.duplicates.first_of(digest, id_hex) if self.params.duplicates.exact else None
        if first is not None:
            duplicate = Flaw("exact_duplicate", f"same text as document {first}")
            return rejection(source.name, record.key, duplicate, record.raw)
        return Document(
            id=id_hex,
            source=source.name,
            key=record.key,
            group=group_of(digest),
            weight=source.weight,
            licence=source.licence or "",
            text=text,
            messages=messages,
        )

    def cleaned(self, record: Record) -> tuple[Message, ...]:
        return tuple(
            Message(message.role, clean(message.content, self.params.cleaning, record.markup))
            for message in record.messages or ()
        )

    def figures(self) -> dict[str, Any]:
        """The counts in total and by source, as plain values."""
        total = Tally()
        for tally in self.tallies.values():
            total.num_files += tally.num_files
            total.num_records += tally.num_records
            total.num_documents += tally.num_documents
            total.text_bytes += tally.text_bytes
            total.rejected.update(tally.rejected)
        return total.figures() | {"sources": {name: tally.figures() for name, tally in self.tallies.items()}}
