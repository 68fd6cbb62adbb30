"""Finished runs, which stay until DVC has stored what came out of them."""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

FINISHED = "finished.json"


def mark_finished(run: Path, model: Path) -> None:
    """Note which exported model came out, by the hash that DVC files it under.

    The state stays until `drop_stored`: if DVC then fails to store the outputs, the run is not lost.
    """
    with model.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    (run / FINISHED).write_text(json.dumps({"model_md5": md5}) + "\n", encoding="utf-8")


def drop_stored(runs: Path, is_stored: Callable[[str], bool]) -> None:
    """Delete the finished runs whose exported model DVC holds: `is_stored` answers for a file's MD5.

    A run that a trainer has taken up again is left alone, and so is one with named checkpoints.
    """
    for marker in runs.glob(f"*/{FINISHED}"):
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError),
            (marker.parent / "lock").open("a", encoding="utf-8") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_named = any(marker.parent.glob("names/*"))
            if not is_named and is_stored(json.loads(marker.read_text(encoding="utf-8"))["model_md5"]):
                shutil.rmtree(marker.parent)
