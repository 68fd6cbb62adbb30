"""Requests to stop, noticed between two pieces of work; and dying with the parent process."""

import ctypes
import os
import signal
import sys
from types import FrameType
from typing import Self

from nima.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopRequest:
    """Turns stop signals into a flag for the work to poll. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> Self:
        self.previous = {number: signal.signal(number, self.notice) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def notice(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __bool__(self) -> bool:
        return self.received is not None

    def check(self, progress: str = "nothing was lost") -> None:
        """Raise `Interrupted` if a signal came."""
        if self.received is not None:
            raise Interrupted(f"stopped by {self.received.name}: {progress}; run again to continue")


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies: a killed `dvc repro` must leave no trainer behind."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)
