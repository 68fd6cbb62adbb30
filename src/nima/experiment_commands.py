"""Commands that run, check and repeat experiments. Each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nima.workspace.errors import UserError

Jobs = Annotated[int, typer.Option("-j", "--jobs", metavar="N", min=1, help="Experiments at a time.")]


def preflight(
    name: Annotated[str | None, typer.Option("-n", "--name", metavar="NAME", help="Is it free?")] = None,
) -> None:
    """What a queued or temporary experiment would not see or would lose, each with the way out.

    Exits with 2 if something would be lost or the run could not begin, else with 0.
    """
    from nima.experiments.preflight import findings, shell_findings
    from nima.repository.revisions import project_root

    found = findings(project_root(), apart=True, names=[name] if name else []) + shell_findings()
    for finding in sorted(found, key=lambda finding: not finding.blocks):
        print(f"{'stop' if finding.blocks else 'note'}: {finding.line}")  # noqa: T201
    if any(finding.blocks for finding in found):
        raise typer.Exit(UserError.exit_code)
    print("ready: a queued or temporary experiment sees all that it needs")  # noqa: T201


def run(
    targets: Annotated[list[str] | None, typer.Argument(metavar="[STAGE ...]", help="Up to these.")] = None,
    set_param: Annotated[
        list[str] | None,
        typer.Option(
            "-S",
            "--set-param",
            metavar="KEY=VALUE",
            help="A param's value; with --queue also KEY=choice(A,B)"
            " or KEY=range(START,STOP,STEP), every combination of which is run.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "-n", "--name", metavar="NAME", help="Default: the model, the recipe and what is changed."
        ),
    ] = None,
    message: Annotated[
        str | None, typer.Option("-m", "--message", metavar="TEXT", help="Message of its commit.")
    ] = None,
    queue: Annotated[bool, typer.Option("--queue", help="In copies of the project, by workers.")] = False,
    temp: Annotated[bool, typer.Option("--temp", help="In a copy of the project.")] = False,
    jobs: Jobs = 1,
) -> None:
    """Run an experiment with `dvc exp run`, or with --queue a grid of them.

    Wrong values and files that the run would not see stop it before it starts. A queue is waited for; Ctrl-C
    leaves it running. Exits with 0 if all went well, with 1 if an experiment failed.
    """
    from nima.experiments.experiments import Request
    from nima.experiments.experiments import run as run_experiments
    from nima.repository.revisions import project_root

    if queue and temp:
        raise UserError("--queue and --temp: choose one; what is queued runs in copies anyway")
    if jobs > 1 and not queue:
        raise UserError("--jobs: only with --queue")
    place = "queue" if queue else "temp" if temp else "workspace"
    request = Request(set_param or [], targets or [], name, message, place, jobs)
    report(run_experiments(project_root(), request))


def wait(jobs: Jobs = 1) -> None:
    """Go on with the queue of experiments until it is empty, whoever filled it, and show what came out.

    Dead workers are replaced; an experiment whose worker died is noted as failed.
    """
    from nima.experiments.experiments import wait as wait_for_queue
    from nima.repository.revisions import project_root

    outcomes = wait_for_queue(project_root(), jobs)
    if not outcomes:
        print("nothing is queued or running")  # noqa: T201
    else:
        report(outcomes)


def keep(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Its name.")],
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Default: the experiment's name.")] = None,
) -> None:
    """Keep an experiment: a Git tag on its commit, with the params and figures in the message.

    DVC's own references are not cloned, and `dvc exp remove` drops them; a tag is neither lost nor hidden.
    """
    from nima.experiments.experiment_archive import keep as keep_experiment
    from nima.repository.revisions import project_root

    found = keep_experiment(project_root(), experiment, tag)
    print(f"kept as {found}; to share it: git push origin {found}, and dvc push --all-tags for its data")  # noqa: T201


def record(
    revision: Annotated[
        str, typer.Argument(metavar="[REV]", help="Commit, branch, tag or experiment.")
    ] = "HEAD",
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write it to this file instead.")
    ] = None,
) -> None:
    """The plain record of a run as JSON: params, hashes, metrics, times, versions, hardware.

    It is read from the commit by Git alone: neither DVC's cache nor its references are needed.
    """
    import json

    from nima.experiments.experiment_archive import record as record_of
    from nima.reports.web_pages import write_text
    from nima.repository.revisions import project_root

    found = record_of(project_root(), revision)
    text = json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n"
    if file is None:
        print(text, end="")  # noqa: T201
    else:
        write_text("--json", file, text)


def verify(
    revision: Annotated[
        str, typer.Argument(metavar="[REV]", help="Commit, branch, tag or experiment.")
    ] = "HEAD",
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Only this stage.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the clean clone there to look at.")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdict to this file.")] = None,
) -> None:
    """Run a recorded experiment again in a clean clone, and state output by output what is equal.

    Exits with 0 if all outputs are equal, with 1 if one differs, with 2 if that could not be found out.
    """
    import traceback

    from nima.reports.web_pages import write_text
    from nima.repository.revisions import project_root
    from nima.verification.verification import as_json, markdown
    from nima.verification.verification import verify as verify_revision

    try:
        verdict = verify_revision(project_root(), revision, stage, keep=keep)
    except UserError:
        raise
    except Exception:  # Python would exit with 1, and that says "different" here
        traceback.print_exc()
        raise typer.Exit(UserError.exit_code) from None
    print(markdown(verdict), end="")  # noqa: T201
    if json is not None:
        write_text("--json", json, as_json(verdict))
    if not verdict.is_equal:
        raise typer.Exit(1)


def report(outcomes: list[Any]) -> None:
    from nima.experiments.experiments import table

    print(table(outcomes))  # noqa: T201
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)


EXP = (run, wait, preflight, record, keep)
"""The commands of the group `nima exp`."""
