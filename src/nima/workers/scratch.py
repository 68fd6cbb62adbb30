"""Folders for a stage's unfinished work: found again after an interruption, never shared by two runs."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nima.workspace.errors import UserError
from nima.workspace.outputs import writing_to


@contextmanager
def own_folder(parent: Path, name: str) -> Iterator[Path]:
    """`parent`/`name`, locked; removed when the work is done, kept when it is interrupted.

    Work of other names in `parent` that nobody holds is removed then too: it belongs to settings of the past.
    Raises `UserError` if another process holds the folder.
    """
    folder = parent / name
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as holder:
        if holder is not None:
            raise UserError(f"{folder}: process {holder} does this very work already; wait for its end")
        yield folder
        for other in sorted(parent.iterdir()):
            discard(other, is_ours=other == folder)


@contextmanager
def locked(folder: Path) -> Iterator[str | None]:
    """Holds the folder's lock; gives the process id of who holds it instead, if anybody does."""
    with (folder / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            yield lock.read() or "unknown"
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield None


def discard(folder: Path, *, is_ours: bool) -> None:
    if is_ours:
        shutil.rmtree(folder, ignore_errors=True)
    elif (folder / "lock").is_file():
        with locked(folder) as holder:
            if holder is None:
                shutil.rmtree(folder, ignore_errors=True)
