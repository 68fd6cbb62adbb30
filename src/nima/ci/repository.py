"""The Git side of a CI run: what is checked out, what it is compared with, and how results get back."""

import os
import subprocess
from collections.abc import Sequence

from nima.workspace.errors import UserError
from nima.workspace.metrics import TIMING

ORIGIN = "origin"
RESULTS_OF = "Results-of"
"""Trailer of a commit of results: the commit that was run."""
ASIDE = "results/"
"""Branches of results that another push overtook, by commit."""
RESULTS = ("dvc.lock", "metrics", "plots")
UNCHANGED_CLOCK = f":(exclude){TIMING.as_posix()}"
PUSHES = 3
NOBODY = {"user.name": "Nima CI", "user.email": "nima-ci@localhost"}
"""Who commits on a machine where nobody has told Git who they are."""


def git(*arguments: str) -> str:
    """What the command prints. Raises `UserError` with what Git says is wrong."""
    done = attempt(*arguments)
    if done.returncode != 0:
        raise UserError(f"git {arguments[0]}: {complaint(done.stderr)}")
    return done.stdout.strip()


def attempt(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Without a terminal Git must fail, not ask for a password.
    env = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return subprocess.run(["git", *arguments], env=env, capture_output=True, text=True, check=False)


def complaint(stderr: str) -> str:
    """The first line that names an error, else the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(("fatal:", "error:", "remote:", "!"))]
    return (named or lines[-1:] or ["failed without a word"])[0]


def commit_of(revision: str) -> str | None:
    done = attempt("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    return done.stdout.strip() if done.returncode == 0 else None


# ------------------------------------------------------------------------------------- before the work


def refuse_unusable() -> None:
    """What must hold before hours of work. Raises `UserError`."""
    if attempt("rev-parse", "--git-dir").returncode != 0:
        raise UserError("no Git repository here; results go back with git push, so start in a clone")
    if commit_of("HEAD") is None:
        raise UserError("no commit yet; commit the project first")
    if attempt("remote", "get-url", ORIGIN).returncode != 0:
        raise UserError(f"no Git remote {ORIGIN!r} to push results to; git remote add {ORIGIN} URL")
    status = attempt("status", "--porcelain", "--", ".", UNCHANGED_CLOCK).stdout.splitlines()
    if status:
        names = ", ".join(line[3:] for line in status[:5]) + (" …" if len(status) > 5 else "")
        raise UserError(f"not committed: {names}; results belong to a commit, so commit or stash these first")


def deepen() -> None:
    """A shallow clone has neither the commit to compare with nor what a push builds on."""
    if git("rev-parse", "--is-shallow-repository") == "true":
        git("fetch", "--quiet", "--unshallow", ORIGIN)


def branch_to_push(named: str | None) -> str:
    """The named branch, else the one that is checked out, else the only one at origin that is here."""
    if named:
        return named
    current = attempt("symbolic-ref", "--quiet", "--short", "HEAD").stdout.strip()
    if current:
        return current
    prefix = f"refs/remotes/{ORIGIN}/"
    heads = git("for-each-ref", "--points-at=HEAD", "--format=%(refname)", prefix).split()
    names = [head.removeprefix(prefix) for head in heads if head != f"{prefix}HEAD"]
    if len(names) == 1:
        return names[0]
    found = " and ".join(names) or "none"
    raise UserError(f"detached head: which branch gets the results ({found} at {ORIGIN} fits)? --branch NAME")


def refuse_no_push(branch: str) -> None:
    """A push that would not be let in is known before the work; that the branch has moved on is no reason."""
    done = attempt("push", "--dry-run", "--porcelain", ORIGIN, f"HEAD:refs/heads/{branch}")
    if done.returncode != 0 and "[rejected]" not in done.stdout:
        raise UserError(f"can't push to {ORIGIN}: {complaint(done.stderr)}")


def compared_with(named: str | None) -> str:
    """Where the named commit and this one part. The commit before this one, if there is no such place."""
    if named and commit_of(named):
        parted = attempt("merge-base", named, "HEAD").stdout.strip()
        if parted and parted != commit_of("HEAD"):
            return parted
    return commit_of("HEAD~1") or git("rev-parse", "HEAD")


def have_equal_results(one: str, other: str) -> bool:
    return attempt("diff", "--quiet", one, other, "--", "dvc.lock", "params.yaml").returncode == 0


# -------------------------------------------------------------------------------------- after the work


def is_result_of_parent() -> bool:
    """Whether this commit holds the results of the one before it, and nothing else."""
    trailer = git("log", "-1", f"--format=%(trailers:key={RESULTS_OF},valueonly)")
    return bool(trailer) and trailer == commit_of("HEAD~1")


def commit_results(stages: Sequence[str]) -> bool:
    """Commit what the run changed in Git's own files; False if that is nothing but clock figures."""
    git("add", "--update")
    git("add", "--all", "--", *(name for name in RESULTS if os.path.exists(name)))  # noqa: PTH110
    if attempt("diff", "--cached", "--quiet", "--", ".", UNCHANGED_CLOCK).returncode == 0:
        git("reset", "--quiet")
        return False
    source = git("rev-parse", "HEAD")
    subject = f"Results of {source[:9]}: {', '.join(stages) or 'from the run cache'}"
    git(*identity(), "commit", "--quiet", "-m", subject, "-m", f"{RESULTS_OF}: {source}")
    return True


def identity() -> list[str]:
    unset = [key for key in NOBODY if not attempt("config", key).stdout.strip()]
    return [option for key in unset for option in ("-c", f"{key}={NOBODY[key]}")]


def push_results(branch: str) -> bool:
    """Puts the commit of results on top of the branch at origin; False if that got other results meanwhile.

    Commits that came in between go under the results, whose record in dvc.lock says what they are results of.
    Two records are never merged: line by line, Git would make up one that no run stands behind.
    """
    for _ in range(PUSHES):
        done = attempt("push", "--porcelain", ORIGIN, f"HEAD:refs/heads/{branch}")
        if done.returncode == 0:
            return True
        if "[rejected]" not in done.stdout:
            head = git("rev-parse", "--short", "HEAD")
            raise UserError(
                f"{ORIGIN} does not take the results: {complaint(done.stderr)}; they are committed here as "
                f"{head} and their data is on the remote, so a run that may push repeats no stage"
            )
        git("fetch", "--quiet", ORIGIN, f"refs/heads/{branch}")
        parted = git("merge-base", "HEAD", "FETCH_HEAD")
        if attempt("diff", "--quiet", parted, "FETCH_HEAD", "--", "dvc.lock").returncode != 0:
            return False
        if attempt(*identity(), "rebase", "--quiet", "FETCH_HEAD").returncode != 0:
            git("rebase", "--abort")
            return False
    return False


def put_aside() -> str:
    """The commit of results as a branch of its own at origin, so that it stays whatever happens next."""
    name = f"{ASIDE}{git('rev-parse', '--short=9', 'HEAD')}"
    git("push", "--quiet", ORIGIN, f"HEAD:refs/heads/{name}")
    return name


def begin_again(aside: str) -> None:
    """Back to what was to be run, on top of what origin has now."""
    git("reset", "--hard", "--quiet", "HEAD~1")
    if attempt(*identity(), "rebase", "--quiet", "FETCH_HEAD").returncode != 0:
        git("rebase", "--abort")
        raise UserError(f"{ORIGIN} has moved on and does not fit together with this; results: branch {aside}")


def drop_if_equal(aside: str) -> bool:
    """Removes a branch whose results have become those of this commit as well."""
    if attempt("diff", "--quiet", aside.removeprefix(ASIDE), "HEAD", "--", "dvc.lock").returncode != 0:
        return False
    git("push", "--quiet", ORIGIN, "--delete", aside)
    return True
