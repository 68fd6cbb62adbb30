"""Requests to stop, and dying with the parent: real processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nima.errors import EXIT_INTERRUPTED, Interrupted
from nima.signals import STOP_SIGNALS, StopRequest

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
from nima.errors import Interrupted
from nima.signals import StopRequest
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


CHILD = """
import sys, time
sys.path.insert(0, {source!r})
from nima.signals import die_with_parent
die_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print("ready", child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's"
)
def test_a_stage_dies_with_its_killed_parent() -> None:
    code = PARENT.format(child=CHILD.format(source=str(SOURCE)))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[1])
        try:
            assert not ends_within(pid, 0.1)
            parent.kill()
            assert ends_within(pid, 2.0)
        finally:
            if not ends_within(pid, 0):
                os.kill(pid, signal.SIGKILL)
