"""Whether a recorded experiment comes out again: run anew in a clean clone, compared output by output."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nima.repository import clean_clone, git
from nima.repository.clean_clone import Clone, Hashes, Stage
from nima.repository.dvc_command import reason
from nima.repository.revisions import SHORT, commit_of
from nima.verification.differences import Difference, differences
from nima.verification.recorded_versions import VersionChange, version_changes
from nima.workspace.errors import UserError
from nima.workspace.params import nearest

TAIL_LINES = 30
UNKNOWN = "the recorded content is in no cache, so in what they differ is unknown"


@dataclass(frozen=True)
class Output:
    stage: str
    path: str
    recorded: str
    found: str
    differences: list[Difference]
    note: str = ""

    @property
    def is_equal(self) -> bool:
        return self.recorded == self.found


@dataclass(frozen=True)
class Verdict:
    revision: str
    commit: str
    stages: list[str]
    outputs: list[Output]
    inputs: list[str]
    """What the commit holds in another version than the recorded run read."""
    versions: list[VersionChange]
    notes: list[str]

    @property
    def is_equal(self) -> bool:
        return all(output.is_equal for output in self.outputs)


def verify(root: Path, revision: str, stage: str | None, *, keep: bool) -> Verdict:
    """Run `stage`, or all, of a revision or experiment again, and compare with its dvc.lock.

    Raises `UserError` if that can't be done. `keep`: leave the clone there.
    """
    if not git.is_repository(root):
        raise UserError(f"{root}: not in Git, so there is no record to verify")
    commit = commit_of(root, revision)
    with temporary_folder(keep=keep) as folder:
        clone = clean_clone.clone(root, commit, folder)
        before = clone.lock()
        stages = chosen_stages(before, stage, revision)
        clone.take(clean_clone.needed_inputs(clone, stages))
        run_again(clone, stage)
        after = clone.lock()
        outputs = [
            output for name in stages for output in compared(clone, name, before, after, folder, commit)
        ]
        versions, notes = version_changes(clone, commit, stages)
        inputs = changed_inputs(before, after, stages)
        return Verdict(revision, commit, stages, outputs, inputs, versions, notes + dirt(root, commit))


@contextmanager
def temporary_folder(*, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nima-verify-"))
    try:
        yield folder
    finally:
        if keep:
            print(f"kept: {folder}", file=sys.stderr)  # noqa: T201
        else:
            shutil.rmtree(folder, ignore_errors=True)


def chosen_stages(lock: dict[str, Stage], stage: str | None, revision: str) -> list[str]:
    if stage is None:
        return list(lock)
    if stage not in lock:
        raise UserError(f"{revision}: dvc.lock records no run of {stage}{nearest(stage, list(lock))}")
    return [stage]


def run_again(clone: Clone, stage: str | None) -> None:
    """Every stage's command runs, whatever a cache may hold. Its output goes to stderr."""
    command = ["dvc", "repro", "--force", "--no-run-cache", "--no-commit"]
    command += ["--single-item", stage] if stage else []
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        command,
        cwd=clone.project,
        env=clone.settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stdout or []:
            sys.stderr.write(line)
            tail.append(line)
    if process.returncode != 0:
        raise UserError(f"dvc repro failed in the clean clone: {reason(''.join(tail))}")


# ----------------------------------------------------------------------------------------- outputs


def compared(
    clone: Clone, stage: str, before: dict[str, Stage], after: dict[str, Stage], folder: Path, commit: str
) -> Iterator[Output]:
    for path, recorded in before[stage].outs.items():
        found = after[stage].outs.get(path, "") if stage in after else ""
        if recorded == found:
            yield Output(stage, path, recorded, found, [])
        else:
            yield unequal(clone, Output(stage, path, recorded, found, []), folder, commit)


def unequal(clone: Clone, output: Output, folder: Path, commit: str) -> Output:
    """With what is different in it, as far as the recorded content can be had."""
    place = clone.project / output.path
    now = files_in(place)
    committed = files_at(clone, commit, output.path, folder)
    if committed:
        found = differences(committed, now)
        note = "" if found else "as the commit has it: only dvc.lock is another"
        return Output(output.stage, output.path, output.recorded, output.found, found, note)
    before = recorded_files(clone, output)
    if before is None:
        return Output(output.stage, output.path, output.recorded, output.found, [], UNKNOWN)
    return Output(output.stage, output.path, output.recorded, output.found, differences(before, now))


def recorded_files(clone: Clone, output: Output) -> dict[str, Path] | None:
    """From the caches or else the remote."""
    if clone.lacks(output.recorded):
        git.ask(clone.project, "checkout", "--quiet", "HEAD", "--", "dvc.lock")
        clone.dvc("fetch", output.path)
    if clone.lacks(output.recorded):
        return None
    members: Hashes = clone.members(output.recorded) or {}
    return {name: path for name, md5 in members.items() if (path := clone.object(md5)) is not None}


def files_in(place: Path) -> dict[str, Path]:
    """By their path in `place`; a file that is the place itself by ""."""
    if place.is_file():
        return {"": place}
    return {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}


def files_at(clone: Clone, commit: str, path: str, folder: Path) -> dict[str, Path]:
    """An output that Git keeps, as it was committed."""
    place = folder / "committed"
    names = git.paths(clone.project, "ls-tree", "-r", "-z", "--name-only", commit, "--", path)
    for name in names:
        command = ["git", "cat-file", "blob", f"{commit}:./{name}"]
        blob = subprocess.run(command, cwd=clone.project, capture_output=True, check=True).stdout
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(blob)
    return files_in(place / path) if names else {}


# ----------------------------------------------------------------------------------------- inputs


def changed_inputs(before: dict[str, Stage], after: dict[str, Stage], stages: list[str]) -> list[str]:
    """Dependencies and params that the recorded run read in another version than the commit holds."""
    made = {path for stage in stages for path in before[stage].outs}
    deps, keys = set(), set()
    for name in stages:
        one, other = before[name], after.get(name, Stage({}, {}, {}))
        deps |= {
            path for path in one.deps.keys() | other.deps.keys() if one.deps.get(path) != other.deps.get(path)
        }
        for file in one.params.keys() | other.params.keys():
            old, new = one.params.get(file) or {}, other.params.get(file) or {}
            keys |= {f"{file}: {key}" for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    return sorted(deps - made) + sorted(keys)


def dirt(root: Path, commit: str) -> list[str]:
    """The workspace is not what is verified; said where it could be taken for it."""
    changed = git.paths(root, "status", "--porcelain", "-z", "--untracked-files=no", "--", ".")
    if not changed or git.head_of(root) != commit:
        return []
    count = f"{len(changed)} files are" if len(changed) > 1 else "1 file is"
    return [f"{count} changed and not committed: the commit was verified, not the workspace"]


# ----------------------------------------------------------------------------------------- telling


def markdown(verdict: Verdict) -> str:
    """What is equal and what differs, readable as text and as Markdown."""
    title = verdict.commit[:SHORT]
    if not verdict.commit.startswith(verdict.revision):
        title = f"{verdict.revision} ({title})"
    num_equal = sum(output.is_equal for output in verdict.outputs)
    lines = [f"# {title}: {num_equal} of {len(verdict.outputs)} outputs are equal", ""]
    lines += ["| stage | output | | MD5 recorded | MD5 now |", "|---|---|---|---|---|"]
    for output in verdict.outputs:
        word = "equal" if output.is_equal else "**differs**"
        cells = [output.stage, output.path, word, output.recorded[:12], output.found[:12] or "none"]
        lines.append(f"| {' | '.join(cells)} |")
    for output in verdict.outputs:
        if not output.is_equal:
            lines += ["", f"## {output.path}", "", *details(output)]
    for head, entries in (
        ("Inputs that the record has in another version", verdict.inputs),
        ("Versions that are not the recorded ones", [change.text for change in verdict.versions]),
        ("Notes", verdict.notes),
    ):
        if entries:
            lines += ["", f"## {head}", "", *(f"- {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def details(output: Output) -> list[str]:
    lines = [f"- {output.note}"] if output.note else []
    return lines + [f"- {found.file or output.path}: {found.text}" for found in output.differences]


def as_json(verdict: Verdict) -> str:
    content: dict[str, Any] = {
        "revision": verdict.revision,
        "commit": verdict.commit,
        "equal": verdict.is_equal,
        "stages": verdict.stages,
        "outputs": [
            {
                "stage": output.stage,
                "path": output.path,
                "equal": output.is_equal,
                "recorded_md5": output.recorded,
                "md5": output.found,
                "note": output.note,
                "differences": [found.as_json() for found in output.differences],
            }
            for output in verdict.outputs
        ],
        "inputs": verdict.inputs,
        "versions": [change.as_json() for change in verdict.versions],
        "notes": verdict.notes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
