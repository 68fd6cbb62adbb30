"""What the data is: a page for people and tables for plots, from what the data stages left.

The page is one file that needs no network: what came in, what was dropped and why with examples, how long
documents are, what each source gives, duplicates and leakage.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from nima.corpus.document import Rejection, example_rejections
from nima.dataset.tokens import Tokens
from nima.leakage.separation import Separation
from nima.workspace.metrics import read_metrics

Table = list[dict[str, Any]]

TEMPLATE = Path(__file__).parent / "page.html"
MAX_EXAMPLE_CHARS = 600
MAX_ROWS = 20
EXAMPLES_PER_REASON = 3


@dataclass(frozen=True)
class DataReport:
    """Everything that the page shows."""

    prepare: Mapping[str, Any]
    """metrics/prepare.json"""
    tokenize: Mapping[str, Any]
    """metrics/tokenize.json"""
    sources: Table
    lengths: Table
    rejected: Table
    examples: Sequence[Rejection]
    leakage: Table
    offenders: Table
    num_conflicts: int
    num_dropped: int

    def tables(self) -> dict[str, str]:
        """CSV files by name, for plots."""
        return {
            "tokens_by_source.csv": csv_text(tokens_by_split(self.sources)),
            "document_lengths.csv": csv_text(self.lengths),
            "rejected.csv": csv_text(self.rejected or [{"reason": "none", "records": 0}]),
        }

    def files(self) -> dict[str, str]:
        """The page, and every leaked text in a file of its own."""
        lines = (json.dumps(offender, ensure_ascii=False) + "\n" for offender in self.offenders)
        return {"index.html": self.page(), "leaked.jsonl": "".join(lines)}

    def page(self) -> str:
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"bar": share_of_largest, "number": grouped}
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(report=self, max_chars=MAX_EXAMPLE_CHARS, max_rows=MAX_ROWS) + "\n"


def report_of(tokens: Tokens, parts: Separation, rejected: Path) -> DataReport:
    """The report of what the data stages left behind."""
    prepare = read_metrics("prepare")
    leaks = parts.leakage
    return DataReport(
        prepare=prepare,
        tokenize=read_metrics("tokenize"),
        sources=source_table(tokens, parts.assignment, prepare),
        lengths=length_table(tokens),
        rejected=rejection_counts(prepare),
        examples=example_rejections(rejected, EXAMPLES_PER_REASON),
        leakage=[{"name": name} | counts for name, counts in leaks.parts.items()],
        offenders=[asdict(offender) for offender in leaks.offenders],
        num_conflicts=parts.num_conflicts,
        num_dropped=parts.num_dropped,
    )


def source_table(tokens: Tokens, assignment: Mapping[str, np.ndarray], prepare: Mapping[str, Any]) -> Table:
    """One row a source: what came in, what was kept, and its tokens in each split."""
    rows = []
    for name, counts in prepare["sources"].items():
        mine = tokens.sources == name
        split_tokens = {
            split: int(tokens.lengths[documents[mine[documents]]].sum())
            for split, documents in assignment.items()
        }
        num_tokens = int(tokens.lengths[mine].sum())
        rows.append(
            {
                "source": name,
                "records": counts["num_records"],
                "documents": int(mine.sum()),
                "rejected": counts["num_rejected"],
                "bytes": int(tokens.text_bytes[mine].sum()),
                "tokens": num_tokens,
                "bytes_per_token": round(int(tokens.text_bytes[mine].sum()) / max(1, num_tokens), 3),
            }
            | split_tokens
        )
    return rows


def tokens_by_split(sources: Table) -> Table:
    return [
        {"source": f"{row['source']}, {split}", "tokens": row[split]}
        for row in sources
        for split in ("train", "validation", "test")
        if split in row
    ]


def length_table(tokens: Tokens) -> Table:
    """How many documents have how many tokens, in steps of doubling length."""
    if not tokens.num_documents:
        return []
    exponents = np.ceil(np.log2(np.maximum(tokens.lengths, 1))).astype(int)
    counts = np.bincount(exponents)
    first = int(np.flatnonzero(counts)[0])
    return [
        {"up_to_tokens": 2**exponent, "documents": int(counts[exponent])}
        for exponent in range(first, len(counts))
    ]


def rejection_counts(prepare: Mapping[str, Any]) -> Table:
    counts = sorted(prepare["rejected"].items(), key=lambda item: (-item[1], item[0]))
    return [{"reason": reason, "records": records} for reason, records in counts]


def csv_text(rows: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def share_of_largest(value: float, rows: Table, key: str) -> float:
    """A bar's length in percent."""
    largest = max((row[key] for row in rows), default=0)
    return round(100 * value / largest, 2) if largest else 0.0


def grouped(value: float) -> str:
    return f"{value:,}"
