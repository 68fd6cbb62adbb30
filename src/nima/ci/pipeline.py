"""The DVC side of a CI run: what it needs, what it runs, and what must be on the remote afterwards."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nima.experiments import preflight
from nima.remotes import open_project
from nima.workspace.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo

MAX_TAIL_LINES = 30
MAX_NAMES = 5
RUNNING = re.compile(r"Running stage '([^']+)'")
RESTORED = re.compile(r"Stage '([^']+)' is cached")


@dataclass
class Reproduction:
    """What `dvc repro` did."""

    ran: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    """Stages whose outputs came from the run cache."""
    tail: list[str] = field(default_factory=list)
    """The last lines that were printed, of the last stage."""

    def note(self, line: str) -> None:
        if found := RUNNING.match(line):
            self.ran.append(found[1])
            self.tail.clear()
        elif found := RESTORED.match(line):
            self.restored.append(found[1])
        elif line:
            self.tail = [*self.tail, line][-MAX_TAIL_LINES:]


class StageFailed(UserError):  # noqa: N818 - a stage's failure, by its own name
    """`dvc repro` did not get through."""

    exit_code = 1

    def __init__(self, problem: str, done: Reproduction) -> None:
        super().__init__(problem)
        self.done = done


def dvc(*arguments: str) -> str:
    """What the command prints. Raises `UserError` with what DVC says is wrong."""
    done = subprocess.run(["dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"dvc {arguments[0]}: {complaint(done.stderr)}")
    return done.stdout


def complaint(output: str) -> str:
    """DVC's errors as one line, or what to do about another DVC at work in the same folder."""
    if "is busy" in output or "Unable to acquire lock" in output:
        return "another DVC runs in this folder; wait for its end"
    lines = output.splitlines()
    if "unsaved files" in output:
        names = ", ".join(relative(line) for line in lines if line.startswith("/"))
        return f"{names}: changed by hand; dvc checkout --force drops the change, dvc commit keeps it"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return "; ".join(errors) or " ".join(output.split()) or "failed without a word"


# ------------------------------------------------------------------------------------- before the work


def refuse_busy() -> None:
    """A checkout would not wait for a stage that runs here. Raises `UserError`."""
    if blocks := [finding.line for finding in preflight.locks(Path.cwd(), apart=False) if finding.blocks]:
        raise UserError("; ".join(blocks))


def fetch_inputs(*, discard: bool) -> None:
    """Bring the workspace to what the commit records, and raw data to where `dvc repro` would not fetch it.

    `discard` drops outputs of an interrupted run, which DVC holds nowhere; else they are a `UserError`.
    """
    project = open_project(Path.cwd())
    outputs = [out for stage in project.index.stages for out in stage.outs if out.use_cache]
    if any(out.exists for out in outputs):
        dvc("checkout", "--allow-missing", *(["--force"] if discard else []))
    if raw := raw_data(project):
        refuse_unpushed(raw)
    if parts := [data.file for data in raw if data.is_part]:
        dvc("pull", *parts)


@dataclass(frozen=True)
class RawData:
    """A .dvc file, and one folder or file that it stands for."""

    file: str
    path: str
    is_part: bool
    """It lies inside what a stage depends on, or around it. While it is absent, `dvc repro --allow-missing`
    would run that stage without it, or not see that it has changed."""


def raw_data(project: "Repo") -> list[RawData]:
    stages = [stage for stage in project.index.stages if not stage.path.endswith(".dvc")]
    inputs = {Path(dep.fs_path) for stage in stages for dep in stage.deps if dep.protocol == "local"}
    return [
        RawData(relative(stage.path), relative(out.fs_path), is_part_of(Path(out.fs_path), inputs))
        for stage in project.index.stages
        if stage.path.endswith(".dvc")
        for out in stage.outs
    ]


def relative(path: str) -> str:
    return Path(path).relative_to(Path.cwd()).as_posix()


def is_part_of(path: Path, inputs: set[Path]) -> bool:
    return path not in inputs and any(path in each.parents or each in path.parents for each in inputs)


def refuse_unpushed(raw: list[RawData]) -> None:
    """Raw data whose .dvc file came with Git, and whose content is neither on the remote nor here."""
    status = data_status()
    gone = set(status.get("not_in_remote", [])) & set(status.get("not_in_cache", []))
    for data in raw:
        if missing := [path for path in gone if Path(path).is_relative_to(data.path)]:
            raise UserError(
                f"{data.file}: came with Git, but {listed(missing)} is not on the remote; "
                f"dvc push {data.file} where the data is, then run this again"
            )


def data_status() -> dict[str, Any]:
    """By state, paths of data: folders, and the files in them."""
    status: dict[str, Any] = json.loads(dvc("data", "status", "--not-in-remote", "--granular", "--json"))
    return status


def listed(paths: Sequence[str]) -> str:
    rest = f" and {len(paths) - MAX_NAMES} more" if len(paths) > MAX_NAMES else ""
    return ", ".join(sorted(paths)[:MAX_NAMES]) + rest


# -------------------------------------------------------------------------------------------- the work


def reproduce() -> Reproduction:
    """Run the stages whose inputs changed and show what they print. Raises `StageFailed`.

    If this process is stopped, so are they.
    """
    done = Reproduction()
    with subprocess.Popen(
        ["dvc", "repro", "--pull", "--allow-missing"],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        lines = process.stdout or ()
        try:
            for line in lines:
                print(line, end="", flush=True)  # noqa: T201
                done.note(line.rstrip())
        except BaseException:
            # A stage notices the end of its DVC, saves what it has and ends; then nobody writes here.
            process.terminate()
            for line in lines:
                print(line, end="", flush=True)  # noqa: T201
            raise
    if process.returncode != 0:
        problem = complaint("\n".join(done.tail))
        raise StageFailed(problem, done) if problem.startswith("failed to reproduce") else UserError(problem)
    return done


# -------------------------------------------------------------------------------------- after the work


def store() -> None:
    """Put data and models on the remote, and the run cache, by which any machine finds finished stages.

    Then look for what is recorded and lies on no remote: `dvc push` and `dvc status --cloud` believe a folder
    to be there when its list of files is. Raises `UserError`.
    """
    dvc("push", "--run-cache")
    if missing := data_status().get("not_in_remote"):
        raise UserError(
            f"not on the remote: {listed(missing)}; "
            "dvc push where they were made (docs/remotes.md, if that finds nothing to push)"
        )
