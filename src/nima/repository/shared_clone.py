"""Experiments of one commit in a clone of its own that shares DVC's cache: the workspace is left alone.

Each is a real `dvc exp run`; its result is fetched into the workspace's repository. What was interrupted - by
a signal, or with this process killed - goes on from its checkpoint when it is run again.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nima.repository import git, other_processes
from nima.repository.dvc_command import environment
from nima.repository.revisions import STAGES
from nima.workers.scratch import locked
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.outputs import writing_to
from nima.workspace.signals import StopRequest

POLL_SECONDS = 0.5
# How long a stage may take to save its state and end.
GRACE_SECONDS = 60.0
PR_SET_PDEATHSIG = 1
LEFT_BY_KILLED = (".git/index.lock", ".dvc/tmp/rwlock")


@dataclass(frozen=True)
class SharedClone:
    root: Path
    """The workspace."""
    place: Path
    project: Path
    """The project's folder in the clone."""
    commit: str

    @property
    def baseline(self) -> str:
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}"

    def reset(self) -> None:
        git.output(self.place, "reset", "--quiet", "--hard", self.commit)

    def run(
        self,
        name: str,
        settings: Sequence[str],
        log: Path,
        stop: StopRequest,
        is_hopeless: Callable[[int], bool] | None = None,
    ) -> bool:
        """Run the experiment, with params set to KEY=VALUE; whether it got to its end.

        `is_hopeless` is asked twice a second, with DVC's process id, whether to stop the run. Raises
        `Interrupted` after a stop signal.
        """
        ref = f"{self.baseline}/{name}"
        if not git.output(self.place, "for-each-ref", ref):
            self.reset()
            # Without --force: it would also run the stages whose results the cache holds.
            words = ["exp", "run", "--name", name]
            words += [word for text in settings for word in ("--set-param", text)]
            if not self.watch(words, log, stop, is_hopeless):
                return False
        git.output(self.root, "fetch", "--quiet", "--no-write-fetch-head", str(self.place), f"+{ref}:{ref}")
        return True

    def watch(
        self, words: Sequence[str], log: Path, stop: StopRequest, is_hopeless: Callable[[int], bool] | None
    ) -> bool:
        with self.started(words, log) as process:
            while process.poll() is None:
                if stop or (is_hopeless and is_hopeless(process.pid)):
                    end(process)
                    wait_until_unused(self.project)
                    stop.check("the runs that finished are kept, this one's progress is saved")
                    return False
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        stop.check("the runs that finished are kept")
        return process.returncode == 0

    @contextmanager
    def started(self, words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """DVC in a session of its own, so that a terminal's Ctrl-C reaches this process alone."""
        libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None

        def end_with_parent() -> None:
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", *words],
                cwd=self.project,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
            try:
                yield process
            finally:
                if process.poll() is None:  # a second Ctrl-C
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def environment(self) -> dict[str, str]:
        """This process's, with the workspace's identity and the packages that are here already."""
        foreign = ("DVC_EXP", "DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX")
        settings = {key: value for key, value in environment().items() if not key.startswith(foreign)}
        return identity(self.root) | settings | {"NIMA_CACHE": str(runtime.load(self.root).packages)}

    def forget_experiments(self) -> None:
        """Remove those of this commit that the clone has."""
        for ref in git.output(self.place, "for-each-ref", "--format=%(refname)", self.baseline).split():
            git.output(self.place, "update-ref", "-d", ref)

    def forget_progress(self) -> None:
        """Remove the checkpoints of runs that nobody will continue."""
        shutil.rmtree(self.project / ".nima" / "checkpoints", ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the running stage to stop: it saves its state, and DVC ends as with any stage that failed."""
    stages = other_processes.descendants(process.pid, [f"stages.{name}" for name in STAGES])
    for stage in stages:
        with suppress(ProcessLookupError):
            os.kill(stage, signal.SIGTERM)
    if not stages:
        process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_unused(project: Path) -> None:
    """Wait for stages whose DVC is gone. Raises `UserError` if they don't end."""
    deadline = time.monotonic() + GRACE_SECONDS
    while other_processes.is_in_use(project):
        if time.monotonic() > deadline:
            raise UserError(
                f"{project}: a process of an earlier run still works there; end it, then run again"
            )
        time.sleep(POLL_SECONDS)


@contextmanager
def shared_clone(root: Path, commit: str, folder: Path) -> Iterator[SharedClone]:
    """The clone in `folder`, which only one process uses at a time; what it holds already is used again."""
    if git.output(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise UserError("this clone is shallow, its commits can't be cloned further: git fetch --unshallow")
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as holder:
        if holder is not None:
            raise UserError(f"{folder}: process {holder} works here already; wait for its end")
        place = folder / "project"
        project = place / git.output(root, "rev-parse", "--show-prefix").strip()
        clone = SharedClone(root, place, project, commit)
        wait_until_unused(place)
        prepare(clone)
        yield clone


def prepare(clone: SharedClone) -> None:
    if not (clone.place / ".git").exists():
        top = git.output(clone.root, "rev-parse", "--show-toplevel").strip()
        git.output(clone.root, "clone", "--quiet", "--shared", "--no-checkout", top, str(clone.place))
    for path in LEFT_BY_KILLED:
        (clone.place / path).unlink(missing_ok=True)
        (clone.project / path).unlink(missing_ok=True)
    clone.reset()
    cache = runtime.dvc_cache_of(clone.root).resolve()
    with writing_to(clone.project):
        (clone.project / ".dvc" / "config.local").write_text(
            f"[cache]\n    dir = {cache}\n", encoding="utf-8"
        )
        if (clone.root / ".env").exists() and not (clone.project / ".env").exists():
            (clone.project / ".env").symlink_to(clone.root / ".env")


def identity(root: Path) -> dict[str, str]:
    """Git's variables for the author that the workspace's own settings name."""
    found: dict[str, str] = {}
    for key, name in (("user.name", "NAME"), ("user.email", "EMAIL")):
        with suppress(UserError):
            value = git.output(root, "config", key).strip()
            found |= {f"GIT_AUTHOR_{name}": value, f"GIT_COMMITTER_{name}": value}
    return found


def reason_of(log: Path) -> str:
    """The line that says best why the run failed: the stage's own, else DVC's."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(tuple(f"{name}: " for name in STAGES))]
    own = [line for line in own if ": done in " not in line]
    raised = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (own or raised or errors or lines or ["no reason given"])[-1]
