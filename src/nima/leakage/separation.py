"""Training text apart from what it is measured by: the splits, and what they share all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nima.corpus.document import Rejection, read_documents
from nima.corpus.formats.formats import read_records
from nima.corpus.sources.sources import files_of
from nima.dataset.splits import (
    SPLITS,
    assign,
    check_no_conflict,
    check_no_empty,
    check_no_overlap,
    conflicts,
    numbered,
    ratios_of,
    without,
)
from nima.leakage.leakage import Leakage, Probe, Probes, check_no_leakage, leakage
from nima.workspace.params import LimitsParams, SourceParams, SplitParams

if TYPE_CHECKING:
    from nima.dataset.tokens import Tokens
    from nima.workspace.runtime import Runtime


@dataclass(frozen=True)
class Separation:
    """Who is where, and what was found between the parts."""

    assignment: dict[str, np.ndarray]
    """The documents of each split, as ascending int64 indices."""
    leakage: Leakage
    num_conflicts: int
    """Documents whose declared split is not that of their group."""
    num_dropped: int
    """Training documents that were left out for what they share."""

    def figures(self) -> dict[str, Any]:
        counts = {"num_conflicts": self.num_conflicts, "num_dropped": self.num_dropped}
        return counts | self.leakage.figures()


def separated(
    tokens: Tokens, documents: Path, settings: SplitParams, prompts: Sequence[str], runtime: Runtime
) -> Separation:
    """Assign every document to a split, and keep the training part apart as `settings.leakage` says.

    Raises `UserError`: a split is empty, or something leaks and must not.
    """
    ratios, rules = ratios_of(settings), settings.leakage
    own = {name: ratios_of(shares) for name, shares in settings.sources.items()}
    assignment = assign(
        tokens.groups,
        settings.seed,
        ratios,
        sources=tokens.sources,
        source_ratios=own,
        declared=tokens.splits,
    )
    found = conflicts(tokens.groups, tokens.splits)
    if rules.action == "fail":
        check_no_conflict(tokens, found)
    num_training = len(assignment["train"])
    if rules.action == "drop":
        assignment = without(assignment, found[:, 0])
    held_out = held_out_probes(tokens, documents, assignment)
    probes = Probes([*held_out, *prompt_probes(prompts), *benchmark_probes(rules.benchmarks, runtime)], rules)
    leaks = leakage(probes, texts_of(tokens, documents, assignment, "train"))
    if rules.action == "fail":
        check_no_leakage(leaks)
    if rules.action == "drop":
        assignment = without(assignment, assignment["train"][leaks.documents])
    check_no_empty(assignment, ratios, sources=tokens.sources, source_ratios=own)
    check_no_overlap(tokens, assignment, known=found[:, 0])
    return Separation(assignment, leaks, len(found), num_training - len(assignment["train"]))


def held_out_probes(tokens: Tokens, documents: Path, assignment: dict[str, np.ndarray]) -> Iterator[Probe]:
    for part in ("validation", "test"):
        for document, text in texts_of(tokens, documents, assignment, part):
            yield Probe(part, document, text)


def texts_of(
    tokens: Tokens, documents: Path, assignment: dict[str, np.ndarray], part: str
) -> Iterator[tuple[str, str]]:
    """Ids and texts of a split's documents, in order. Those without tokens were dropped by their length."""
    numbers = numbered(assignment, tokens.num_documents)
    place = 0
    for document in read_documents(documents):
        if place < tokens.num_documents and document.id == tokens.ids[place]:
            if numbers[place] == SPLITS.index(part):
                yield document.id, "\n".join(document.plain_texts())
            place += 1


def prompt_probes(prompts: Sequence[str]) -> Iterator[Probe]:
    for number, prompt in enumerate(prompts):
        yield Probe("prompts", f"prompt {number}", prompt)


def benchmark_probes(benchmarks: Sequence[SourceParams], runtime: Runtime) -> Iterator[Probe]:
    """The usable records of sources that hold benchmark questions. Raises `SourceError`."""
    for source in benchmarks:
        for file in files_of(source, runtime.packages, LimitsParams(), runtime.downloads):
            for record in read_records(file, source, LimitsParams()):
                if not isinstance(record, Rejection):
                    said = [record.text, *(turn.content for turn in record.messages or ())]
                    yield Probe(source.name, record.key, "\n".join(filter(None, said)))
