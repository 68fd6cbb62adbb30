"""A stage that starts itself in several processes: signals, failures, restarts, the end of its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nima.training import launch
from nima.workspace.runtime import place_of

ROOT = Path(__file__).parent.parent
# What each process does is in a file that the test writes; it needs no torch.
STAGE = """
import json, os, signal, sys, time
from pathlib import Path
from nima.workspace.errors import UserError
from nima.training.launch import run_stage_in_processes
from nima.workspace.signals import StopRequest

RANK = int(os.environ.get("RANK", "0"))

def main(params, runtime):
    with StopRequest() as stop:
        Path(f"pid-{RANK}").write_text(str(os.getpid()))
        exec(Path("task.py").read_text(), globals() | {"stop": stop, "runtime": runtime})
    return {"ranks": float(runtime.place.num_ranks if runtime.place else 1)}

if __name__ == "__main__":
    run_stage_in_processes("work", main, lambda params, runtime: runtime.processes or 1)
"""
WAIT = """
while True:
    time.sleep(0.02)
    stop.check("saved")
"""


class Stage:
    """A project with one stage, run as DVC runs it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "stages").mkdir()
        (path / "stages/__init__.py").touch()
        (path / "stages/work.py").write_text(STAGE, encoding="utf-8")
        (path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        (path / "dvc.yaml").write_text(
            "stages:\n  work:\n    cmd: x\n    deps: [stages]\n    params: [split]\n"
        )
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "NIMA_"))}
        self.env = kept | {"PYTHONPATH": f"{ROOT / 'src'}", "NIMA_PROCESSES": "2", "NIMA_DEVICE": "cpu"}

    def start(self, task: str) -> subprocess.Popen[str]:
        (self.path / "task.py").write_text(task, encoding="utf-8")
        return subprocess.Popen(
            [sys.executable, "-m", "stages.work"],
            cwd=self.path,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, task: str) -> tuple[int, str, str]:
        process = self.start(task)
        printed, told = process.communicate(timeout=60)
        return process.returncode, printed, told

    def wait_for_workers(self) -> list[int]:
        for _ in range(1000):
            found = [self.path / f"pid-{rank}" for rank in (0, 1)]
            if all(path.exists() and path.read_text() for path in found):
                return [int(path.read_text()) for path in found]
            time.sleep(0.02)
        raise AssertionError("the processes did not start")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def are_gone(pids: list[int]) -> bool:
    for _ in range(250):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_the_processes_know_their_places_and_the_first_ones_figures_are_the_stages(stage: Stage) -> None:
    code, printed, told = stage.run("Path(f'place-{RANK}').write_text(repr(runtime.place))")
    assert (code, told) == (0, "")
    for rank in (0, 1):
        expected = f"Place(rank={rank}, num_ranks=2, local_rank={rank}, num_local_ranks=2)"
        assert (stage.path / f"place-{rank}").read_text() == expected
    timing = json.loads((stage.path / "metrics/timing.json").read_text())["work"]
    assert timing["ranks"] == 2.0
    assert printed.startswith("work: done in")


def test_one_process_is_the_stage_itself(stage: Stage) -> None:
    stage.env["NIMA_PROCESSES"] = "1"
    process = stage.start("Path('place').write_text(repr(runtime.place))")
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "")
    assert (stage.path / "place").read_text() == "None"
    assert (stage.path / "pid-0").read_text() == str(process.pid)


def test_what_the_failed_one_says_is_told_once_and_not_what_followed_from_it(stage: Stage) -> None:
    task = """
if RANK == 1:
    raise UserError("data/x: missing")
time.sleep(0.5)
raise RuntimeError("connection closed by peer")
"""
    assert stage.run(task) == (2, "", "work: data/x: missing\n")


def test_a_bug_in_one_process_keeps_its_traceback(stage: Stage) -> None:
    code, _, told = stage.run("if RANK == 0: raise KeyError('x')\ntime.sleep(60)")
    assert code == 1
    assert told.count("Traceback") == 1
    assert told.splitlines()[-1] == "work: KeyError: 'x'"
    assert are_gone(stage.wait_for_workers())


def test_all_begin_again_when_one_is_killed(stage: Stage) -> None:
    task = """
killed = Path("killed")
if RANK == 1 and not killed.exists():
    killed.touch()
    os.kill(os.getpid(), signal.SIGKILL)
if not (RANK == 1 or killed.exists()):
    time.sleep(60)
Path(f"done-{RANK}").touch()
"""
    code, _, told = stage.run(task)
    assert (code, told) == (0, "work: process 1 was killed by SIGKILL; all begin again\n")
    assert (stage.path / "done-0").exists()
    assert (stage.path / "done-1").exists()


def test_a_process_that_is_killed_again_and_again_ends_the_stage(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, told = stage.run("os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 2
    lines = told.splitlines()
    assert len(lines) == launch.MAX_RESTARTS + 1
    assert lines[-1] in ("work: process 0 was killed by SIGKILL", "work: process 1 was killed by SIGKILL")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_goes_to_all_and_the_stage_says_that_it_was_stopped(
    stage: Stage, number: signal.Signals
) -> None:
    process = stage.start(WAIT)
    workers = stage.wait_for_workers()
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 3
    assert told == f"work: stopped by {number.name}: saved; run again to continue\n"
    assert are_gone(workers)


def test_no_process_outlives_a_stage_that_was_killed(stage: Stage) -> None:
    process = stage.start(WAIT)
    workers = stage.wait_for_workers()
    process.kill()
    process.communicate(timeout=30)
    assert are_gone(workers)


def test_a_launcher_starts_what_it_likes(stage: Stage) -> None:
    """As torchrun would: a process of its own that starts the stage with a place for each."""
    launcher = stage.path / "launcher.py"
    launcher.write_text(
        "import os, subprocess, sys\n"
        "place = {'WORLD_SIZE': '3', 'LOCAL_WORLD_SIZE': '1', 'RANK': '0', 'LOCAL_RANK': '0'}\n"
        "sys.exit(subprocess.call([sys.executable, *sys.argv[1:]], env=os.environ | place))\n"
    )
    stage.env["NIMA_LAUNCHER"] = f"{sys.executable} {launcher}"
    code, _, told = stage.run("Path('place').write_text(repr(runtime.place))")
    assert (code, told) == (0, "")
    assert "num_ranks=3" in (stage.path / "place").read_text()
    stage.env["NIMA_LAUNCHER"] = "no-such-launcher --fast"
    code, _, told = stage.run("")
    assert code == 2
    assert told == "work: NIMA_LAUNCHER: no-such-launcher: No such file or directory\n"


def test_a_process_of_a_foreign_launcher_writes_no_figures_unless_it_is_the_first(stage: Stage) -> None:
    stage.env |= {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert stage.run("") == (0, "", "")
    assert not (stage.path / "metrics").exists()
    assert stage.run("raise UserError('no')") == (2, "", "work: no\n")


def test_a_place_is_whole_or_none() -> None:
    assert place_of({}) is None
    assert place_of({"RANK": "0"}) is None
    whole = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    place = place_of(whole)
    assert place is not None
    assert (place.rank, place.num_ranks, place.local_rank, place.num_local_ranks) == (3, 8, 1, 2)
    with pytest.raises(launch.UserError, match=r"^LOCAL_RANK: expected a number beside RANK"):
        place_of({"RANK": "0", "WORLD_SIZE": "2"})
