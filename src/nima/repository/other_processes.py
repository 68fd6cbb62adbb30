"""Other processes of this machine: whether they live, and what they are."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil


def state_of(process: int, command: str) -> str:
    """`runs`, `gone`, or in words what it is that only looks alive. `command`: how it was started."""
    try:
        found = psutil.Process(process)
        if found.status() == psutil.STATUS_ZOMBIE:
            return "is dead but not buried (a zombie)"
        program = Path(command.split(" ", 1)[0]).name
        is_same = any(Path(part).name == program for part in found.cmdline())
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.AccessDenied:
        return "runs"
    return "runs" if is_same else "is another program by now"


def is_running(process: int, word: str) -> bool:
    """Whether a process lives whose command line has this word in it: numbers are given out again."""
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and any(word in part for part in found.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def is_in_use(folder: Path) -> bool:
    """Whether a process works in the folder or below it."""
    for process in psutil.process_iter(["cwd"]):
        place = process.info["cwd"]  # None where it is secret
        if place is not None and Path(place).is_relative_to(folder):
            return True
    return False


def descendants(process: int, words: Collection[str]) -> list[int]:
    """The living processes below one that have one of these words, whole, on their command line."""
    try:
        below = psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for child in below:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if not set(words).isdisjoint(child.cmdline()):
                found.append(child.pid)
    return found
