"""What would go wrong with an experiment, found before it is started: each thing with the way out."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nima.experiments.unseen import Unseen, unseen_files
from nima.repository import git, other_processes
from nima.repository.revisions import experiment_refs
from nima.workspace.errors import UserError

MAX_FILES = 20
QUEUED = "refs/exps/celery/stash"
COPIES = ".dvc/tmp/exps"


@dataclass(frozen=True)
class Finding:
    blocks: bool
    """The run could not begin, or something would be lost; else it is only good to know."""
    line: str


def findings(root: Path, *, apart: bool, names: Sequence[str] = ()) -> list[Finding]:
    """What stands against an experiment of the project in `root`, called by one of `names`.

    `apart`: it runs in a copy of its own (`--queue`, `--temp`), not in the workspace.
    """
    if not git.is_repository(root):
        line = "not in Git, and experiments are commits: git init, dvc init, git commit; or dvc repro"
        return [Finding(True, line)]
    head = git.head_of(root)
    if head is None:
        return [Finding(True, "no commit yet, and experiments start from one: git add -A, then git commit")]
    found = [*state_of_git(root, head, apart=apart), *locks(root, apart=apart), *left_folders(root)]
    for name in names:
        found += taken_name(root, head, name)
    return [*found, *missing_files(unseen_files(root))] if apart else found


def shell_findings() -> list[Finding]:
    """What only concerns DVC's own commands: `nima exp` finds its programs by itself."""
    if shutil.which("dvc") is None:
        line = "dvc is not on PATH, by which `dvc queue start` starts its workers: activate the environment"
        return [Finding(True, line)]
    return []


def state_of_git(root: Path, head: str, *, apart: bool) -> Iterator[Finding]:
    if not has_identity(root):
        line = "Git doesn't know who you are: git config user.name NAME, git config user.email ADDRESS"
        yield Finding(True, line)
    if (git.ask(root, "rev-parse", "--is-shallow-repository") or "").strip() == "true":
        line = "a shallow clone keeps no result of a queued or temporary run: git fetch --unshallow"
        yield Finding(apart, line)
    if git.ask(root, "symbolic-ref", "--quiet", "HEAD") is None:
        yield Finding(False, f"HEAD is detached at {head[:7]}: fine, the experiment belongs to that commit")
    lock = (git.ask(root, "rev-parse", "--git-path", "index.lock") or "").strip()
    if lock and (root / lock).exists():
        line = f"{lock}: a git or dvc is at work, or one was killed: wait, or if none runs, rm {lock}"
        yield Finding(True, line)


def has_identity(root: Path) -> bool:
    """As DVC sees it: what Git derives from the name of the machine does not count."""
    return all(
        os.environ.get(f"GIT_COMMITTER_{key.upper()}") or git.ask(root, "config", f"user.{key}")
        for key in ("name", "email")
    )


# ------------------------------------------------------------------------------------------ locks


def locks(root: Path, *, apart: bool) -> Iterator[Finding]:
    """Who holds files of the workspace, by DVC's own list, which killed processes stay on."""
    path = root / ".dvc" / "tmp" / "rwlock"
    place = path.relative_to(root)
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        held = [lock.get("write", {}).values(), *lock.get("read", {}).values()]
        holders = {int(entry["pid"]): str(entry["cmd"]) for entries in held for entry in entries}
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        yield Finding(True, f"{place}: damaged, and DVC refuses to work: if none runs, rm {place}")
        return
    for process, command in sorted(holders.items()):
        what = f"`{short(command)}` (process {process})"
        match other_processes.state_of(process, command):
            case "runs":
                line = f"{what} works in this workspace: wait for its end, or use --queue or --temp"
                yield Finding(not apart, line)
            case "gone":
                yield Finding(False, f"{what} was killed; DVC drops its lock by itself")
            case state:
                line = f"{place}: held by {what}, which {state}; DVC takes it for alive: rm {place}"
                yield Finding(not apart, line)


def short(command: str) -> str:
    program, _, rest = command.partition(" ")
    return f"{Path(program).name} {rest}".strip()


def left_folders(root: Path) -> Iterator[Finding]:
    """Copies that killed temporary runs left: `dvc exp show` calls these running for ever."""
    for folder in sorted((root / COPIES / "standalone").glob("tmp*")):
        if not other_processes.is_in_use(folder):
            place = folder.relative_to(root)
            line = f"{place}: left by a killed temporary run, shown as running for ever: rm -rf {place}"
            yield Finding(False, line)


# ------------------------------------------------------------------------------------------ names


def taken_name(root: Path, head: str, name: str) -> Iterator[Finding]:
    """Of a queued or running namesake DVC hears only when the result is in, and then drops the result."""
    if "/" in name or git.ask(root, "check-ref-format", f"refs/exps/{name}") is None:
        yield Finding(True, f"-n {name}: Git takes no such name: use letters, digits, '.', '_' and '-'")
    elif f"refs/exps/{head[:2]}/{head[2:]}/{name}" in experiment_refs(root):
        line = (
            f"-n {name}: this commit has an experiment of that name: choose another, or dvc exp remove {name}"
        )
        yield Finding(True, line)
    elif name in waiting_names(root):
        yield Finding(True, f"-n {name}: is queued or running already: choose another name, or wait")


def waiting_names(root: Path) -> set[str]:
    """Names of queued experiments and of those that run in a folder of their own."""
    reflog = git.ask(root, "log", "--walk-reflogs", "--format=%gs", QUEUED) or ""
    found = {line.rpartition(":")[2] for line in reflog.splitlines()}
    infos = [path for place in ("run", "standalone/run") for path in (root / COPIES / place).glob("*/*.run")]
    for path in infos:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            copy = Path(run["root_dir"])  # one that runs in the workspace has its folder
            if copy.is_relative_to(root / COPIES) and copy.is_dir():
                found.add(run["name"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half written, or removed meanwhile
    return found


# ------------------------------------------------------------------------------------------ files


def missing_files(files: Sequence[Unseen]) -> Iterator[Finding]:
    for file in files[:MAX_FILES]:
        kind, way = ("untracked", f"git add {file.path}")
        if file.is_ignored:
            kind, way = "ignored by Git", f"git add -f {file.path}, or name it in .dvcignore"
        yield Finding(True, f"{file.path}: {kind}, but {file.why}: the run would not see it: {way}")
    if (more := len(files) - MAX_FILES) > 0:
        yield Finding(True, f"and {more} more files that the run would not see: git status -u --ignored")


def check(root: Path, *, apart: bool, names: Sequence[str]) -> list[str]:
    """What is good to know. Raises `UserError` with all that blocks, one a line."""
    found = findings(root, apart=apart, names=names)
    if blocks := [finding.line for finding in found if finding.blocks]:
        raise UserError("\n".join(blocks))
    return [finding.line for finding in found]
