"""Requests to stop, and dying with the parent: real processes, real signals."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest

from nima.workspace.errors import EXIT_INTERRUPTED, Interrupted
from nima.workspace.signals import STOP_SIGNALS, StopRequest, die_with_dvc

SOURCE = Path(__file__).parent.parent / "src"
WAIT_SECONDS = 20


def start(code: str) -> subprocess.Popen[str]:
    """A Python process with `nima` on its path, that has printed "ready"."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    return process


def ends_within(pid: int, seconds: float) -> bool:
    """Whether a process that is no child of ours goes away; a zombie is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


POLLING = """
import time
from nima.workspace.errors import Interrupted
from nima.workspace.signals import StopRequest
with StopRequest() as stop:
    print("ready")
    while not stop:
        time.sleep(0.01)
    try:
        stop.check("the work is saved")
    except Interrupted as error:
        print(error)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_noticed_between_two_pieces_of_work(number: signal.Signals) -> None:
    process = start(POLLING)
    process.send_signal(number)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert output == f"stopped by {number.name}: the work is saved; run again to continue\n"
    assert process.returncode == 0


@pytest.mark.parametrize(("second", "stops"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_only_a_second_ctrl_c_stops_at_once(second: signal.Signals, stops: bool) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM
        if stops:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), second)
        else:
            os.kill(os.getpid(), second)
            assert stop


def test_the_first_ctrl_c_is_only_noticed() -> None:
    with StopRequest() as stop:
        assert not stop
        stop.check()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert caught.value.exit_code == EXIT_INTERRUPTED != 0


def test_afterwards_the_earlier_handlers_are_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


STAGE = """
import time
from nima.workspace.signals import die_with_dvc
die_with_dvc()
print("ready", flush=True)
time.sleep(60)
"""
# Starts the stage as DVC does: a variable names it, and a shell runs its command.
DVC = """
import os, shlex, subprocess, sys, time
code, shell, rest = sys.argv[1:]
command = shlex.join([sys.executable, "-c", code]) + rest
environment = os.environ | {"DVC_STAGE": "train"}
stage = subprocess.Popen([shell, "-c", command], stdout=subprocess.PIPE, text=True, env=environment)
stage.stdout.readline()
print("ready", flush=True)
time.sleep(60)
"""


def running(marker: str) -> list[int]:
    """The processes, zombies aside, with this text among their arguments."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        is_python = "python" in (process.info["cmdline"] or [""])[0]
        if is_python and any(marker in word for word in process.info["cmdline"]):
            found.append(process.pid)
    return found


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="processes are watched through Linux's pidfd"
)
@pytest.mark.parametrize(("shell", "rest"), [("bash", ""), ("dash", ""), ("sh", "; true")])
def test_a_stage_ends_when_dvc_is_killed_though_its_shell_is_not(
    shell: str, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.delenv("DVC_STAGE", raising=False)
    marker = f"# {uuid.uuid4()}"
    arguments = [sys.executable, "-c", DVC, STAGE + marker, shell, rest]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as dvc:
        assert dvc.stdout is not None
        assert dvc.stdout.readline() == "ready\n"
        (stage,) = set(running(marker)) - {dvc.pid}
        try:
            assert not ends_within(stage, 0.1)
            dvc.kill()
            assert ends_within(stage, 5.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stage, signal.SIGKILL)


def test_a_stage_started_by_hand_outlives_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    before = threading.active_count()
    die_with_dvc()
    assert threading.active_count() == before
