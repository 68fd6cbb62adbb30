"""A project of one stage that takes no time, with Nima's params: for what is about DVC, not training."""

import shutil
from pathlib import Path

from conftest import ROOT, Project

STAGE = """
import json, os, pathlib, re, sys, time

text = pathlib.Path("params.yaml").read_text()
lr = float(re.search(r"(?m)^  lr: ([^ #]+)", text)[1])
print("learning at", lr, flush=True)
time.sleep(float(os.environ.get("NAP", "0")))
while "UNTIL" in os.environ and not os.path.exists(os.environ["UNTIL"]):
    time.sleep(0.05)
if lr == 0.5:
    sys.exit("0.5 is too much")
pathlib.Path("metrics").mkdir(exist_ok=True)
figures = {"loss": lr, "bits_per_byte": 2 * lr, "accuracy": 0.5}
pathlib.Path("metrics/evaluate.json").write_text(json.dumps({"test": figures}))
pathlib.Path("model.bin").write_text(str(lr))
"""
PIPELINE = """
stages:
  train:
    cmd: python train.py
    deps: [train.py, data]
    params: [training]
    outs: [model.bin]
    metrics: [metrics/evaluate.json: {cache: false}]
"""


def create_tiny_project(path: Path) -> Project:
    """Committed with its first result."""
    (path / "data").mkdir(parents=True)
    (path / "data/text.md").write_text("A text.\n", encoding="utf-8")
    (path / "train.py").write_text(STAGE, encoding="utf-8")
    (path / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", path)
    project = Project(path)
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    project.dvc("config", "core.analytics", "false")
    project.dvc("config", "core.check_update", "false")
    project.dvc("repro", "-q")
    project.commit("The first result")
    return project
