"""The test split's results side by side: the model's likelihoods and the compressors' floors."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nima.evaluation.compression import floors
from nima.scoring.likelihood import Likelihood, Scorer, total
from nima.tokenizer import Tokenizer
from nima.workspace.errors import UserError

ALL_TEXT = "all"
Bars = dict[str, dict[str, float]]
"""Bits per byte by text (all, then each source) and method; a text without bytes has none."""


@dataclass(frozen=True)
class ScoredText:
    """The bytes that a split's scored tokens stand for, documents end to end."""

    whole: bytes
    sources: dict[str, bytes]


def scored_text(scorer: Scorer, tokenizer: Tokenizer) -> ScoredText:
    """The text that the scorer's whole stream of documents scores."""
    tokens, pieces = scorer.stream.tokens, []
    by_source: dict[str, list[bytes]] = defaultdict(list)
    for document in scorer.stream.documents.tolist():
        ids = tokens.document(document).tolist()
        scored = [ids[start:stop] for start, stop in tokens.spans(document).tolist()]
        pieces.append(b"".join(map(tokenizer.decode_bytes, scored)))
        by_source[str(scorer.sources[document])].append(pieces[-1])
    return ScoredText(b"".join(pieces), {name: b"".join(by_source[name]) for name in sorted(by_source)})


def scorecard(
    parts: dict[str, Likelihood], text: ScoredText, poll: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """What metrics/evaluate.json holds. `poll` is called before each compression, and may raise to stop.

    A figure that does not exist (bits per byte of no bytes, a perplexity beyond all numbers) is None.
    Raises `UserError` when nothing was scored.
    """
    everything = total(parts)
    if everything.num_tokens == 0:
        raise UserError(
            "split.test: the test split has no token to score; raise split.test above 0, or add documents"
        )
    test = figures(everything)
    floor: dict[str, Any] = floors_of(text.whole, poll)
    floor["sources"] = {name: floors_of(part, poll) for name, part in text.sources.items()}
    model_bits, xz_bits = test["bits_per_byte"], floor["xz_9"]
    return {
        "test": test,
        "sources": {str(name): figures(part) for name, part in parts.items()},
        "floor": floor,
        "beats_xz": model_bits is not None and xz_bits is not None and model_bits < xz_bits,
    }


def figures(likelihood: Likelihood) -> dict[str, float | None]:
    metrics = likelihood.metrics() | {"tokens": likelihood.num_tokens, "bytes": likelihood.num_bytes}
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def floors_of(text: bytes, poll: Callable[[], None]) -> dict[str, float | None]:
    poll()
    return {**floors(text)} if text else {"xz_9": None, "zstd_19": None}


def bits_per_byte(card: dict[str, Any]) -> Bars:
    """A scorecard's bits per byte by text and method."""
    texts = {ALL_TEXT: (card["test"], card["floor"])}
    texts |= {name: (card["sources"][name], card["floor"]["sources"][name]) for name in card["sources"]}
    return {name: methods(found, floor) for name, (found, floor) in texts.items()}


def methods(found: dict[str, Any], floor: dict[str, Any]) -> dict[str, float]:
    values = {"model": found["bits_per_byte"], "xz -9": floor["xz_9"], "zstd -19": floor["zstd_19"]}
    return {name: value for name, value in values.items() if value is not None}


def tables(bars: Bars) -> dict[str, str]:
    """Two CSV files for bar charts, by name: all text, and each source; columns method and bits_per_byte."""
    sources = {
        f"{text}: {method}": value
        for text, values in bars.items()
        if text != ALL_TEXT
        for method, value in values.items()
    }
    return {"bits_per_byte.csv": table(bars[ALL_TEXT]), "bits_per_byte_by_source.csv": table(sources)}


def table(bars: dict[str, float]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", "bits_per_byte"))
    writer.writerows(bars.items())
    return text.getvalue()
