"""The command `nima`: a look at what stages and runs made. Each command imports what it needs when run."""

import sys
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from nima import checkpoint_commands, experiment_commands
from nima.results_commands import compare, report, tune
from nima.workspace.errors import UserError

Source = Annotated[str | None, typer.Option(metavar="NAME", help="Only of this source.")]


def main() -> None:
    """Runs a command, and exits: 0 done, 2 a user's error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        application()()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"nima: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


def application() -> typer.Typer:
    group = partial(typer.Typer, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    inspect = group(help="Look at the data.")
    inspect.command("data")(inspect_data)
    inspect.command("rejected")(inspect_rejected)
    experiments = group(help="Run experiments: checked before they start, queued, waited for, kept.")
    for command in experiment_commands.EXP:
        experiments.command()(command)
    nima = group(help="Language models as reproducible DVC stages.", pretty_exceptions_enable=False)
    nima.add_typer(inspect, name="inspect")
    nima.add_typer(experiments, name="exp")
    nima.command("verify")(experiment_commands.verify)
    remote = group(help="The place where data and models are kept.")
    remote.command("check")(check_remote)
    nima.add_typer(remote, name="remote")
    nima.command("compare")(compare)
    nima.command("report")(report)
    nima.command("tune")(tune)
    nima.command("lr-find")(lr_find)
    nima.add_typer(checkpoint_commands.commands(), name="checkpoint")
    return nima


def inspect_data(
    source: Source = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only in this split: train, validation, test.")
    ] = None,
    id: Annotated[str | None, typer.Option(metavar="ID", help="The document with this id.")] = None,  # noqa: A002
    number: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="From this document on, counted from 0.")
    ] = None,
    random: Annotated[int | None, typer.Option(metavar="SEED", min=0, help="Drawn by chance.")] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many documents.")] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show each token's id.")] = False,
    whitespace: Annotated[bool, typer.Option("--whitespace", help="Show spaces and line ends.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to this file instead.")
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="Signs instead of colours.")] = False,
) -> None:
    """Documents as tokens, and which tokens are trained."""
    from nima.inspection.documents import Choice, TokenizedData

    chosen = Choice(source, split, id, number, random, count)
    documents = TokenizedData().views(chosen, whitespace=whitespace)
    if html is None:
        from nima.inspection import terminal

        terminal.show_documents(terminal.console(colour=not no_color), documents, ids=ids)
    else:
        from nima.inspection.page import write_page

        write_page(html, documents, ids=ids)
        print(f"{html}: {len(documents)} documents")  # noqa: T201


def inspect_rejected(
    source: Source = None,
    reason: Annotated[str | None, typer.Option(metavar="NAME", help="Only rejected for this reason.")] = None,
    count: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many records; reasons are counted over all.")
    ] = 10,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours and weights.")] = False,
) -> None:
    """Records that became no document, why, and how they begin."""
    from nima.inspection import terminal
    from nima.inspection.rejections import rejections

    found = rejections(source, reason, count)
    terminal.show_rejections(terminal.console(colour=not no_color), found)


def check_remote(
    write: Annotated[bool, typer.Option("--write", help="Also write a small object, and remove it.")] = False,
) -> None:
    """Ask DVC's default remote whether it is there and lets you in; what is wrong is one line."""
    from nima.remotes import check
    from nima.repository.revisions import project_root

    print(f"{check(project_root(), writing=write)}: answers")  # noqa: T201


def lr_find() -> None:
    """Suggest a learning rate: short trainings in which it rises, as the section lr_finder of params says.

    Needs the data of `dvc repro split`; touches no stage's outputs. Writes plots/lr_finder and
    metrics/lr_finder.json.
    """
    from nima.lr_finder import record, search, suggestion

    params, rows = search(lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    found = suggestion(rows)
    record(params, rows, found)
    print(f"training.lr: {found.suggested_lr:.2g} (now {params.training.lr:g})")  # noqa: T201
    print(f"the curve: plots/lr_finder/loss.png; to use it: {found.command}")  # noqa: T201


if __name__ == "__main__":
    main()
