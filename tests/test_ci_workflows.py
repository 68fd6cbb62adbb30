"""What GitHub and GitLab are told: to start on whatever a stage depends on, and to run one script."""

import os
import re
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

SCRIPT = ".ci/repro"


@cache
def read(name: str) -> Any:
    return YAML(typ="safe").load(ROOT / name)


def github() -> dict[str, Any]:
    # YAML 1.2 reads the key `on` as text, as GitHub does.
    return dict(read(".github/workflows/pipeline.yml"))


def gitlab_paths() -> list[str]:
    rules = read(".gitlab-ci.yml")["pipeline"]["rules"]
    return next(rule["changes"] for rule in rules if "changes" in rule)


def matches(path: str, pattern: str) -> bool:
    """As both forges match: `**` over folders, `*` within one."""
    parts = re.split(r"(\*\*/?|\*)", pattern)
    meaning = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*"}
    return re.fullmatch("".join(meaning.get(part, re.escape(part)) for part in parts), path) is not None


def watched() -> list[str]:
    """A file below everything that a stage depends on, the records of DVC, and a .dvc file at any place."""
    stages = read("dvc.yaml")["stages"].values()
    made = {name for stage in stages for key in ("outs", "metrics") for name in names(stage.get(key, []))}
    deps = {dep for stage in stages for dep in stage["deps"] if dep not in made}
    files = [dep if PurePosixPath(dep).suffix else f"{dep}/some/file.md" for dep in sorted(deps)]
    return [*files, "params.yaml", "dvc.yaml", "dvc.lock", "data/raw/notes.dvc", "corpora/more.dvc"]


def names(outputs: list[Any]) -> list[str]:
    return [next(iter(each)) if isinstance(each, dict) else each for each in outputs]


@pytest.mark.parametrize("forge", ["github push", "github pull_request", "gitlab"])
def test_a_change_of_anything_that_a_stage_depends_on_starts_the_pipeline(forge: str) -> None:
    patterns = gitlab_paths() if forge == "gitlab" else github()["on"][forge.split()[1]]["paths"]
    assert [path for path in watched() if not any(matches(path, pattern) for pattern in patterns)] == []
    for path in ("README.md", "docs/ci.md", "tests/test_ci.py", "metrics/train.json", "plots/loss.png"):
        assert not any(matches(path, pattern) for pattern in patterns), path


def test_both_forges_run_the_one_script_in_a_full_clone() -> None:
    steps = github()["jobs"]["repro"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [SCRIPT]
    checkout = next(step["with"] for step in steps if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["fetch-depth"] == 0
    assert read(".gitlab-ci.yml")["variables"]["GIT_DEPTH"] == 0
    assert read(".gitlab-ci.yml")["pipeline"]["script"][-1] == SCRIPT
    assert os.access(ROOT / SCRIPT, os.X_OK)


def test_secrets_are_named_and_never_written_down() -> None:
    env = github()["jobs"]["repro"]["env"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert env[name] == "${{ secrets." + name + " }}"
    assert not any(name.startswith("AWS_") for name in read(".gitlab-ci.yml")["variables"])


def test_two_runs_on_a_branch_wait_for_each_other() -> None:
    assert "github.ref_name" in github()["concurrency"]["group"]
    assert "cancel-in-progress" not in github()["concurrency"], "a training is not thrown away"
    assert "CI_COMMIT_REF_SLUG" in read(".gitlab-ci.yml")["pipeline"]["resource_group"]
