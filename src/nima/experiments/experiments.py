"""`dvc exp run` at work: checked before it starts, named readably, its grids queued and waited for."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nima.experiments import preflight
from nima.experiments.experiment_queue import Queue, Task, finish
from nima.experiments.overrides import PARAMS, Combination, combinations, differences, readable_name
from nima.repository import git
from nima.repository.committed import json_at, yaml_at
from nima.repository.dvc_command import dvc, environment, reason
from nima.repository.revisions import experiment_refs, flat, is_number
from nima.workspace.errors import Interrupted, UserError

# Shown where an experiment has them: the metrics file of a stage, and the key in it.
MAIN_METRICS = (
    ("metrics/evaluate.json", "test.bits_per_byte"),
    ("metrics/evaluate.json", "test.loss"),
    ("metrics/evaluate.json", "test.accuracy"),
)
MAX_CELL_CHARS = 24


@dataclass(frozen=True)
class Request:
    """What `nima exp run` was asked for."""

    settings: Sequence[str]
    targets: Sequence[str]
    name: str | None
    message: str | None
    place: str
    """workspace, temp or queue."""
    jobs: int


@dataclass(frozen=True)
class Outcome:
    name: str
    state: str
    changed: dict[str, Any]
    metrics: dict[str, float]


def run(root: Path, request: Request) -> list[Outcome]:
    """Run one experiment, or queue a grid and wait for it. Raises `UserError` before anything is started."""
    is_apart = request.place != "workspace"
    found = (
        combinations(root, request.settings, grids=request.place == "queue")
        if git.is_repository(root)
        else []
    )
    names = chosen_names(root, found, request.name)
    for line in preflight.check(root, apart=is_apart, names=names if request.name else []):
        tell(line)
    if request.place == "queue":
        return run_queued(root, found, names, request)
    ((combination, name),) = zip(found, names, strict=True)
    command = ["dvc", *exp_run(request, combination, name)]
    done = subprocess.run(command, cwd=root, env=environment(), check=False)
    state = "done" if done.returncode == 0 and name in commits(root) else "failed"
    return [outcome(root, name, state, combination.changed)]


def chosen_names(root: Path, found: Sequence[Combination], name: str | None) -> list[str]:
    """A grid's experiments are numbered after the name that was given, as DVC does."""
    if name is not None:
        return [name] if len(found) <= 1 else [f"{name}-{number}" for number in range(1, len(found) + 1)]
    taken = set(commits(root)) | preflight.waiting_names(root) if found else set()
    names: list[str] = []
    for combination in found:
        names.append(readable_name(combination, taken | set(names)))
    return names


def exp_run(request: Request, combination: Combination, name: str) -> list[str]:
    message = request.message or " ".join(["nima exp run", *combination.overrides])
    where = {"workspace": [], "temp": ["--temp"], "queue": ["--queue"]}[request.place]
    settings = [word for text in combination.overrides for word in ("--set-param", text)]
    return ["exp", "run", *where, "--name", name, "--message", message, *settings, *request.targets]


# ----------------------------------------------------------------------------------------- the queue


def run_queued(
    root: Path, found: Sequence[Combination], names: Sequence[str], request: Request
) -> list[Outcome]:
    for number, (combination, name) in enumerate(zip(found, names, strict=True)):
        code, printed = dvc(root, *exp_run(request, combination, name))
        if code != 0:
            before = f"; queued already: {', '.join(names[:number])}" if number else ""
            raise UserError(f"{name} was not queued: {reason(printed)}{before}")
        tell(f"queued   {name}  {' '.join(combination.overrides)}")
    queue = Queue(root)
    changed = {name: combination.changed for combination, name in zip(found, names, strict=True)}
    outcomes = waited(root, queue, queue.revisions(names), request.jobs)
    return [replace(found, changed=changed[found.name]) for found in outcomes]


def wait(root: Path, jobs: int) -> list[Outcome]:
    """Finish whatever is queued or running."""
    if not git.is_repository(root):
        raise UserError(f"{root}: not in Git, so there is no queue of experiments")
    queue = Queue(root)
    names = {revision: task.name for revision, task in queue.waiting().items()}
    return waited(root, queue, names, jobs) if names else []


def waited(root: Path, queue: Queue, names: dict[str, str], jobs: int) -> list[Outcome]:
    """`names` by revision."""
    try:
        tasks = finish(queue, names, jobs, tell_change)
    except KeyboardInterrupt:
        line = "the queue goes on; nima exp wait watches it again, dvc queue stop --kill ends it"
        raise Interrupted(f"no longer watched: {line}") from None
    for task in tasks:
        if task.state == "failed":
            tell_failure(queue, task)
    return [outcome(root, task.name, task.state, changes_of(root, task)) for task in tasks]


def tell_change(task: Task) -> None:
    if task.state != "queued":  # that was said when it was put there
        tell(f"{task.state:8} {task.name}")


def tell_failure(queue: Queue, task: Task) -> None:
    lines = queue.log(task)
    more = f"; the end of what it printed (all: dvc queue logs {task.name}):" if lines else ""
    tell(f"\n{task.name} failed: {queue.reason(task)}{more}")
    for line in lines:
        tell(f"    {line}")


def changes_of(root: Path, task: Task) -> dict[str, Any]:
    """Params of a queued experiment that differ from those of the commit under it."""
    before, after = (yaml_at(root, commit, PARAMS) for commit in (f"{task.revision}^", task.revision))
    return differences(dict(flat(before)), dict(flat(after)), [])


# ----------------------------------------------------------------------------------------- results


def commits(root: Path) -> dict[str, str]:
    """Commits of the experiments by name."""
    return {reference.rpartition("/")[2]: commit for reference, commit in experiment_refs(root).items()}


def outcome(root: Path, name: str, state: str, changed: dict[str, Any]) -> Outcome:
    commit = commits(root).get(name) if state == "done" else None
    return Outcome(name, state, changed, main_metrics(root, commit) if commit else {})


def main_metrics(root: Path, commit: str) -> dict[str, float]:
    """Of stages whose record fits: metrics of a stage that was left out would be another experiment's."""
    found = {}
    current = current_outputs(root, commit)
    for path, key in MAIN_METRICS:
        if path in current:
            metrics = dict(flat(json_at(root, commit, path)))
            if is_number(metrics.get(key)):
                found[key] = metrics[key]
    return found


def current_outputs(root: Path, commit: str) -> set[str]:
    """Outputs of the stages that ran on what dvc.lock has for their dependencies."""
    stages = yaml_at(root, commit, "dvc.lock").get("stages") or {}
    made = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs") or []}
    current: set[str] = set()
    for stage in stages.values():
        if all(made.get(dep["path"], dep.get("md5")) == dep.get("md5") for dep in stage.get("deps") or []):
            current |= {out["path"] for out in stage.get("outs") or []}
    return current


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, its columns aligned: name, state, params in which the experiments differ, metrics."""
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.changed))
    if len(outcomes) > 1:
        keys = [key for key in keys if len({str(outcome.changed.get(key)) for outcome in outcomes}) > 1]
    metrics = [key for _, key in MAIN_METRICS if any(key in outcome.metrics for outcome in outcomes)]
    rows = [["experiment", "state", *keys, *metrics]]
    for found in outcomes:
        values = [cell(found.changed[key]) if key in found.changed else "" for key in keys]
        figures = [f"{found.metrics[key]:.4f}" if key in found.metrics else "" for key in metrics]
        rows.append([found.name, found.state, *values, *figures])
    return "\n".join(markdown(rows))


def markdown(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        yield f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |"
        if number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= MAX_CELL_CHARS else f"{text[: MAX_CELL_CHARS - 1]}…"


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
