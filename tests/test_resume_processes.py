"""Two processes under DVC: one is killed, then all are stopped, and the bytes are those of a whole run."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from conftest import Project
from test_resume import run_until_step, trained, untrained, wait_until_gone  # noqa: F401

SHORT = {"max_steps": 25, "validate_every_steps": 10}


def worker_of(project: Project, rank: int) -> int:
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "stages.train" in (process.info["cmdline"] or []) and process.info["cwd"] == str(project.path):
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables:
                return process.pid
    raise AssertionError(f"no process of rank {rank}")


def forget(project: Project) -> None:
    """As the fixture `untrained` leaves it, after a run."""
    for folder in ("models/model", "models/last", "plots/train", ".dvc/cache/runs", ".nima/checkpoints"):
        project.run("rm", "-rf", folder)
    project.run("rm", "-f", "metrics/train.json")
    lock = project.read("dvc.lock")
    (project.path / "dvc.lock").write_text(lock[: lock.index("\n  train:\n") + 1])


@pytest.mark.parametrize(("sharding", "optimizer"), [("ddp", "muon"), ("zero3", "adamw")])
def test_two_processes_killed_and_stopped_end_in_the_bytes_of_a_whole_run(
    untrained: Project,  # noqa: F811
    sharding: str,
    optimizer: str,
) -> None:
    untrained.set_params({"training": SHORT | {"optimizer": optimizer}})
    untrained.env |= {"NIMA_PROCESSES": "2", "NIMA_SHARDING": sharding}
    whole = untrained.dvc("repro", "train")
    assert "with 2 processes of 1 threads each" in whole.stderr
    expected = trained(untrained)
    forget(untrained)

    process = untrained.start("dvc", "repro", "train")
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        if line.startswith("step 9/") and line[:7] not in (before[:7] for before in seen):
            os.kill(worker_of(untrained, 1), signal.SIGKILL)
        if line.startswith("step 18/"):
            os.killpg(process.pid, signal.SIGTERM)
            break
        seen.append(line)
    rest, _ = process.communicate(timeout=60)
    output = "".join(seen) + rest
    assert process.returncode != 0
    assert "train: process 1 was killed by SIGKILL; all begin again" in output
    assert "continuing after step" in output
    assert "Traceback" not in output
    wait_until_gone(untrained)
    assert "\n  train:\n" not in untrained.read("dvc.lock")

    done = untrained.dvc("repro", "train")
    assert "continuing after step 1" in done.stderr
    assert "begun with" not in done.stderr
    assert trained(untrained) == expected


def test_a_batch_that_cannot_be_divided_stops_before_anything_starts(untrained: Project) -> None:  # noqa: F811
    untrained.env["NIMA_PROCESSES"] = "17"
    done = untrained.dvc("repro", "train", check=False)
    assert done.returncode != 0
    assert "train: NIMA_PROCESSES: 17 processes cannot share a batch of 16 rows" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_of_one_process_goes_on_in_two_and_says_so(untrained: Project) -> None:  # noqa: F811
    untrained.set_params({"training": SHORT})
    run_until_step(untrained, 12, signal.SIGTERM)
    wait_until_gone(untrained)
    untrained.env |= {"NIMA_PROCESSES": "2", "NIMA_SHARDING": "fsdp"}
    done = untrained.dvc("repro", "train")
    assert "begun with 1 threads, continued with 2 processes of 1 threads each" in done.stderr
