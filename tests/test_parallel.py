"""Work over many parts: the same results from one process, several, and a Ray cluster that loses a worker."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from nima.workers import parallel
from nima.workers.parallel import in_processes, in_this_process, on_ray
from nima.workspace import columns
from nima.workspace.errors import UserError

PARTS = list(range(12))


def squared(part: int) -> tuple[int, int]:
    time.sleep(0.01 * (3 - part % 3))  # later parts are done first
    return part * part, os.getpid()


def refusing(part: int) -> int:
    if part == 5:
        raise UserError("part 5: found nothing, expected something")
    return part


def fatal_once(part: int, folder: Path) -> int:
    """Part 4 kills its process at the first try."""
    (folder / f"{part}-{os.getpid()}").touch()
    if part == 4 and len(list(folder.glob("4-*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def fatal(part: int) -> int:
    if part == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def test_results_come_in_the_order_of_parts_from_several_processes() -> None:
    with in_processes(2) as workers:
        results = list(workers.map(squared, PARTS))
    assert [value for value, _ in results] == [part * part for part in PARTS]
    assert os.getpid() not in {process for _, process in results}
    with in_this_process() as workers:
        assert [value for value, _ in workers.map(squared, PARTS)] == [part * part for part in PARTS]


def own_environment(_: int) -> tuple[str | None, bool]:
    return os.environ.get("NIMA_TEST_MOMENT"), "nima.workers.parallel" in sys.modules


def test_workers_have_the_environment_of_the_moment_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for moment in ("first", "second"):
        monkeypatch.setenv("NIMA_TEST_MOMENT", moment)
        with in_processes(2) as workers:
            assert set(workers.map(own_environment, PARTS)) == {(moment, True)}


def own_settings(_: int) -> tuple[str, str]:
    server = psutil.Process().parent()
    assert server is not None
    return columns.pa.default_memory_pool().backend_name, server.environ()["OPENBLAS_NUM_THREADS"]


def test_a_worker_is_one_thread_and_keeps_its_memory_for_the_next_part() -> None:
    with in_processes(2) as workers:
        assert set(workers.map(own_settings, PARTS)) == {("system", "1")}
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def garbage(_: int) -> tuple[bool, bool]:
    return gc.isenabled(), gc.get_freeze_count() > 10_000


def test_a_worker_looks_for_garbage_but_not_among_what_it_was_forked_with() -> None:
    with in_processes(2) as workers:
        assert set(workers.map(garbage, PARTS)) == {(True, True)}
    assert gc.isenabled()


def test_a_single_part_starts_no_process() -> None:
    with in_processes(2) as workers:
        assert list(workers.map(squared, [3])) == [(9, os.getpid())]


def test_parts_are_drawn_only_a_little_ahead() -> None:
    drawn = []

    def parts() -> Iterator[int]:
        for part in range(1000):
            drawn.append(part)
            yield part

    with in_processes(2) as workers:
        results = workers.map(squared, parts())
        for _ in range(3):
            next(results)
        assert len(drawn) <= 3 + 2 * parallel.AHEAD_PER_WORKER


def test_an_error_of_a_worker_is_raised_here() -> None:
    with in_processes(2) as workers, pytest.raises(UserError, match="part 5: found nothing"):
        list(workers.map(refusing, PARTS))


def test_a_part_whose_worker_is_killed_is_done_by_another(tmp_path: Path) -> None:
    with in_processes(2) as workers:
        assert list(workers.map(partial(fatal_once, folder=tmp_path), PARTS)) == PARTS
    assert len(list(tmp_path.glob("4-*"))) >= 2


def test_a_part_that_always_kills_its_worker_ends_in_one_line() -> None:
    with in_processes(2) as workers, pytest.raises(UserError, match=r"died 4 times.*NIMA_WORKERS lower"):
        list(workers.map(fatal, PARTS))


STAGE = """
import os, sys, threading, time
from pathlib import Path
from nima.workers.parallel import get_ready, in_processes
from nima.workspace import runtime

def seen(part):
    files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()]
    return os.getcwd(), hasattr(sys, "is_stage"), str(Path("open").resolve()) in files

if __name__ == "__main__":
    sys.is_stage = True
    opened = open("open", "w")
    if sys.argv[1] == "thread":
        threading.Thread(target=time.sleep, args=[1], daemon=True).start()
    if sys.argv[1] != "nothing":
        get_ready(runtime.load(Path.cwd()))
    with in_processes(2) as workers:
        print(set(workers.map(seen, range(9))))
        for _ in workers.map(time.sleep, [0.01, 0.01, 0.01, 60, 60] if sys.argv[1] == "killed" else []):
            print("ready", flush=True)
"""


def stage(folder: Path, case: str, workers: str = "2") -> "subprocess.Popen[str]":
    """A program that forks its workers as a stage does."""
    (folder / "stage.py").write_text(STAGE)
    environment = os.environ | {"PYTHONPATH": str(Path("src").resolve()), "NIMA_WORKERS": workers}
    command = [sys.executable, folder / "stage.py", case]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)


@pytest.mark.parametrize(
    ("case", "workers", "is_fork"),
    [("fork", "2", True), ("fork", "1", False), ("thread", "2", False), ("nothing", "2", False)],
)
def test_workers_come_from_a_fork_of_a_stage_that_has_no_threads(
    tmp_path: Path, case: str, workers: str, is_fork: bool
) -> None:
    """They know what it has imported, and hold none of its files."""
    with stage(tmp_path, case, workers) as process:
        answers, _ = process.communicate(timeout=60)
    assert answers == f"{{({str(tmp_path)!r}, {is_fork}, False)}}\n"
    assert process.returncode == 0


@pytest.mark.parametrize("case", ["killed", "killed without fork"])
def test_workers_end_with_a_killed_owner(tmp_path: Path, case: str) -> None:
    with stage(tmp_path, "killed", "1" if "without" in case else "2") as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        assert owner.stdout.readline() == "ready\n"
        family = psutil.Process(owner.pid).children(recursive=True)
        assert len(family) >= 2
        owner.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []


# ------------------------------------------------------------------------------------------------- Ray


def test_a_ray_cluster_gives_the_same_results_and_outlives_a_killed_worker(
    cluster: tuple[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster[0])
    monkeypatch.setenv("PYTHONPATH", str(Path("tests").resolve()))
    with on_ray() as workers:
        assert list(workers.map(partial(fatal_once, folder=tmp_path), PARTS)) == PARTS
        with pytest.raises(UserError, match="part 5: found nothing"):
            list(workers.map(refusing, PARTS))
    assert len(list(tmp_path.glob("4-*"))) >= 2


def test_a_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the extra ray: pip install 'nima-lm\[ray\]'"), on_ray():
        pass


def test_a_ray_address_where_nothing_answers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS: no Ray cluster answers at 127\.0\.0\.1:1") as caught:
        on_ray().__enter__()
    assert "\n" not in str(caught.value)
