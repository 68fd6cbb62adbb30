"""Commands on finished runs. Each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer

HtmlFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page to this file.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours.")]


def compare(
    revisions: Annotated[
        list[str],
        typer.Argument(metavar="A B ...", help="Commits, branches, tags, experiments, or workspace."),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this metric, such as test.loss; may be given again."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=2, help="First repeat each with seeds, as experiments, up to N runs each."
        ),
    ] = None,
    md: Annotated[Path | None, typer.Option(metavar="FILE", help="Write Markdown to this file.")] = None,
    html: HtmlFile = None,
    no_color: NoColor = False,
) -> None:
    """Runs beside the first: params that differ, metrics, curves, samples, and what exceeds the seed's noise.

    Repeats that exist already are used. Less or more is better only where a metric's name says so.
    """
    import sys

    from nima.reports import comparison_views as views
    from nima.reports.comparison import Side, compared
    from nima.reports.repeats import known_repeats, missing_seeds, repeat
    from nima.reports.web_pages import write_text
    from nima.repository.revisions import Revision, project_root

    root = project_root()
    found = [Revision.find(root, name) for name in revisions]
    if seeds is not None:
        for revision in found:  # all are checked before the first costs time
            missing_seeds(revision, seeds)
        for revision in found:
            repeat(revision, seeds, lambda line: print(line, file=sys.stderr))  # noqa: T201
    sides = [Side(revision, [revision, *known_repeats(revision).values()]) for revision in found]
    result = compared(sides, metric or [])
    views.show(result, colour=not no_color)
    for option, path, text in (("--md", md, views.markdown), ("--html", html, views.page)):
        if path is not None:
            write_text(option, path, text(result))


def report(
    revisions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REV ...]", help="Commits, branches, tags, experiments; else the workspace."),
    ] = None,
    html: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("report.html"),
    card: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the first one's model card, for the Hugging Face hub."),
    ] = None,
) -> None:
    """One page on a revision, for somebody who was not there; several are compared too."""
    from nima.reports.report import card_of, report_page
    from nima.reports.web_pages import write_text
    from nima.repository.revisions import WORKSPACE, Revision, project_root

    root = project_root()
    found = [Revision.find(root, name) for name in revisions or [WORKSPACE]]
    write_text("--html", html, report_page(found))
    if card is not None:
        write_text("--card", card, card_of(found[0]))
    print(f"{html}: {', '.join(revision.label for revision in found)}")  # noqa: T201


def tune(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Of the study; its trials are NAME-trial-N.")
    ] = "tune",
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Finished trials in all; else tune.trials of params.yaml."),
    ] = None,
    html: HtmlFile = None,
) -> None:
    """Search for better params, as the section tune of params.yaml says; every trial is an experiment.

    Run it again to continue: trials are kept, an interrupted one goes on. The page is new after each trial.
    """
    import sys

    from nima.reports.web_pages import write_text
    from nima.repository.revisions import project_root
    from nima.tuning.study_page import page, show
    from nima.tuning.tuning import study_folder
    from nima.tuning.tuning import tune as search

    root = project_root()
    path = html or study_folder(root, name) / "study.html"
    tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731, T201
    study = search(root, name, trials, tell, lambda study: write_text("--html", path, page(study)))
    show(study)
    print(f"{path}: the study's page")  # noqa: T201
