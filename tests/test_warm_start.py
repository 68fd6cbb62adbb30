"""Programs that tests start are what they would be: only sooner there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import Project
from warm_start import READ_AT_IMPORT

TOLD = """
import os, pathlib, sys
print(pathlib.Path.cwd(), sys.argv[1:], os.environ["WORD"], sys.stdin.read(), "torch" in sys.modules)
print("nima" in sys.modules, sys.path[0], file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "stages").mkdir()
    project = Project(tmp_path)
    until = time.monotonic() + 60
    (tmp_path / "stages/ready.py").write_text("import sys; sys.exit('torch' not in sys.modules)")
    while project.run("python", "-m", "stages.ready", check=False).returncode:
        values = {name: value for name, value in project.env.items() if name.startswith(READ_AT_IMPORT)}
        assert time.monotonic() < until, f"the server does not answer, or other values are set: {values}"
    return project


def told(project: Project, **changes: str) -> subprocess.CompletedProcess[str]:
    (project.path / "stages/tell.py").write_text(TOLD)
    env = project.warm_env | {"WORD": "a word"} | changes
    command = ["python", "-m", "stages.tell", "one", "two words"]
    return subprocess.run(
        command, cwd=project.path, env=env, input="typed", text=True, capture_output=True, check=False
    )


def test_it_has_the_callers_folder_words_environment_streams_and_exit_code(project: Project) -> None:
    done = told(project)
    assert done.stdout == f"{project.path} ['one', 'two words'] a word typed True\n"
    assert done.stderr == f"False {project.path}\n"
    assert done.returncode == 3


def test_what_libraries_read_when_they_are_loaded_makes_it_a_fresh_one(project: Project) -> None:
    assert told(project, OMP_NUM_THREADS="2").stdout.endswith("a word typed False\n")


def test_what_is_read_later_does_not(project: Project) -> None:
    assert told(project, PYTHONBREAKPOINT="ray.util.rpdb.set_trace").stdout.endswith("a word typed True\n")


def test_a_failure_is_told_as_python_tells_it(project: Project) -> None:
    (project.path / "stages/fail.py").write_text("raise ValueError('a reason')")
    done = project.run("python", "-m", "stages.fail", check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: a reason\n")
    (project.path / "stages/fail.py").write_text("import os; os.kill(os.getpid(), 15)")
    assert project.run("python", "-m", "stages.fail", check=False).returncode == -signal.SIGTERM


def test_other_programs_are_the_true_ones(project: Project) -> None:
    done = project.run("python", "-c", "import os, sys; print(sys.executable, os.getppid())")
    assert done.stdout == f"{sys.executable} {os.getpid()}\n"


def test_it_ends_when_its_caller_is_killed(project: Project) -> None:
    sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    (project.path / "stages/sleep.py").write_text(sleep)
    command = ["python", "-m", "stages.sleep"]
    with subprocess.Popen(
        command, cwd=project.path, env=project.warm_env, stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        program = psutil.Process(int(caller.stdout.readline()))
        assert program.pid != caller.pid
        caller.kill()
    program.wait(20)


def test_it_outlives_callers_that_end_with_their_programs(project: Project) -> None:
    # It is held until both are gone, so that it hears of both at once.
    lines = ("import os, sys", "assert 'torch' in sys.modules", "server = os.getppid()")
    ends = ("print(server, os.getpid(), flush=True)", "os.kill(server, 19)", "os.kill(os.getpid(), 9)")
    (project.path / "stages/both.py").write_text("\n".join((*lines, *ends)))
    command = ["python", "-m", "stages.both"]
    caller = subprocess.Popen(
        command, cwd=project.path, env=project.warm_env, stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    server, program = map(int, caller.stdout.readline().split())
    while psutil.Process(program).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    caller.kill()
    caller.communicate()
    os.kill(server, signal.SIGCONT)
    assert project.run("python", "-m", "stages.ready", check=False).returncode == 0


def test_it_outlives_callers_that_ask_for_nothing(project: Project) -> None:
    address = Path(shutil.which("python", path=project.warm_env["PATH"]) or "").parent.parent / "socket"
    for words in (b"", b"\n", b"\n{"):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(address))
            if words:
                socket.send_fds(caller, [words[:1]], [0, 1, 2])
                caller.sendall(words[1:])
    assert project.run("python", "-m", "stages.ready", check=False).returncode == 0
