"""A project whose one stage `train` only pretends: a curve that follows from training.lr, and checkpoints."""

from pathlib import Path

from conftest import ROOT, Project

STAGE = '''
"""Loses the less, the nearer training.lr is to 0.02; goes on where it was stopped."""
import json, math, os, pathlib, re, signal, sys, time

class Stopped(Exception): pass
def stop(*_): raise Stopped
signal.signal(signal.SIGTERM, stop)
text = pathlib.Path("params.yaml").read_text()
lr = float(re.search(r"(?m)^  lr: ([^ #]+)", text)[1])
if lr > 0.5:
    sys.exit("train: update 1: loss sum nan; lower training.lr")
scratch = pathlib.Path(os.environ.get("DVC_ROOT", ".")) / ".nima/checkpoints/run"
scratch.mkdir(parents=True, exist_ok=True)
saved = scratch / f"{lr}.json"
rows = json.loads(saved.read_text()) if saved.exists() else []
print("starts at", len(rows), flush=True)
curve = pathlib.Path("plots/train/metrics/validation/loss.tsv")
curve.parent.mkdir(parents=True, exist_ok=True)
try:
    for step in range(1, 6):
        if step > len(rows):
            time.sleep(float(os.environ.get("NAP", "0.4")) if lr > 0.03 else 0)
            rows.append([step, abs(math.log10(lr / 0.02)) + 1 / step])
        curve.write_text("step\\tloss\\n" + "".join(f"{s}\\t{v}\\n" for s, v in rows))
        saved.write_text(json.dumps(rows))
except Stopped:
    print("train: stopped by SIGTERM: the state is saved", flush=True)
    sys.exit(3)
pathlib.Path("metrics").mkdir(exist_ok=True)
best = {"step": 5, "value": rows[-1][1]}
pathlib.Path("metrics/train.json").write_text(json.dumps({"best": best, "step": 5}))
'''
PIPELINE = """
stages:
  train:
    cmd: python -m stages.train
    deps: [stages]
    params: [model, training]
    outs: [plots/train]
    metrics: [metrics/train.json: {cache: false}]
"""
SEARCH = """
tune:
  metric: loss
  trials: 5
  random_trials: 10
  seed: 0
  pruning: {percentile: 50, after_trials: 1, after_steps: 2}
  space:
    training.lr: {low: 0.001, high: 1.0, log: true}
"""


def create_searched_project(path: Path) -> Project:
    """Committed with its first result."""
    (path / "stages").mkdir(parents=True)
    (path / "stages/train.py").write_text(STAGE, encoding="utf-8")
    (path / "stages/__init__.py").touch()
    (path / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (path / ".gitignore").write_text(".nima/\n__pycache__/\n", encoding="utf-8")
    (path / ".dvcignore").write_text("__pycache__/\n", encoding="utf-8")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").partition("\ntune:")[0]
    (path / "params.yaml").write_text(text.rstrip() + "\n" + SEARCH, encoding="utf-8")
    project = Project(path)
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    project.dvc("config", "core.analytics", "false")
    project.dvc("config", "core.check_update", "false")
    project.dvc("repro", "-q")
    project.commit("The first result")
    return project
