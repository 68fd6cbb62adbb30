"""Does a queue of experiments survive its workers: 20 experiments, 2 workers, one of which is killed.

Run with `python -m benchmarks.queue`, in the environment's own Python. A project of one stage, which only
sleeps, is made in a temporary folder; when five are done and two are at work, a worker gets SIGKILL, with all
that it started or (in the second round) alone; the stages wait for it. Printed are the states, and what an
experiment costs beside its sleep.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from nima.experiments.experiment_queue import Queue
from nima.experiments.experiments import Outcome, Request, commits, run
from nima.repository.dvc_command import dvc

ROOT = Path(__file__).parent.parent
NUM_EXPERIMENTS = 20
NUM_WORKERS = 2
SLEEP_SECONDS = 2
KILL_AFTER = 5
STAGE = f"""
import json, os, pathlib, re, time
lr = float(re.search(r"(?m)^  lr: ([^ #]+)", pathlib.Path("params.yaml").read_text())[1])
time.sleep({SLEEP_SECONDS})
until = os.environ.get("KILLED")
while until and lr > {KILL_AFTER / 1000} and not pathlib.Path(until).exists():
    time.sleep(0.05)
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/evaluate.json").write_text(json.dumps({{"test": {{"loss": lr}}}}))
"""
PIPELINE = """
stages:
  train:
    cmd: python train.py
    deps: [train.py]
    params: [training]
    metrics: [metrics/evaluate.json: {cache: false}]
"""


def create(folder: Path) -> None:
    (folder / "train.py").write_text(STAGE, encoding="utf-8")
    (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", folder)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for arguments in (("init", "-q"), ("config", "core.analytics", "false"), ("repro", "-q")):
        dvc(folder, *arguments)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "-qm", "A project"], cwd=folder, check=True)


def kill_worker(folder: Path, *, whole_group: bool) -> None:
    """When some are done and both workers wait for their stages."""
    queue = Queue(folder)
    while True:
        if len(commits(folder)) >= KILL_AFTER and stages_in(folder) == NUM_WORKERS:
            worker = min(queue.workers())
            if whole_group:
                os.killpg(os.getpgid(worker), signal.SIGKILL)
            else:
                os.kill(worker, signal.SIGKILL)
            (folder / "killed").touch()
            return
        time.sleep(0.2)


def stages_in(folder: Path) -> int:
    """How many processes run the stage."""
    found = 0
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line, place = process.info["cmdline"] or [], process.info["cwd"] or ""
        found += (
            line[-1:] == ["train.py"]
            and Path(line[0]).name.startswith("python")
            and place.startswith(str(folder))
        )
    return found


def measured(*, whole_group: bool) -> tuple[list[Outcome], float, float, int]:
    """The outcomes, seconds to queue all and to run all, and how many results the repository holds."""
    with tempfile.TemporaryDirectory(prefix="nima-queue-") as name:
        folder = Path(name).resolve()
        os.environ.pop("KILLED", None)
        create(folder)
        os.environ["KILLED"] = str(folder / "killed")
        threading.Thread(
            target=kill_worker, args=(folder,), kwargs={"whole_group": whole_group}, daemon=True
        ).start()
        rates = ",".join(f"{number / 1000}" for number in range(1, NUM_EXPERIMENTS + 1))
        request = Request([f"training.lr=choice({rates})"], [], "grid", None, "queue", NUM_WORKERS)
        started = time.perf_counter()
        outcomes = run(folder, request)
        seconds = time.perf_counter() - started
        queue = Queue(folder)
        while queue.workers():  # they end by themselves when there is nothing to do for ten seconds
            time.sleep(0.5)
        kept = [outcome for outcome in outcomes if outcome.metrics]
        assert all(outcome.metrics["test.loss"] == outcome.changed["training.lr"] for outcome in kept)
        return (
            outcomes,
            seconds,
            seconds / NUM_EXPERIMENTS * NUM_WORKERS - SLEEP_SECONDS,
            len(commits(folder)),
        )


def main() -> None:
    os.environ |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": tempfile.mkdtemp(prefix="nima-site-cache-")}
    print("| killed | done | failed | results kept | whole, s | beside its sleep, worker s/experiment |")
    print("|---|---|---|---|---|---|")
    for what, whole_group in (("a worker with all that it started", True), ("a worker alone", False)):
        outcomes, seconds, beside, num_kept = measured(whole_group=whole_group)
        states = Counter(outcome.state for outcome in outcomes)
        cells = [what, states["done"], states["failed"], num_kept, f"{seconds:.0f}", f"{beside:.1f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    shutil.rmtree(os.environ["DVC_SITE_CACHE_DIR"])


if __name__ == "__main__":
    main()
