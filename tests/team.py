"""People who share a project: a bare Git repository, a place for data, and clones of their own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, Project
from s3_server import S3Server

# Three stages that take no time, with the places and the kinds of outputs that the real pipeline has.
TOY_PIPELINE = """\
stages:
  prepare:
    cmd: python toy.py prepare
    deps: [data/raw, toy.py]
    outs: [data/documents]
    metrics: [{metrics/prepare.json: {cache: false}}]
  train:
    cmd: python toy.py train
    deps: [data/documents]
    params: [training]
    outs: [models/model, plots/train]
    metrics: [metrics/train.json]
  generate_samples:
    cmd: python toy.py generate_samples
    deps: [models/model]
    params: [generate]
    outs: [data/samples]
    metrics: [{metrics/generate_samples.json: {cache: false}}]
metrics: [metrics/timing.json]
plots: [{plots/train/metrics/validation/loss.tsv: {x: step, y: loss}}]
artifacts:
  documents: {path: data/documents, type: dataset}
  model: {path: models/model, type: model}
"""
TOY_PARAMS = """\
training:
  lr: 0.01 # learning rate

# What is below is far enough for Git to merge changes of both.

generate:
  prompts: # continued by the model
  - The server
"""
TOY_STAGES = """\
import json
import pathlib
import sys


def put(name, text):
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def words_after(line):
    return line.partition("#")[0].partition(":")[2].strip()


stage, lines = sys.argv[1], pathlib.Path("params.yaml").read_text().splitlines()
lr = float(words_after(lines[1]))
if stage == "prepare":
    text = "".join(path.read_text() for path in sorted(pathlib.Path("data/raw").rglob("*.md")))
    put("data/documents/all.txt", text)
    put("metrics/prepare.json", json.dumps({"num_bytes": len(text)}))
if stage == "train":
    if lr > 1:
        sys.exit("train: loss is not finite at step 3; lower training.lr")
    text = pathlib.Path("data/documents/all.txt").read_text()
    put("models/model/weights", text.upper() + str(lr))
    put("metrics/train.json", json.dumps({"validation": {"loss": len(text) * lr}}))
    rows = "".join(f"{step}\\t{len(text) * lr / step}\\n" for step in range(1, 6))
    put("plots/train/metrics/validation/loss.tsv", "step\\tloss\\n" + rows)
if stage == "generate_samples":
    weights = pathlib.Path("models/model/weights").read_text()
    sample = {"prompt": lines[-1].strip(" -"), "strategy": "greedy", "text": " says " + weights[-4:]}
    put("data/samples/samples.jsonl", json.dumps(sample) + "\\n")
    put("metrics/generate_samples.json", json.dumps({"num_samples": 1}))
timing = pathlib.Path("metrics/timing.json")
figures = json.loads(timing.read_text()) if timing.exists() else {}
put("metrics/timing.json", json.dumps(figures | {stage: {"seconds": 0.5, "peak_memory_bytes": 2_000_000}}))
"""
CARRIED = (".ci", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore", "src/nima")


class Team:
    """`origin` holds the history, the server's `bucket` the data; everybody works in a clone.

    Without a server the data lies in a folder, whose path is `bucket`: quicker, where no server is needed.
    """

    def __init__(self, folder: Path, server: S3Server | None, bucket: str) -> None:
        self.folder, self.server, self.bucket = folder, server, bucket
        self.origin = folder / "origin.git"

    @property
    def storage(self) -> str:
        return self.bucket if self.server is None else f"s3://{self.bucket}/dvc"

    @property
    def url(self) -> str:
        return f"file://{self.origin}"

    def project(self, path: Path) -> Project:
        """With the team's server, no home of its own, and this Python as its environment."""
        project = Project(path)
        ours = {
            key: value for key, value in project.env.items() if not key.startswith(("GITHUB_", "CI", "AWS_"))
        }
        project.env = (
            ours
            | (self.server.environment if self.server else {})
            | {
                "AWS_CONFIG_FILE": str(self.folder / "no-config"),
                "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "no-credentials"),
                "HOME": str(self.folder),
                "VIRTUAL_ENV": sys.prefix,
            }
        )
        return project

    def clone(self, name: str, *options: str) -> Project:
        path = self.folder / name / "project"
        path.parent.mkdir(parents=True)
        self.project(path.parent).run("git", "clone", "-q", *options, self.url, str(path))
        return self.project(path)

    def developer(self, name: str) -> Project:
        """A clone with all data."""
        project = self.clone(name)
        project.dvc("pull", "-q")
        return project

    def share(self, path: Path) -> Project:
        """The history of the project there to a new origin, its data to the bucket."""
        project = self.project(path)
        if self.server and not self.server.filesystem().exists(self.bucket):
            self.server.filesystem().mkdir(self.bucket)
        project.dvc("remote", "add", "-q", "-d", "storage", self.storage)
        project.commit("Share the data in the bucket")
        project.run("git", "init", "-q", "--bare", "-b", "main", str(self.origin))
        project.run("git", "remote", "add", "origin", self.url)
        project.run("git", "push", "-qu", "origin", "main")
        project.dvc("push", "-q", "--run-cache")
        return project

    def objects(self) -> set[str]:
        """Keys of all that lies in the bucket."""
        assert self.server is not None
        return set(self.server.filesystem().find(self.bucket))

    def head(self, branch: str = "main") -> str:
        """The commit that the branch stands at in origin."""
        done = self.project(self.origin).run("git", "rev-parse", f"refs/heads/{branch}")
        return done.stdout.strip()

    def branches(self) -> list[str]:
        done = self.project(self.origin).run("git", "for-each-ref", "--format=%(refname:short)", "refs/heads")
        return done.stdout.split()


def toy_project(path: Path) -> Project:
    """Three quick stages, run once and committed. Its code is this checkout's, its pipeline a toy."""
    for name in CARRIED:
        source = ROOT / name
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, path / name)
    contents = {"dvc.yaml": TOY_PIPELINE, "params.yaml": TOY_PARAMS, "toy.py": TOY_STAGES}
    contents |= {f"data/raw/notes/{number}.md": f"Note {number}.\n" for number in range(3)}
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content, encoding="utf-8")
    project = Project(path)
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("add", "-q", "data/raw/notes")
    project.dvc("repro", "-q")
    project.commit("The first results")
    return project


def change_note(project: Project, text: str) -> None:
    """Another raw file, under DVC; neither pushed nor committed."""
    note = project.path / "data/raw/notes/0.md"
    note.parent.mkdir(exist_ok=True)
    note.write_text(text, encoding="utf-8")
    project.dvc("add", "-q", "data/raw/notes")


def push_commit(project: Project, message: str) -> None:
    project.commit(message)
    project.run("git", "push", "-q", "origin", "HEAD")


def history(project: Project) -> list[str]:
    return project.run("git", "log", "--format=%s").stdout.splitlines()


def run_ci(project: Project, *options: str) -> subprocess.CompletedProcess[str]:
    """As a runner does: no shell of a user's, nobody at the keyboard."""
    env = {name: value for name, value in project.warm_env.items() if name != "SHELL"} | {"CI": "true"}
    return subprocess.run(
        [".ci/repro", *options],
        cwd=project.path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def stages_run(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"Running stage '(\w+)'", done.stdout)
