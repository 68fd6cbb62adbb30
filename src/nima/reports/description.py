"""A revision in sentences and charts, for somebody who was not there."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from nima.reports.charts import bar_chart
from nima.repository.revisions import Revision
from nima.workspace.params import presets

# Title, file, column of names, unit.
DATA_CHARTS = (
    ("Tokens by source and part", "tokens_by_source", "source", "tokens"),
    ("Documents by length, up to so many tokens", "document_lengths", "up_to_tokens", "documents"),
    ("Rejected records by reason", "rejected", "reason", "records"),
)


def sentences(revision: Revision) -> list[str]:
    """What it is, how it was made, how good it is: only what the revision tells."""
    return [text for text in (model(revision), training(revision), result(revision)) if text]


def model(revision: Revision) -> str:
    settings = revision.param_tree.get("model") or {}
    parts = (
        [f"{parameters:,.0f} parameters"] if (parameters := revision.metrics.get("train.parameters")) else []
    )
    parts += list(shape_words(settings))
    if vocabulary := revision.metrics.get("tokenize.vocab_size"):
        parts.append(f"a vocabulary of {vocabulary:,.0f} tokens")
    return f"A decoder-only language model: {', '.join(parts)}." if parts else ""


def shape_words(settings: dict[str, Any]) -> Iterator[str]:
    overrides = {key: value for key, value in settings.items() if key != "preset" and value is not None}
    try:
        shape = presets.resolve(settings["preset"], overrides)
    except (KeyError, TypeError, ValueError):  # a preset of another time
        return
    for key, words in (
        ("num_layers", "{} layers"),
        ("width", "{} wide"),
        ("context_tokens", "{} tokens of context"),
    ):
        if shape.get(key) is not None:
            yield words.format(f"{shape[key]:,}")


def training(revision: Revision) -> str:
    metrics, settings = revision.metrics, revision.params
    tokens, documents = metrics.get("split.train.tokens"), metrics.get("split.train.documents")
    steps, passes = metrics.get("train.step"), metrics.get("train.epochs")
    words = [f"on {tokens:,.0f} tokens from {documents:,.0f} documents"] if tokens and documents else []
    if steps:
        words.append(f"in {steps:,.0f} updates of {settings.get('training.batch_tokens', '?'):,} tokens")
    if passes:
        words.append(f"which is {passes:.2g} passes over them")
    if lr := settings.get("training.lr"):
        optimizer = {"muon": "Muon and AdamW", "adamw": "AdamW"}.get(
            settings.get("training.optimizer", ""), ""
        )
        words.append(f"by {optimizer or 'its optimizer'} at a learning rate of at most {lr:g}")
    return f"Trained from random weights {', '.join(words)}." if tokens or steps else ""


def result(revision: Revision) -> str:
    metrics = revision.metrics
    reached, floor = metrics.get("evaluate.test.bits_per_byte"), metrics.get("evaluate.floor.xz_9")
    if reached is None:
        return ""
    text = f"Text of the test part, which it never saw, costs it {reached:.3f} bits per byte"
    if floor is None:
        return f"{text}."
    share = abs(1 - reached / floor)
    return f"{text}: {share:.0%} {'less' if reached < floor else 'more'} than xz -9 needs ({floor:.3f})."


def data_charts(revision: Revision) -> list[Markup]:
    """Of the tables that the stage split leaves in plots/data."""
    drawn = []
    for title, name, column, unit in DATA_CHARTS:
        rows = list(csv.DictReader(io.StringIO(revision.text(f"plots/data/{name}.csv") or "")))
        try:
            bars = [(row[column], float(row[unit]), 0) for row in rows]
        except (KeyError, TypeError, ValueError):
            continue  # a table of another time
        if any(value for _, value, _ in bars):
            drawn.append(bar_chart(title, unit, bars))
    return [chart for chart in drawn if chart]
