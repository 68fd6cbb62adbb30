"""Interruption is invisible: whatever stops a run, the next one continues to the very same bytes."""

import contextlib
import hashlib
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import Project, kill_group


@pytest.fixture
def untrained(project: Project) -> Project:
    """A copy in which everything up to `split` is done and training is not."""
    lock = project.read("dvc.lock")
    for folder in ("models/model", "models/last", "plots/train"):
        project.run("rm", "-rf", folder)
    project.run("rm", "-f", "metrics/train.json")
    start = lock.index("\n  train:\n") + 1
    (project.path / "dvc.lock").write_text(lock[:start])
    project.run("rm", "-rf", ".dvc/cache/runs", ".nima/checkpoints")
    return project


def trained(project: Project) -> dict[str, bytes]:
    return project.files("models/model", "models/last", "plots/train") | {
        "metrics/train.json": (project.path / "metrics/train.json").read_bytes()
    }


def run_until_step(project: Project, step: int, number: int, *, whole_group: bool = True) -> tuple[int, str]:
    """`dvc repro` until training prints that step, then the signal; returns (exit code, output)."""
    process = project.start("dvc", "repro", "train")
    seen = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if re.match(rf"step {step}/", line):
            if whole_group:
                kill_group(process, number)
            else:
                os.kill(process.pid, number)
            break
    rest, _ = process.communicate(timeout=60)
    return process.returncode, "".join(seen) + rest


def trainers_of(project: Project) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        try:
            if "stages.train" in (process.info["cmdline"] or []) and process.info["cwd"] == str(project.path):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until_gone(project: Project) -> None:
    for _ in range(100):
        if not trainers_of(project):
            return
        time.sleep(0.1)
    raise AssertionError(f"orphan trainer: {trainers_of(project)}")


def test_kills_at_random_steps_leave_no_trace(untrained: Project, finished_project: Project) -> None:
    """Under DVC; test_kill_points goes to more places. The last steps take less time than to hear of them."""
    steps = sorted(random.Random().sample(range(1, 45), 4))
    for step in steps:
        code, output = run_until_step(untrained, step, signal.SIGKILL)
        assert code != 0, output
        wait_until_gone(untrained)
        assert "\n  train:\n" not in untrained.read("dvc.lock")
    done = untrained.dvc("repro", "evaluate")
    assert "continuing after step" in done.stderr, done.stderr
    assert trained(untrained) == trained(finished_project), f"killed at {steps}"
    assert untrained.read("metrics/evaluate.json") == finished_project.read("metrics/evaluate.json")


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)],
    ids=["terminate", "ctrl-c", "terminate-dvc-alone", "kill-dvc-alone"],
)
def test_a_signal_saves_leaves_no_orphan_and_records_nothing(
    untrained: Project, finished_project: Project, number: int, whole_group: bool
) -> None:
    code, output = run_until_step(untrained, 22, number, whole_group=whole_group)
    assert code != 0
    wait_until_gone(untrained)
    saved = sorted(path.name for path in untrained.path.glob(".nima/checkpoints/*/step-*"))
    assert int(saved[-1].removeprefix("step-")) >= 22, output
    assert "Traceback" not in output
    assert "\n  train:\n" not in untrained.read("dvc.lock")
    done = untrained.dvc("repro", "train")
    assert "continuing after step" in done.stderr
    assert trained(untrained) == trained(finished_project)


def test_changed_params_begin_from_zero(untrained: Project) -> None:
    run_until_step(untrained, 20, signal.SIGTERM)
    wait_until_gone(untrained)
    untrained.set_params({"training": {"lr": 0.004, "max_steps": 12}})
    done = untrained.dvc("repro", "train")
    assert "continuing" not in done.stderr
    assert "step 1/12" in done.stderr


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    untrained: Project, finished_project: Project
) -> None:
    run_until_step(untrained, 30, signal.SIGKILL)
    wait_until_gone(untrained)
    newest = sorted(untrained.path.glob(".nima/checkpoints/*/step-*"))[-1]
    with (newest / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    done = untrained.dvc("repro", "train")
    assert f"{newest.name}/model.safetensors" in done.stderr
    assert "falling back" in done.stderr
    assert trained(untrained) == trained(finished_project)


def test_a_temporary_run_that_was_killed_continues_when_run_again(project: Project) -> None:
    command = ("dvc", "exp", "run", "--temp", "-n", "aside", "-S", "training.lr=0.003", "train")
    process = project.start(*command)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 25/"):
            kill_group(process, signal.SIGKILL)
            break
    process.communicate(timeout=60)
    again = project.run(*command)
    assert "continuing after step" in again.stderr + again.stdout


def test_two_trainers_never_share_a_run(untrained: Project) -> None:
    first = untrained.start("python", "-m", "stages.train")
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("step 2/"):
            break
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = untrained.run("python", "-m", "stages.train", check=False)
        assert second.returncode == 2
        assert f"another trainer (pid {first.pid})" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        os.kill(first.pid, signal.SIGCONT)
        first.kill()
        first.communicate()


def test_an_input_that_changes_during_training_fails_the_stage(untrained: Project) -> None:
    process = untrained.start("dvc", "repro", "train")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5/"):
            schedule = untrained.path / "src/nima/training/schedule.py"
            schedule.write_text(schedule.read_text() + "\n# edited\n")
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "src/nima/training/schedule.py changed" in rest
    assert "\n  train:\n" not in untrained.read("dvc.lock")


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65536)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_stops_with_one_line_and_loses_nothing(
    untrained: Project, finished_project: Project
) -> None:
    scratch = untrained.path / ".nima" / "checkpoints"
    scratch.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(scratch)], check=False)
    if mounted.returncode:
        pytest.skip("this machine allows no mounts")
    try:
        run_until_step(untrained, 20, signal.SIGTERM)
        wait_until_gone(untrained)
        before = sorted(path.name for path in scratch.glob("*/step-*"))
        filler = scratch / "filler"
        fill(filler)
        done = untrained.dvc("repro", "train", check=False)
        assert done.returncode != 0
        lines = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
        assert len(lines) == 1
        assert "no room for the checkpoint" in lines[0] or "no room for the best weights" in lines[0]
        assert "is intact" in lines[0]
        assert sorted(path.name for path in scratch.glob("*/step-*")) == before
        filler.unlink()
        assert "continuing after step" in untrained.dvc("repro", "train").stderr
        assert trained(untrained) == trained(finished_project)
    finally:
        subprocess.run(["umount", "-l", str(scratch)], check=True)


def md5_of_model(project: Project) -> str:
    return hashlib.md5((project.path / "models/model/model.safetensors").read_bytes()).hexdigest()


def test_a_finished_run_survives_when_dvc_cannot_store_it(
    untrained: Project, finished_project: Project
) -> None:
    """Training ends, DVC's cache is full: the hours of work must not be lost with the outputs."""
    untrained.run("rm", "-rf", ".dvc/cache/files/md5/" + md5_of_model(finished_project)[:2])
    done = untrained.run("python", "-m", "stages.train")
    assert "step 60/60" in done.stderr
    for folder in ("models/model", "models/last", "plots/train"):
        untrained.run("rm", "-rf", folder)
    again = untrained.dvc("repro", "train")
    assert "continuing after step 60" in again.stderr
    assert trained(untrained) == trained(finished_project)


def test_a_forced_run_trains_again_from_the_start(project: Project, finished_project: Project) -> None:
    """What is left of a finished run is only for outputs that DVC could not store."""
    for _ in range(2):
        done = project.dvc("repro", "--force", "--single-item", "train")
        assert "continuing" not in done.stderr
        assert "step 1/60" in done.stderr
    assert trained(project) == trained(finished_project)
