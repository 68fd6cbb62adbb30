"""What a run says where a change is discussed: Markdown that needs no host for pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nima.ci import repository
from nima.ci.forge import Laptop
from nima.ci.pipeline import Reproduction, StageFailed
from nima.reports.comparison import Comparison, Side, compared
from nima.reports.comparison_views import Table, markdown_table, metric_table, param_table, sample_rows
from nima.reports.markdown import code_span, fenced, folded
from nima.repository.revisions import Points, Revision
from nima.workspace.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".gif")
FIRST_METRICS = ("evaluate.test.", "train.validation.", "timing.train.")
"""The others are folded away."""
MAX_SAMPLES = 6
MAX_SAMPLE_CHARS = 1200
MAX_CURVE_POINTS = 25
MAX_CHARS = 60_000
"""GitHub takes 65,536."""
BEFORE, NOW = "#8a8f98", "#1f77b4"
CHART = """```mermaid
---
config:
  themeVariables:
    xyChart:
      plotColorPalette: "{colours}"
---
xychart-beta
  title "Validation loss"
  x-axis "step" {first} --> {last}
  y-axis "nats per token" {low} --> {high}
{lines}
```"""


@dataclass(frozen=True)
class Results:
    """A run that went through."""

    base: str
    """The commit that the figures are compared with."""
    source: str
    """The commit that was run."""
    head: str
    """The commit that holds the results: the same one if all results were there."""
    done: Reproduction
    aside: str | None
    """Branch with results that another push overtook."""
    is_news: bool
    """Not just a second look at results that are there already."""


def comparison_of(run: Results) -> Comparison | None:
    """The base and the results, side by side; None if they are the same."""
    if repository.have_equal_results(run.base, run.head):
        return None
    root = Path.cwd()
    revisions = [Revision(root, "before", run.base), Revision(root, "now", run.head)]
    return compared([Side(revision, [revision]) for revision in revisions])


def results(run: Results, found: Comparison | str, forge: Laptop) -> str:
    """`found`: the comparison, or why there is none."""
    sections = [f"## Nima: results of {run.source[:9]} against {run.base[:9]}", stages(run)]
    if isinstance(found, str):
        return joined([*sections, found])
    now = found.sides[1].revision
    sections += [
        titled("Params", table(param_table(found))),
        titled("Metrics", metrics(found)),
        titled("Plots", plots(run, found, forge)),
        titled("Samples", samples(found)),
        titled("Cost", table(costs(run.done.ran, now.timing))),
        *found.absent(),
    ]
    return joined(sections)


def failure(error: UserError, source: str | None, forge: Laptop) -> str:
    """What went wrong, and the last lines of the stage that failed."""
    sections = [f"## Nima: no results for {(source or 'this')[:9]}", code_span(str(error))]
    if isinstance(error, StageFailed):
        if error.done.ran:
            before = ", ".join([*error.done.restored, *error.done.ran[:-1]])
            through = f" {before} went through, and will not run again." if before else ""
            sections.append(f"The stage **{error.done.ran[-1]}** failed.{through}")
        sections.append("Its last lines:\n\n" + fenced("\n".join(error.done.tail)))
    if url := forge.run_url():
        sections.append(f"[The whole log]({url})")
    return joined(sections)


def joined(sections: Sequence[str]) -> str:
    text = "\n\n".join(filter(None, sections))
    return (text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "\n\n… cut here") + "\n"


def titled(title: str, content: str) -> str:
    return f"### {title}\n\n{content}" if content else ""


def stages(run: Results) -> str:
    parts = []
    if run.done.ran:
        parts.append(f"Ran: **{', '.join(run.done.ran)}**.")
    if run.done.restored:
        parts.append(f"From the run cache: {', '.join(run.done.restored)}.")
    parts.append("The other stages were up to date." if parts else "Nothing had to run: all was up to date.")
    if run.head != run.source:
        parts.append(f"The results are commit {run.head[:9]}.")
    if run.aside:
        parts.append(f"Results that another push overtook stay on the branch `{run.aside}`.")
    return " ".join(parts)


def table(content: Table) -> str:
    _, rows = content
    return "\n".join(markdown_table(content)).strip() if rows else ""


def metrics(found: Comparison) -> str:
    first = [row for row in found.metrics if row.name.startswith(FIRST_METRICS)]
    rest = [row for row in found.metrics if row not in first]
    parts = [table(metric_table(replace(found, metrics=first)))]
    if rest:
        parts.append(folded(f"{len(rest)} more", table(metric_table(replace(found, metrics=rest)))))
    return "\n\n".join(filter(None, parts))


# ---------------------------------------------------------------------------------------- plots, samples


def plots(run: Results, found: Comparison, forge: Laptop) -> str:
    """The loss curve as text that forges draw, pictures that Git holds, and the page with the rest."""
    before, now = (side.revision.curve("validation/loss") for side in found.sides)
    changed = repository.git("diff", "--name-only", "-z", run.base, run.head, "--", "plots").split("\0")
    pictures = [f"![{path}]({forge.file_url(run.head, path)})" for path in changed if path.endswith(PICTURES)]
    url = forge.run_url()
    page = f"Charts and all samples: `comparison.html` in the files of [this run]({url})" if url else ""
    return "\n\n".join(filter(None, [loss_chart(before, now), *pictures, page]))


def loss_chart(before: Points, now: Points) -> str:
    """A chart in Mermaid, which GitHub and GitLab draw; empty if there is nothing new to draw."""
    drawn = {colour: points for colour, points in ((BEFORE, before), (NOW, now)) if len(points) > 1}
    if NOW not in drawn or before == now:
        return ""
    arrays = [np.array(points) for points in drawn.values()]
    first, last = min(points[0, 0] for points in arrays), max(points[-1, 0] for points in arrays)
    # Mermaid spreads a line's values evenly over the axis, so both curves are taken at the same steps.
    steps = np.linspace(first, last, min(MAX_CURVE_POINTS, max(map(len, arrays))))
    losses = [np.interp(steps, points[:, 0], points[:, 1]) for points in arrays]
    low, high = np.min(losses), np.max(losses)
    chart = CHART.format(
        colours=", ".join(drawn),
        first=f"{first:g}",
        last=f"{last:g}",
        low=f"{low:.4g}",
        high=f"{high if high > low else low + 1:.4g}",
        lines="\n".join(f"  line [{', '.join(f'{loss:.5g}' for loss in line)}]" for line in losses),
    )
    return f"{chart}\n\nGrey: before, blue: now." if BEFORE in drawn else chart


def samples(found: Comparison) -> str:
    """How the model continues prompts, before and now; of each prompt the first strategy that differs."""
    changed = [row for row in sample_rows(found) if row[2][0] != row[2][1]]
    first_by_prompt = {prompt: (prompt, strategy, texts) for prompt, strategy, texts in reversed(changed)}
    chosen = list(reversed(first_by_prompt.values()))[:MAX_SAMPLES]
    return "\n\n".join(
        folded(f"{prompt} ({strategy})", "\n\n".join(map(sample, ("Before", "Now"), (prompt, prompt), texts)))
        for prompt, strategy, texts in chosen
    )


def sample(title: str, prompt: str, text: str) -> str:
    return f"{title}:\n\n{fenced(prompt + text[:MAX_SAMPLE_CHARS])}"


# ------------------------------------------------------------------------------------------------- cost


def costs(ran: Sequence[str], timing: Mapping[str, Mapping[str, float]]) -> Table:
    rows = [
        [stage, duration(figures["seconds"]), f"{figures['peak_memory_bytes'] / 1e6:,.0f} MB", speed(figures)]
        for stage in ran
        if (figures := timing.get(stage))
    ]
    return ["stage", "time", "memory at most", "speed"], rows


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def speed(figures: Mapping[str, float]) -> str:
    return f"{figures['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in figures else ""
