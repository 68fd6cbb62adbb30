"""The same revision again with other seeds, each a real `dvc exp run` in a clone that shares DVC's cache.

An experiment COMMIT-seed-N on top of the commit it repeats holds the result, so that it is found again, is
shown by `dvc exp list -A` and can be pushed. The clone is in .nima/repeats; an interrupted one is continued.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nima import runtime
from nima.errors import UserError
from nima.outputs import writing_to
from nima.revisions import SHORT, Revision, experiment_refs, git
from nima.scratch import locked

SEED = "training.seed"


def known_repeats(revision: Revision) -> dict[int, Revision]:
    """Repeats that exist, by seed."""
    if revision.is_workspace:
        return {}
    start = f"{baseline(revision)}/{repeat_name(revision, '')}"
    refs = {ref: commit for ref, commit in experiment_refs(revision.root).items() if ref.startswith(start)}
    found = {}
    for ref, commit in refs.items():
        if (seed := ref.removeprefix(start)).isdecimal():
            found[int(seed)] = Revision(revision.root, ref.rsplit("/", 1)[1], commit)
    return dict(sorted(found.items()))


def baseline(revision: Revision) -> str:
    return f"refs/exps/{revision.commit[:2]}/{revision.commit[2:]}"


def repeat_name(revision: Revision, seed: int | str) -> str:
    return f"{revision.commit[:SHORT]}-seed-{seed}"


def missing_seeds(revision: Revision, num_seeds: int) -> list[int]:
    """Seeds after the revision's own that are yet to run. Raises `UserError` if it can't be repeated."""
    if revision.is_workspace:
        raise UserError("--seeds: the workspace is no commit; commit it, or name an experiment or HEAD")
    own = revision.params.get(SEED)
    if not isinstance(own, int):
        raise UserError(f"{revision.name}: params.yaml there has no number {SEED}, so no seed can be changed")
    known = known_repeats(revision)
    return [seed for seed in range(own + 1, own + num_seeds) if seed not in known]


def repeat(revision: Revision, num_seeds: int, tell: Callable[[str], None]) -> None:
    """Run what is missing so that the revision has runs with `num_seeds` seeds, its own one included."""
    if not (seeds := missing_seeds(revision, num_seeds)):
        return
    if git(revision.root, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise UserError("--seeds: this clone is shallow, its commits can't be cloned: git fetch --unshallow")
    folder = runtime.load(revision.root).scratch / "repeats" / revision.commit[:12]
    with alone_in(folder) as lock:
        clone = folder / "project"
        prepare_clone(revision, clone)
        for number, seed in enumerate(seeds, start=1):
            tell(f"{revision.label}: run {number} of {len(seeds)}, {SEED} {seed} (log: {folder / 'log'})")
            run_with_seed(revision, clone, seed, folder / "log", lock)
        shutil.rmtree(folder)


@contextmanager
def alone_in(folder: Path) -> Iterator[IO[str]]:
    """Gives the lock that tells of a working DVC: it inherits the lock, and may outlive this process."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as holder, (folder / "dvc.lock").open("w", encoding="utf-8") as lock:
        if holder is not None:
            raise UserError(f"{folder}: process {holder} repeats this revision already; wait for its end")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = "a dvc exp run still works here, though what started it is gone; wait for its end"
            raise UserError(f"{folder}: {message}") from None
        yield lock


def prepare_clone(revision: Revision, clone: Path) -> None:
    """The revision's files in a repository of its own, with the same DVC cache and runtime settings."""
    if not (clone / ".git").exists():
        git(revision.root, "clone", "--quiet", "--shared", "--no-checkout", str(revision.root), str(clone))
    git(clone, "reset", "--quiet", "--hard", revision.commit)
    cache = runtime.dvc_cache_of(revision.root).resolve()
    with writing_to(clone):
        (clone / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")
        if (revision.root / ".env").exists() and not (clone / ".env").exists():
            (clone / ".env").symlink_to(revision.root / ".env")


def run_with_seed(revision: Revision, clone: Path, seed: int, log: Path, lock: IO[str]) -> None:
    git(clone, "reset", "--quiet", "--hard", revision.commit)
    name = repeat_name(revision, seed)
    command = ["exp", "run", "--force", "--name", name, "--set-param", f"{SEED}={seed}"]
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command],
            cwd=clone,
            env=environment(revision),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            pass_fds=[lock.fileno()],
        )
    if done.returncode:
        lines = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        raise UserError(
            f"{revision.name} with {SEED} {seed}: dvc exp run failed: {last_reason(lines)}; all of it: {log}"
        )
    ref = f"{baseline(revision)}/{name}"
    git(revision.root, "fetch", "--quiet", "--no-write-fetch-head", str(clone), f"+{ref}:{ref}")


def last_reason(lines: list[str]) -> str:
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ")


def environment(revision: Revision) -> dict[str, str]:
    """This process's, with its own Python first and the packages that are here already."""
    settings = {
        key: value for key, value in os.environ.items() if not key.startswith(("DVC_EXP", "DVC_ROOT"))
    }
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    identity: dict[str, str] = {}
    for key, name in (("user.name", "NAME"), ("user.email", "EMAIL")):
        try:
            value = git(revision.root, "config", key).strip()
        except UserError:
            continue
        identity |= {f"GIT_AUTHOR_{name}": value, f"GIT_COMMITTER_{name}": value}
    packages = str(runtime.load(revision.root).packages)
    return identity | settings | {"PATH": programs, "NIMA_CACHE": packages}
