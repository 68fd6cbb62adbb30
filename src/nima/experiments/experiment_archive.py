"""Experiments that outlast DVC's references: the plain record of a commit, and tags that keep it.

A commit says all of a run in plain files: params.yaml, dvc.lock (hashes of all inputs and outputs), metrics,
and beside them timing.json and environment.json. `record` puts them into one object, by Git alone.
"""

import json
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

from nima.experiments.overrides import PARAMS, differences
from nima.experiments.preflight import has_identity
from nima.repository import git
from nima.repository.committed import json_at, yaml_at
from nima.repository.dvc_command import reason
from nima.repository.revisions import WORKSPACE, commit_of, experiment_refs, flat
from nima.workspace.errors import UserError
from nima.workspace.metrics import METRICS, TIMING
from nima.workspace.surroundings import ENVIRONMENT

SCHEMA = 1
FACTS = "%H%n%P%n%aI%n%an <%ae>%n%s"


def record(root: Path, revision: str) -> dict[str, Any]:
    """Params, hashes, metrics, times, versions and hardware of a commit or experiment.

    Raises `UserError` if there is no such commit. What the commit lacks is empty.
    """
    commit = commit_of(root, revision)
    if commit == WORKSPACE:
        raise UserError("workspace: records are of commits: commit the results first, or name an experiment")
    facts = (git.ask(root, "show", "--no-patch", f"--format={FACTS}", commit) or "").splitlines()
    _, parents, date, author, subject = [*facts, *[""] * 5][:5]
    parent = parents.partition(" ")[0]
    params = yaml_at(root, commit, PARAMS)
    before = yaml_at(root, parent, PARAMS) if parent else params
    return {
        "schema": SCHEMA,
        "name": revision,
        "commit": commit,
        "parent": parent or None,
        "date": date,
        "author": author,
        "message": subject,
        "changed": differences(dict(flat(before)), dict(flat(params)), []),
        "metrics": metrics_at(root, commit),
        "seconds_and_speed": json_at(root, commit, TIMING.as_posix()),
        "environment": json_at(root, commit, ENVIRONMENT.as_posix()),
        "stages": stages_at(root, commit),
        "params": params,
    }


def metrics_at(root: Path, commit: str) -> dict[str, Any]:
    """By stage: all in the folder of metrics that is neither the clock's nor the machine's."""
    listing = ("ls-tree", "-z", "--name-only", commit, "--", f"{METRICS.as_posix()}/")
    names = [name for name in git.paths(root, *listing) if name.endswith(".json")]
    others = (TIMING.as_posix(), ENVIRONMENT.as_posix())
    return {PurePosixPath(name).stem: json_at(root, commit, name) for name in names if name not in others}


def stages_at(root: Path, commit: str) -> dict[str, Any]:
    """Hashes of what each stage read and wrote, by path."""
    stages = yaml_at(root, commit, "dvc.lock").get("stages") or {}
    return {
        name: {
            "command": stage.get("cmd"),
            "read": {entry["path"]: entry.get("md5") for entry in stage.get("deps") or []},
            "written": {entry["path"]: entry.get("md5") for entry in stage.get("outs") or []},
        }
        for name, stage in stages.items()
    }


# ----------------------------------------------------------------------------------------- tags


def keep(root: Path, name: str, tag: str | None) -> str:
    """Tag an experiment's commit, so that it is kept, cloned and pushed like any other. Returns the tag."""
    tag = tag or name
    commit = commit_of(root, name)
    if commit == WORKSPACE or commit not in experiment_refs(root).values():
        raise UserError(f"{name}: no experiment; a commit on a branch is kept anyway: git tag NAME {name}")
    if git.ask(root, "check-ref-format", f"refs/tags/{tag}") is None or tag.startswith("-"):
        raise UserError(f"--tag {tag}: Git takes no such name: use letters, digits, '.', '_' and '-'")
    if git.ask(root, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}") is not None:
        raise UserError(f"--tag {tag}: there is such a tag already: choose another, or git tag -d {tag}")
    if not has_identity(root):
        raise UserError("Git doesn't know who you are: git config user.name NAME, user.email ADDRESS")
    command = ["git", "tag", "--annotate", "--message", message(root, name), tag, commit]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"git tag {tag}: {reason(done.stderr)}")
    return tag


def message(root: Path, name: str) -> str:
    """What the tag says: the params that were changed, and the figures of the test text."""
    found = record(root, name)
    test = dict(flat((found["metrics"].get("evaluate") or {}).get("test") or {}))
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in found["changed"].items()]
    lines += [f"test.{key}: {value}" for key, value in test.items() if isinstance(value, int | float)]
    return "\n".join([f"Experiment {name}", "", *lines])
