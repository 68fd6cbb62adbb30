"""From the records of a portion to documents and rejections: what needs no other document's knowledge."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nima.corpus.cleaning.boilerplate import edge_line_hashes, without_boilerplate
from nima.corpus.cleaning.cleaning import clean
from nima.corpus.cleaning.privacy import masked, private_flaw
from nima.corpus.document import Message, Rejection, document_id, text_bytes_of
from nima.corpus.duplicates.duplicates import content_digest, group_of
from nima.corpus.duplicates.similarity import sketch
from nima.corpus.formats.formats import Record, read_records, rejection
from nima.corpus.outcomes import Candidate, OutcomeWriter, Summary, finished
from nima.corpus.portions import Portion
from nima.corpus.quality.quality import flaw_in
from nima.workspace.params import PrepareParams


def rules_of(settings: PrepareParams, code: str) -> dict[str, Any]:
    """Everything beside its files that decides what becomes of a portion."""
    rules = settings.model_dump(include={"cleaning", "quality", "privacy", "duplicates", "limits"})
    return rules | {"code": code}


def refined(
    portion: Portion, settings: PrepareParams, code: str, boilerplate: frozenset[int], folder: Path
) -> tuple[Path, Summary]:
    """The place of the portion's outcomes below `folder`, and their counts; done work is not repeated.

    `code` is a fingerprint of the program, `boilerplate` the lines that many documents share.
    """
    path = folder / portion.name(rules_of(settings, code) | {"boilerplate": sorted(boilerplate)})
    if (summary := finished(path)) is not None:
        return path, summary
    counts: Counter[str] = Counter()
    with OutcomeWriter(path) as writer:
        for record in records_of(portion, settings):
            writer.write(outcome(record, portion, settings, boilerplate, counts))
        writer.summary.masked = dict(sorted(counts.items()))
    return path, writer.summary


def records_of(portion: Portion, settings: PrepareParams) -> Iterator[Record | Rejection]:
    for file in portion.files:
        yield from read_records(file, portion.source, settings.limits, portion.span)


def outcome(
    record: Record | Rejection,
    portion: Portion,
    settings: PrepareParams,
    boilerplate: frozenset[int],
    counts: Counter[str],
) -> Candidate | Rejection:
    if isinstance(record, Rejection):
        return without_secrets(record, settings)
    repaired = partial(repair, record=record, settings=settings, boilerplate=boilerplate, counts=counts)
    text = repaired(record.text)
    messages = None
    if record.messages is not None:
        messages = tuple(Message(turn.role, repaired(turn.content)) for turn in record.messages)
    said = text if messages is None else "\n".join(turn.content for turn in messages)
    flaw = private_flaw(said, settings.privacy) or flaw_in(said, settings.quality, record.markup)
    if flaw is not None:
        return without_secrets(rejection(portion.source.name, record.key, flaw, record.raw), settings)
    digest = content_digest(text, messages)
    near = settings.duplicates.near
    return Candidate(
        id=document_id(portion.source.name, record.key),
        key=record.key,
        text=text,
        messages=messages,
        group=key_group(portion.source.name, record.group) if record.group else group_of(digest),
        digest=digest[:16],
        sketch=sketch(said, near) if near else b"",
        num_bytes=text_bytes_of(text, messages),
    )


def repair(
    text: str,
    record: Record,
    settings: PrepareParams,
    boilerplate: frozenset[int],
    counts: Counter[str],
) -> str:
    text = clean(text, settings.cleaning, record.markup)
    if settings.cleaning.boilerplate and boilerplate and record.markup != "code":
        text = without_boilerplate(text, boilerplate, settings.cleaning.boilerplate)
    private = masked(text, settings.privacy)
    if private.counts:
        counts.update(private.counts)
    return private.text


def key_group(source: str, value: str) -> str:
    """The group of all of a source's documents with one value of `group_by`."""
    return document_id(f"{source}\0group", value)


def without_secrets(rejected: Rejection, settings: PrepareParams) -> Rejection:
    """What is masked or dropped in documents does not lie open among the rejected ones."""
    if settings.privacy.keeps_all:
        return rejected
    treatment = settings.privacy.model_dump()
    rules = settings.privacy.model_copy(
        update={kind: "mask" for kind, value in treatment.items() if value == "drop"}
    )
    private = masked(rejected.text, rules)
    return replace(rejected, text=private.text, raw=None) if private.counts else rejected


def shown(text: str, messages: Sequence[dict[str, str]] | None) -> str:
    """A document among the rejected ones."""
    return text if messages is None else json.dumps(messages, ensure_ascii=False)


def edge_lines(portion: Portion, settings: PrepareParams) -> tuple[np.ndarray, int]:
    """uint64: hashes of the first and last lines of the portion's documents, each once a document; and how
    many documents it has. Source code has none: a licence at its head belongs to it.
    """
    rules = settings.cleaning.boilerplate
    assert rules is not None  # noqa: S101 - for the type checker
    hashes: list[int] = []
    num_documents = 0
    for record in records_of(portion, settings):
        if isinstance(record, Record):
            num_documents += 1
            if record.messages is None and record.markup != "code":
                text = clean(record.text, settings.cleaning, record.markup)
                hashes += sorted(set(edge_line_hashes(text, rules)))
    return np.array(hashes, dtype=np.uint64), num_documents
