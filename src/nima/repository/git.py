"""Git: questions about the project, which change nothing, and other commands."""

import subprocess
from pathlib import Path

from nima.workspace.errors import UserError


def ask(root: Path, *arguments: str) -> str | None:
    """What `git ARGUMENTS` prints, or None if it says no. Raises `UserError` without Git."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except FileNotFoundError:
        raise UserError("git: not found on PATH; install it: experiments are commits") from None
    return done.stdout if done.returncode == 0 else None


def output(root: Path, *arguments: str) -> str:
    """What `git ARGUMENTS` prints. Raises `UserError` with Git's last line if it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git: not found on PATH; install it: experiments are commits") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"git {arguments[0]}: {reason}")
    return done.stdout


def paths(root: Path, *arguments: str) -> list[str]:
    """The files that a listing with -z names."""
    return [name for name in (ask(root, *arguments) or "").split("\0") if name]


def is_repository(root: Path) -> bool:
    return ask(root, "rev-parse", "--git-dir") is not None


def head_of(root: Path) -> str | None:
    """The commit that HEAD stands for; None before the first."""
    return (ask(root, "rev-parse", "--verify", "--quiet", "HEAD") or "").strip() or None


def text_at(root: Path, commit: str, path: str) -> str | None:
    """A file at a commit, its path relative to the project's folder; None if it isn't there."""
    return ask(root, "show", f"{commit}:./{path}")
