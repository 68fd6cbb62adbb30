"""DVC's queue of experiments, kept going: workers that die are replaced, and what they dropped is noted.

An experiment whose worker was killed runs on by itself, but DVC shows it as running for ever and nobody
collects its result. Here the result is kept; one that was killed with its worker ends as failed.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nima.repository import git, other_processes
from nima.repository.dvc_command import dvc, environment, reason
from nima.repository.revisions import experiment_refs
from nima.workspace.errors import UserError
from nima.workspace.outputs import remove

POLL_SECONDS = 1.0
START_SECONDS = 20.0
"""Until a worker that was started must be there."""
MAX_STARTS = 3
"""How often workers are started anew without an experiment coming to its end."""
TAIL_LINES = 8
MAX_READS = 50
"""How often a file is read again that DVC has not finished writing."""


@dataclass(frozen=True)
class Task:
    """An experiment in the queue, or that was in it."""

    revision: str
    """The commit in which DVC stashed it: its identity in the queue."""
    name: str
    state: str
    """queued, running, done or failed."""


class Queue:
    """The queue of the project in `root`. Reads DVC's files; changes them only through its commands."""

    def __init__(self, root: Path) -> None:
        from dvc.repo import Repo

        self.root = root
        self.folder = root / ".dvc/tmp/exps"
        self.dvc = Repo(str(root)).experiments.celery_queue

    def waiting(self) -> dict[str, Task]:
        """Queued and running tasks by revision."""
        from kombu.exceptions import KombuError

        for _ in range(MAX_READS):
            with contextlib.suppress(OSError, ValueError, KombuError):  # a file half written, or just removed
                # What moves on meanwhile is in the second list: no task is in neither.
                queued = [Task(entry.stash_rev, entry.name, "queued") for entry in self.dvc.iter_queued()]
                running = [Task(entry.stash_rev, entry.name, "running") for entry in self.dvc.iter_active()]
                return {task.revision: task for task in [*queued, *running]}
            time.sleep(POLL_SECONDS / 10)
        folder = self.folder / "celery"
        raise UserError(f"{folder}: DVC's queue can't be read; empty it: dvc queue remove --all")

    def tasks(self, names: dict[str, str]) -> dict[str, Task]:
        """What became of these tasks, given and found by revision."""
        found = self.waiting()
        kept = experiment_refs(self.root)
        for revision in names.keys() - found.keys():
            state = "done" if self.run_of(revision).get("result_ref") in kept else "failed"
            found[revision] = Task(revision, names[revision], state)
        return {revision: found[revision] for revision in names}

    def revisions(self, names: Iterable[str]) -> dict[str, str]:
        """The newest task of each name, as names by revision."""
        found = {}
        for path in sorted(self.folder.glob("run/*/*.run"), key=lambda path: path.stat().st_mtime_ns):
            found[str(self.run_of(path.stem).get("name"))] = path.stem
        found |= {task.name: task.revision for task in self.waiting().values()}
        return {found[name]: name for name in names if name in found}

    def run_of(self, revision: str) -> dict[str, Any]:
        """What DVC noted about a task that was begun."""
        for _ in range(MAX_READS):
            try:
                path = self.folder / "run" / revision / f"{revision}.run"
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                break
            except ValueError:  # half written
                time.sleep(POLL_SECONDS / 10)
        return {}

    def workers(self) -> set[int]:
        """Process numbers of the workers that live."""
        found = set()
        for path in (self.folder / "celery").glob("dvc-exp-worker-*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                process = json.loads(path.read_text(encoding="utf-8"))["pid"]
                if other_processes.is_running(process, "queue-worker"):
                    found.add(process)
        return found

    def abandoned(self) -> list[Task] | None:
        """Running tasks that no living worker answers for; None if workers are too busy to answer."""
        running = [task for task in self.waiting().values() if task.state == "running"]
        workers = self.workers()
        answers = self.dvc.worker_status() if running and workers else {}
        if running and len(answers) < len(workers):
            return None
        kept = {task["args"][0]["stash_rev"] for tasks in answers.values() for task in tasks}
        after = self.waiting()  # what came to its end meanwhile is not abandoned
        return [task for task in running if task.revision not in kept and after.get(task.revision) == task]

    def start(self, jobs: int) -> None:
        """Start workers until there are `jobs`. Raises `UserError`."""
        # Workers inherit what they are given: a pipe would be held open until the last one ends.
        with tempfile.TemporaryFile("w+") as output:
            command = ["dvc", "queue", "start", "--jobs", str(jobs)]
            done = subprocess.run(
                command, cwd=self.root, env=environment(), stdout=output, stderr=output, check=False
            )
            if done.returncode != 0:
                output.seek(0)
                raise UserError(f"dvc queue start: {reason(output.read())}")

    def is_alive(self, task: Task) -> bool:
        """Whether the process that runs the experiment is still at it."""
        info = self.dvc.proc.get(task.revision)
        return info is not None and other_processes.is_running(info.pid, task.revision)

    def settle(self, task: Task) -> None:
        """Do what the worker of an abandoned task would have done at its end: keep the result, clean up."""
        run = self.run_of(task.revision)
        copy, reference = Path(run.get("root_dir") or os.devnull), run.get("result_ref")
        if reference and copy.is_dir():
            git.ask(
                self.root, "fetch", "--quiet", "--no-write-fetch-head", str(copy), f"{reference}:{reference}"
            )
        # DVC would send a signal to the process of that number, which may be a stranger's by now.
        info = self.dvc.proc.get(task.revision)
        if info is not None and info.returncode is None:
            info.returncode = -1
            self.dvc.proc[task.revision] = info
        dvc(self.root, "queue", "kill", task.revision)  # of one without a process, it notes the end
        if copy.parent == self.folder:
            remove(copy)  # its checkpoints are in the main workspace

    def reason(self, task: Task) -> str:
        """Why a task failed, in one line."""
        info = self.dvc.proc.get(task.revision)
        if info is None:
            return "it never began; see the end of .dvc/tmp/exps/celery/dvc-exp-worker-1.out"
        if info.returncode == -1:
            return "it was killed, with its worker"
        if info.returncode < 0:
            return f"it was killed (signal {-info.returncode})"
        return f"exit code {info.returncode}" if info.returncode else "DVC kept no result of it"

    def log(self, task: Task) -> list[str]:
        """The last lines that it printed."""
        info = self.dvc.proc.get(task.revision)
        if info is None or not Path(info.stdout).is_file():
            return []
        text = Path(info.stdout).read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]


def finish(queue: Queue, names: dict[str, str], jobs: int, tell: Callable[[Task], None]) -> list[Task]:
    """Keep up to `jobs` workers going until these tasks (names by revision) are done or failed.

    `tell` hears of each change. Raises `UserError` when workers die again and again.
    """
    told: dict[str, Task] = {}
    crew = Crew(queue, jobs)
    while True:
        began = time.monotonic()
        tasks = queue.tasks(names)
        reading_seconds = time.monotonic() - began
        changed = [task for revision, task in tasks.items() if told.get(revision) != task]
        for task in changed:
            tell(task)
        told = tasks
        waiting = [task for task in tasks.values() if task.state in ("queued", "running")]
        if not waiting:
            return list(tasks.values())
        crew.look_after(waiting, has_advanced=bool(changed))
        time.sleep(max(POLL_SECONDS, 4 * reading_seconds))  # a long queue takes long to read


class Crew:
    """The workers of a queue: replaced when they die, their experiments seen to."""

    def __init__(self, queue: Queue, jobs: int) -> None:
        self.queue = queue
        self.jobs = jobs
        self.known: set[int] | None = None
        self.orphans: set[Task] = set()
        """Experiments that go on though their worker is dead."""
        self.starts = 0
        self.started = -START_SECONDS

    def look_after(self, waiting: list[Task], *, has_advanced: bool) -> None:
        living = self.queue.workers()
        if self.known is None or self.known - living:  # at the beginning, and when one has ended
            abandoned = self.queue.abandoned()
            self.orphans |= set(abandoned or [])
            self.known = self.known if abandoned is None else living
        else:
            self.known = living
        for task in [task for task in self.orphans if not self.queue.is_alive(task)]:
            self.queue.settle(task)
            self.orphans.remove(task)
        if has_advanced:
            self.starts = 0
        is_due = time.monotonic() - self.started >= START_SECONDS
        has_work = any(task.state == "queued" for task in waiting)
        if has_work and is_due and len(living) + len(self.orphans) < min(self.jobs, len(waiting)):
            self.start()

    def start(self) -> None:
        if self.starts == MAX_STARTS:
            logs = self.queue.folder / "celery"
            raise UserError(f"queue workers end as soon as they start; see the end of {logs}/*.out")
        self.queue.start(self.jobs - len(self.orphans))
        self.starts += 1
        self.started = time.monotonic()
