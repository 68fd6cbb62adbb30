"""What CI does with a pushed change: `.ci/repro`, or `python -m nima.ci` in the project's root.

Run what the change touches; put data on the remote, then its record into Git; say what came of it. On a
commit that has its results nothing runs and nothing is committed: a run's own push starts no endless round.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from nima import remotes
from nima.ci import comment, pipeline, repository
from nima.ci.comment import Results
from nima.ci.forge import Laptop, forge_of, without_secrets
from nima.reports import comparison_views
from nima.reports.comparison import Comparison
from nima.workspace.errors import Interrupted, UserError

FOLDER = Path(".nima/ci")
"""The comment and the page that goes with it, git-ignored."""
ROUNDS = 3


def main() -> None:
    """Exits: 0 done, 1 a stage failed, 2 a user's error, 3 interrupted."""
    options = parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for key in [key for key, value in os.environ.items() if key.startswith("AWS_") and not value]:
        del os.environ[key]  # what CI sets from a secret that is not there
    place, source, exit_code = forge_of(os.environ), repository.commit_of("HEAD"), 0
    try:
        run = story(options, place)
    except UserError as error:
        say(str(error))
        text, commit, exit_code = comment.failure(error, source, place), source, error.exit_code
    else:
        text, commit = results(run, place), run.head if run.is_news else None
    tell(text, commit, place)
    sys.exit(exit_code)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog=".ci/repro", description="Run what changed, and push the results.")
    options.add_argument("--base", metavar="REV", help="commit to compare with (default: the one before)")
    options.add_argument("--branch", metavar="NAME", help="branch that gets the results (default: this one)")
    return options


def stop(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}; run again to continue")


def story(options: argparse.Namespace, place: Laptop) -> Results:
    pipeline.refuse_busy()
    repository.refuse_unusable()
    repository.deepen()
    branch = repository.branch_to_push(options.branch or place.branch())
    base = repository.compared_with(options.base or place.reference())
    repository.refuse_no_push(branch)
    say(f"the remote answers: {remotes.check(Path.cwd(), writing=True)}")
    aside = None
    for _ in range(ROUNDS):
        source, has_results = repository.git("rev-parse", "HEAD"), repository.is_result_of_parent()
        pipeline.fetch_inputs(discard=place.discards_unsaved)
        done = pipeline.reproduce()
        if done.ran and has_results:
            again = ", ".join(done.ran)
            raise UserError(f"{again} ran again on the commit of their results; do they change their input?")
        pipeline.store()
        if not repository.commit_results(done.ran) or repository.push_results(branch):
            if aside and repository.drop_if_equal(aside):
                aside = None
            head = repository.git("rev-parse", "HEAD")
            return Results(base, source, head, done, aside, is_news=not has_results or head != source)
        aside = repository.put_aside()
        repository.begin_again(aside)
    raise UserError(f"{branch} got other results {ROUNDS} times in a row; these are on the branch {aside}")


def results(run: Results, place: Laptop) -> str:
    """The comment on a run that went through; beside it, a page with charts and all samples."""
    found: Comparison | str
    try:
        found = comment.comparison_of(run) or "Params and results are the same in both."
    except UserError as error:  # the commit to compare with may be anything; the results stand
        found = f"No comparison: {error}"
    if not isinstance(found, str):
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "comparison.html").write_text(comparison_views.page(found), encoding="utf-8")
    return comment.results(run, found, place)


def tell(text: str, commit: str | None, place: Laptop) -> None:
    """Leave the comment as a file, and show it at the commit's discussion, if any."""
    text = without_secrets(text, os.environ)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "comment.md").write_text(text, encoding="utf-8")
    say(f"written: {FOLDER / 'comment.md'}")
    if commit:
        try:
            place.comment(text, commit)
        except UserError as error:  # the results are in place, and only this is not
            say(f"no comment: {error}")


def say(line: str) -> None:
    print(f"ci: {line}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
