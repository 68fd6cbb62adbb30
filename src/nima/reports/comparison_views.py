"""A comparison for the terminal, as Markdown and as a page."""

from typing import Any

from markupsafe import Markup

from nima.reports.charts import Line, line_chart
from nima.reports.comparison import ABSENT, CURVES, Comparison, difference_text
from nima.reports.web_pages import rendered

MAX_TERMINAL_SAMPLES = 3
MAX_TERMINAL_CHARS = 160
MAX_CURVE_ROWS = 12

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


def param_table(comparison: Comparison) -> Table:
    rows = [[key, *texts] for key, texts in comparison.params]
    return ["param", *(side.label for side in comparison.sides)], rows


def metric_table(comparison: Comparison) -> Table:
    first, *others = comparison.sides
    heads = ["metric", "", first.label]
    for side in others:
        heads += [side.label, "difference", "verdict"]
    rows = []
    for row in comparison.metrics:
        cells = [row.name, row.goal, row.cells()[0]]
        for cell, found, verdict in list(zip(row.cells(), row.differences, row.verdicts(), strict=True))[1:]:
            cells += [cell, difference_text(found), verdict or ABSENT]
        rows.append(cells)
    return heads, rows


def curve_table(comparison: Comparison, name: str) -> Table:
    """A curve's values by step, evenly thinned out."""
    curves = [dict(side.revision.curve(name)) for side in comparison.sides]
    steps = sorted({step for curve in curves for step in curve})
    kept = steps[:: -(-len(steps) // MAX_CURVE_ROWS) or 1]
    kept += [step for step in steps[-1:] if step not in kept]
    rows = [
        [f"{step:g}", *(f"{curve[step]:.4f}" if step in curve else ABSENT for curve in curves)]
        for step in kept
    ]
    return ["step", *(side.label for side in comparison.sides)], rows


def sample_rows(comparison: Comparison) -> list[tuple[str, str, list[str]]]:
    """Prompt, strategy and each side's text."""
    texts: list[dict[tuple[str, str], str]] = [
        {(sample["prompt"], sample["strategy"]): sample["text"] for sample in side.revision.samples}
        for side in comparison.sides
    ]
    keys = dict.fromkeys(key for side in texts for key in side)
    return [
        (prompt, strategy, [side.get((prompt, strategy), ABSENT) for side in texts])
        for prompt, strategy in keys
    ]


# --------------------------------------------------------------------------------------------- terminal


def show(comparison: Comparison, *, colour: bool = True) -> None:
    out = terminal_console(colour=colour)
    heads, rows = param_table(comparison)
    out.print(terminal_table("Params that differ", heads, rows) if rows else "Params: none differ")
    heads, rows = metric_table(comparison)
    out.print(terminal_table("Metrics", heads, rows) if rows else "Metrics: none")
    samples = sample_rows(comparison)
    if samples:
        heads = ["prompt", "strategy", *(side.label for side in comparison.sides)]
        shown = [[prompt, strategy, *map(shortened, texts)] for prompt, strategy, texts in samples]
        out.print(terminal_table("Samples", heads, shown[:MAX_TERMINAL_SAMPLES]))
    if len(samples) > MAX_TERMINAL_SAMPLES:
        out.print(f"{len(samples)} samples in all: --md and --html show them, and the curves.", markup=False)
    for line in [comparison.note, *comparison.absent()]:
        out.print(line, markup=False, soft_wrap=True)


def terminal_console(*, colour: bool = True) -> Any:
    import sys

    from rich.console import Console

    # What is piped into a file or a program keeps its lines whole.
    width = None if sys.stdout.isatty() else 400
    return Console(highlight=False, no_color=None if colour else True, width=width)


def terminal_table(title: str, heads: list[str], rows: list[list[str]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
    return table


def style_of(cell: str) -> str:
    styles = {"better, beyond the noise": "bold green", "worse, beyond the noise": "bold red"}
    return styles.get(cell, "dim" if cell == "within the noise" else "")


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TERMINAL_CHARS else f"{line[: MAX_TERMINAL_CHARS - 1]}…"


# --------------------------------------------------------------------------------------------- Markdown


def markdown(comparison: Comparison) -> str:
    lines = [f"# {' against '.join(side.label for side in comparison.sides)}", ""]
    lines += ["## Params that differ", "", *markdown_table(param_table(comparison))]
    lines += ["## Metrics", "", *markdown_table(metric_table(comparison)), comparison.note, ""]
    for title, (name, unit) in CURVES.items():
        lines += [f"## {title} ({unit})", "", *markdown_table(curve_table(comparison, name))]
    lines += ["## Samples", ""]
    for prompt, strategy, texts in sample_rows(comparison):
        heads = [side.label for side in comparison.sides]
        lines += [f"Prompt **{markdown_cell(prompt)}**, {strategy}:", "", *markdown_table((heads, [texts]))]
    lines += [f"- {line}" for line in comparison.absent()]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> list[str]:
    heads, rows = table
    if not rows:
        return ["None.", ""]
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(map(markdown_cell, line))} |" for line in lines] + [""]


def markdown_cell(text: str) -> str:
    """One line that no sign in it breaks out of."""
    if text == "---":
        return text
    for sign, written in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("*", "\\*"),
    ):
        text = text.replace(sign, written)
    return "<br>".join(text.strip().splitlines()) or " "


# ------------------------------------------------------------------------------------------------- page


def page(comparison: Comparison) -> str:
    return rendered(
        "comparison.html",
        comparison=comparison,
        params=param_table(comparison),
        metrics=metric_table(comparison),
        charts=charts(comparison),
        samples=sample_rows(comparison),
    )


def charts(comparison: Comparison) -> list[Markup]:
    drawn = [
        line_chart(title, "step (updates)", unit, lines(comparison, name))
        for title, (name, unit) in CURVES.items()
    ]
    return [chart for chart in drawn if chart]


def lines(comparison: Comparison, name: str) -> list[Line]:
    """A side's own curve with its name, its repeats thin in the same colour."""
    return [
        Line(side.label, run.curve(name), colour, in_legend=run is side.revision)
        for colour, side in enumerate(comparison.sides)
        for run in side.runs
    ]
