"""Requests to stop, noticed between two pieces of work; and ending with the DVC that started a stage."""

import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

from nima.workspace.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Turns stop signals into a flag for the work to poll. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.noticed = time.perf_counter()

    def __enter__(self) -> Self:
        self.previous = {number: signal.signal(number, self.notice) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def notice(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.noticed = time.perf_counter()
        self.received = signal.Signals(number)

    def __bool__(self) -> bool:
        return self.received is not None

    def check(self, progress: str = "nothing was lost") -> None:
        """Raise `Interrupted` if a signal came."""
        if self.received is not None:
            self.end(progress)

    def end(self, progress: str) -> NoReturn:
        """Raise `Interrupted`, also when the signal came to another process."""
        name = self.received.name if self.received else "a signal to another process"
        raise Interrupted(f"stopped by {name}: {progress}; run again to continue")

    def saved(self, state: str) -> NoReturn:
        """Raise `Interrupted`, which tells how long after the signal this state was saved."""
        seconds = time.perf_counter() - self.noticed
        try:
            self.end(f"{state} is saved" + (f", {seconds:.2f} s after the signal" if self else ""))
        except Interrupted as stop:
            stop.figures = {"signal_to_saved_seconds": seconds} if self else {}
            raise


def die_with_dvc() -> None:
    """Send this process SIGTERM when the DVC that started it dies: a killed `dvc repro` leaves no trainer.

    DVC starts a stage through the user's shell, and some shells stay in between, so the parent's death
    (PR_SET_PDEATHSIG) would not do. A stage started by hand may outlive its shell.
    """
    stage = os.environ.get("DVC_STAGE")
    if stage is not None and sys.platform.startswith("linux"):
        end_with(started_stage(f"DVC_STAGE={stage}".encode()))


def end_with(process: int | None) -> None:
    """Send this process SIGTERM when that other one ends; at once if it is None or gone."""
    if not sys.platform.startswith("linux"):
        return
    try:
        watched = os.pidfd_open(process) if process is not None else None
    except ProcessLookupError:
        watched = None
    if watched is None:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        threading.Thread(target=end_after, args=(watched,), name="end-with", daemon=True).start()


def started_stage(variable: bytes) -> int | None:
    """The nearest ancestor's process id without this environment variable: the one that set it."""
    ancestor = os.getppid()
    while ancestor > 1:
        process = Path("/proc") / str(ancestor)
        try:
            if variable not in process.joinpath("environ").read_bytes().split(b"\0"):
                return ancestor
            ancestor = int(process.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return None


def end_after(process: int) -> None:
    """Wait for the end of the process behind a pidfd, then ask this one to stop."""
    watch = select.poll()
    watch.register(process, select.POLLIN)
    watch.poll()
    os.kill(os.getpid(), signal.SIGTERM)
