"""Rejected records to look at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nima.corpus.document import Rejection, read_rejections
from nima.workspace.errors import UserError
from nima.workspace.params import nearest

REJECTED = Path("data/rejected")
EXCERPT_CHARS = 400


@dataclass(frozen=True)
class Rejections:
    """The first records of a source and reason, and how many of each reason there are."""

    records: list[Rejection]
    counts: dict[str, int]
    """By reason, of the source if one is given; most frequent first."""


def rejections(source: str | None, reason: str | None, count: int) -> Rejections:
    """Reads what the stage prepare rejected. Raises `UserError` for a source or reason that has none."""
    if not REJECTED.exists():
        raise UserError(f"{REJECTED}: not found; run `dvc repro prepare` first, in the project's root")
    sources: set[str] = set()
    counts: Counter[str] = Counter()
    records: list[Rejection] = []
    for record in read_rejections(REJECTED):
        sources.add(record.source)
        if source not in (None, record.source):
            continue
        counts[record.reason] += 1
        if reason in (None, record.reason) and len(records) < count:
            records.append(record)
    check("--source", source, sources)
    check("--reason", reason, set(counts))
    return Rejections(records, dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def check(option: str, wanted: str | None, known: set[str]) -> None:
    if wanted is not None and wanted not in known:
        hint = nearest(wanted, sorted(known)) if known else ""
        raise UserError(f"{option} {wanted}: no rejected record has it{hint}")


def excerpt(record: Rejection) -> str:
    text = record.text
    return text if len(text) <= EXCERPT_CHARS else f"{text[:EXCERPT_CHARS]}…"
