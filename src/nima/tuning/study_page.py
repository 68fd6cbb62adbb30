"""A study on one page, for the browser, and in a table, for the terminal."""

import sys

from nima.reports.comparison import ABSENT
from nima.reports.web_pages import rendered
from nima.tuning.search_space import Value, written
from nima.tuning.study import FINISHED, Record, Study
from nima.tuning.study_charts import curves, history, importances, parallel_coordinates, slices

MAX_TERMINAL_ROWS = 12
Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


def trial_table(study: Study) -> Table:
    """The best first, then those without a value."""
    sign = -1 if study.is_more_better else 1
    keys = [dimension.key for dimension in study.space]
    records = [found for found in study.records() if found.state != "waiting"]
    records.sort(key=lambda found: (found.value is None, sign * (found.value or 0.0), found.number))
    rows = [
        [
            str(found.number),
            f"{found.value:.4f}" if found.value is not None else ABSENT,
            *(cell(found.params, key) for key in keys),
            found.state,
            f"{found.seconds:.0f}" if found.seconds is not None else ABSENT,
            found.reason,
        ]
        for found in records
    ]
    return ["trial", study.tune.metric, *keys, "state", "seconds", "note"], rows


def cell(params: dict[str, Value], key: str) -> str:
    return written(params[key]) if key in params else ABSENT


def cards(study: Study) -> list[tuple[str, str]]:
    """Figure and what it is."""
    records, best = study.records(), study.best()
    found = []
    if best is not None:
        found += [(f"{best.value:.4f}", f"best {study.tune.metric}"), (str(best.number), "its trial")]
    first = present(study)
    if first is not None and first.value is not None:
        found.append((f"{first.value:.4f}", "trial 0: params as they were"))
    for state in FINISHED:
        if number := sum(record.state == state for record in records):
            found.append((str(number), f"trials {state}"))
    seconds = sum(record.seconds or 0.0 for record in records)
    return [*found, (f"{seconds / 60:,.0f}", "minutes of all trials")]


def present(study: Study) -> Record | None:
    """The first trial, if it had the params as they were before the search."""
    return study.records()[0] if study.starts_from_present else None


def commands(study: Study) -> str:
    best = study.best()
    if best is None:
        return "# No trial has finished yet."
    if best.number == 0 and study.starts_from_present:
        return "# The params as they were did best so far: nothing to apply."
    name = f"{study.name}-trial-{best.number:03d}"
    commit = study.commit[:7]
    return (
        f"nima compare {commit} {name} --seeds 3   # is it better, or is it the seed?\n"
        f"dvc exp apply {name}                     # its params and outputs into the workspace"
    )


def page(study: Study) -> str:
    return rendered(
        "study.html",
        study=study,
        space=(
            ["param", "searched"],
            [[dimension.key, dimension.text()] for dimension in study.space],
        ),
        cards=cards(study),
        overview=[
            chart
            for chart in (history(study), importances(study), parallel_coordinates(study), curves(study))
            if chart
        ],
        slices=slices(study),
        trials=trial_table(study),
        commands=commands(study),
    )


def show(study: Study) -> None:
    """The best trials and what to do with them."""
    from nima.reports.comparison_views import terminal_console, terminal_table

    out = terminal_console()
    heads, rows = trial_table(study)
    out.print(terminal_table(f"Study {study.name}", heads, rows[:MAX_TERMINAL_ROWS]))
    if len(rows) > MAX_TERMINAL_ROWS:
        out.print(f"{len(rows)} trials in all: the page has them.", markup=False)
    print(commands(study), file=sys.stdout)  # noqa: T201
