"""The lock of a run's folder; a killed process leaves none."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nima.workspace.errors import UserError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the run's lock. Raises `UserError` if another process does."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("ab+", buffering=0)  # on a full disk, closing has nothing left to write
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().decode() or "unknown"
            raise UserError(
                f"{path}: another trainer (pid {holder}) is running this very run; "
                "wait for it, or stop it first"
            ) from None
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        with (path / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
