"""A revision told on one page to somebody who was not there; several are compared, then told one by one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from markupsafe import Markup

from nima.reports.charts import Line, bar_chart, line_chart
from nima.reports.comparison import ABSENT, Comparison, Side, compared, param_text
from nima.reports.comparison_views import charts, metric_table, param_table
from nima.reports.description import data_charts, sentences
from nima.reports.repeats import known_repeats
from nima.reports.web_pages import rendered
from nima.repository import git
from nima.repository.revisions import STAGES, Revision, experiment_refs, flat
from nima.training.model_card import model_card, place_of
from nima.workspace.errors import UserError
from nima.workspace.params import Params

SPLITS = ("train", "validation", "test")
STEP = "step (updates)"
# Title, unit, and curves by their name in the legend.
CURVES = (
    ("Loss", "nats per token", {"training": "train/loss", "validation": "validation/loss"}),
    ("Bits per byte", "bits per byte of text", {"validation": "validation/bits_per_byte"}),
    ("Learning rate", "learning rate", {"matrices": "train/lr"}),
    ("Gradient norm before clipping", "norm", {"norm": "train/gradient_norm"}),
)
Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


@dataclass(frozen=True)
class Story:
    """What the page says of one revision."""

    revision: Revision

    @property
    def label(self) -> str:
        return self.revision.label

    @property
    def anchor(self) -> str:
        return f"r-{self.revision.commit[:12]}"

    @cached_property
    def about(self) -> str:
        """When it was committed, and what for."""
        if self.revision.is_workspace:
            return "The files as they lay in the workspace, not committed."
        shown = git.output(self.revision.root, "show", "-s", "--format=%cs: %s", self.revision.commit).strip()
        return f"Commit {self.revision.commit}, {shown}"

    def stage(self, name: str) -> dict[str, Any]:
        return self.revision.metric_tree.get(name, {})

    @cached_property
    def cards(self) -> list[tuple[str, str]]:
        """Figure and what it is, of the figures that are there."""
        metrics = self.revision.metrics
        names = {
            "train.parameters": "parameters",
            "split.train.tokens": "training tokens",
            "train.step": "updates",
            "train.validation.bits_per_byte": "bits per byte, validation",
            "evaluate.test.bits_per_byte": "bits per byte, test",
            "evaluate.floor.xz_9": "bits per byte of xz -9",
        }
        found = [(cell(metrics[key]), name) for key, name in names.items() if key in metrics]
        seconds = metrics.get("timing.train.seconds")
        return [*found, (duration(seconds), "of training")] if seconds is not None else found

    @cached_property
    def sentences(self) -> list[str]:
        return sentences(self.revision)

    @cached_property
    def data_charts(self) -> list[Markup]:
        return data_charts(self.revision)

    @cached_property
    def sources(self) -> Table:
        heads = ["source", "from", "licence", "weight", "documents", "bytes", "tokens", *SPLITS]
        rows = []
        prepare = self.revision.param_tree.get("prepare") or {}
        for source in prepare.get("sources") or []:
            name = str(source.get("name"))
            counts = self.stage("tokenize").get("sources", {}).get(name, {})
            numbers = [counts.get(key) for key in ("documents", "bytes", "tokens")]
            numbers += [self.split_tokens(split, name) for split in SPLITS]
            terms = str(source.get("licence") or "not declared")
            weight = f"{source.get('weight', 1.0):g}"
            rows.append([name, place_of(source), terms, weight, *map(cell, numbers)])
        if len(rows) > 1:
            rows.append(["together", "", "", "", *map(cell, self.totals())])
        return heads, rows

    def totals(self) -> list[Any]:
        """Documents, bytes and tokens in all, and tokens of each part."""
        counts = [self.stage("tokenize").get(key) for key in ("documents", "bytes", "tokens")]
        return [*counts, *(self.stage("split").get(split, {}).get("tokens") for split in SPLITS)]

    def split_tokens(self, split: str, source: str) -> Any:
        return self.stage("split").get(split, {}).get("sources", {}).get(source, {}).get("tokens")

    @cached_property
    def params(self) -> Table:
        """Every param but the sources, which have a table."""
        values = self.revision.params
        keys = [key for key in values if not key.startswith("prepare.sources")]
        return ["param", "value"], [[key, param_text(values, key)] for key in keys]

    @cached_property
    def essentials(self) -> Table:
        """The params that say most."""
        heads, rows = self.params
        return heads, [row for row in rows if row[0].startswith(("model.", "training."))]

    @cached_property
    def charts(self) -> list[Markup]:
        drawn = [line_chart(title, STEP, unit, list(self.lines(curves))) for title, unit, curves in CURVES]
        return [chart for chart in drawn if chart]

    def lines(self, curves: Mapping[str, str]) -> Iterable[Line]:
        for colour, (label, name) in enumerate(curves.items()):
            yield Line(label, self.revision.curve(name), colour)

    @cached_property
    def quality(self) -> Table:
        """Test figures in total and by source, beside what compressors reach."""
        card = self.stage("evaluate")
        floors = card.get("floor", {})
        texts = {"all of it": (card.get("test", {}), floors)}
        texts |= {
            name: (found, floors.get("sources", {}).get(name, {}))
            for name, found in card.get("sources", {}).items()
        }
        heads = ["text", "bits per byte", "xz -9", "zstd -19", "loss", "perplexity", "accuracy", "tokens"]
        rows = [
            [name, cell(found.get("bits_per_byte")), *(cell(floor.get(key)) for key in ("xz_9", "zstd_19"))]
            + [cell(found.get(key)) for key in ("loss", "perplexity", "accuracy", "tokens")]
            for name, (found, floor) in texts.items()
            if found
        ]
        return heads, rows

    @cached_property
    def quality_chart(self) -> Markup:
        heads, rows = self.quality
        bars = [
            (
                f"{row[0]}: {'model' if column == 1 else heads[column]}",
                float(row[column].replace(",", "")),
                column - 1,
            )
            for row in rows
            for column in (1, 2, 3)
            if row[column] != ABSENT
        ]
        return bar_chart("Test text: shorter is better", "bits per byte of text", bars)

    @cached_property
    def samples(self) -> dict[str, list[dict[str, Any]]]:
        """By prompt."""
        found: dict[str, list[dict[str, Any]]] = {}
        for sample in self.revision.samples:
            found.setdefault(sample["prompt"], []).append(sample)
        return found

    @cached_property
    def data_figures(self) -> dict[str, Table]:
        """Figures of the data stages by stage; those by source are in the table of sources."""
        stages = {name: self.stage(name) for name in ("prepare", "tokenize", "split")}
        return {
            name: (["figure", "value"], [[key, cell(value)] for key, value in flat(found) if is_general(key)])
            for name, found in stages.items()
            if found
        }

    @cached_property
    def cost(self) -> Table:
        timing = self.revision.timing
        heads = ["stage", "time", "peak memory, MB", "tokens per second"]
        order = [stage for stage in STAGES if stage in timing]
        order += [stage for stage in timing if stage not in order]
        rows = [
            [
                stage,
                duration(timing[stage].get("seconds")),
                cell(round(timing[stage].get("peak_memory_bytes", 0) / 1e6)),
                cell(timing[stage].get("tokens_per_second")),
            ]
            for stage in order
        ]
        total = sum(timing[stage].get("seconds") or 0 for stage in order)
        return heads, [*rows, ["together", duration(total), "", ""]] if rows else []

    @cached_property
    def commands(self) -> str:
        """What to type on another machine."""
        if self.revision.is_workspace:
            return "# Not committed: nobody else can reproduce this. Commit it, and report on the commit."
        commit = self.revision.commit
        names = [
            ref.rsplit("/", 1)[1]
            for ref, found in experiment_refs(self.revision.root).items()
            if found == commit
        ]
        fetch = (
            [f"dvc exp pull origin {names[0]}   # an experiment: `dvc exp push` shares it"] if names else []
        )
        lines = [
            f"git clone {origin(self.revision)} project",
            "cd project",
            "make setup                 # the environment and the data packages",
            *fetch,
            f"git checkout {commit}",
            "dvc pull                   # the outputs as they were made, from the project's remote",
            "make repro                 # or: makes what is missing or out of date",
        ]
        return "\n".join(lines)


def is_general(key: str) -> bool:
    return "sources." not in key


def cell(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """In the two units that matter."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds / 60), round(seconds) // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{int(seconds) // 60} min {round(seconds) % 60} s"


def origin(revision: Revision) -> str:
    """Where the project is cloned from, without a password that the address may hold."""
    try:
        address = git.output(revision.root, "remote", "get-url", "origin").strip()
    except UserError:
        return str(revision.root)
    parts = urlsplit(address)
    if not parts.scheme.startswith("http"):
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def card_of(revision: Revision) -> str:
    """The model card with all that the revision tells. Raises `UserError` if that is too little."""
    found = {stage: revision.metric_tree.get(stage) for stage in ("train", "split", "evaluate")}
    try:
        params = Params.model_validate(revision.param_tree)
    except ValueError:  # Pydantic's
        raise UserError(f"--card: {revision.name}: its params.yaml fits another version of Nima") from None
    if found["train"] is None or found["split"] is None:
        raise UserError(
            f"--card: {revision.name}: needs metrics/train.json and metrics/split.json: dvc repro"
        )
    return model_card(params, found["train"], found["split"], found["evaluate"])


def report_page(revisions: Sequence[Revision]) -> str:
    """The page of one revision, or of several against the first."""
    comparison: Comparison | None = None
    if len(revisions) > 1:
        sides = [Side(revision, [revision, *known_repeats(revision).values()]) for revision in revisions]
        comparison = compared(sides)
    return rendered(
        "report.html",
        stories=[Story(revision) for revision in revisions],
        comparison=comparison,
        params=param_table(comparison) if comparison else None,
        metrics=metric_table(comparison) if comparison else None,
        charts=charts(comparison) if comparison else [],
    )
