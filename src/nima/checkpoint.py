"""Saved state of an unfinished run: written whole or not at all, trusted only when whole.

A run's folder is named by the fingerprint of everything that decides its result, so that another run's
weights can't be found by accident. In it:

    lock                        held while a trainer works here
    run.json                    what the fingerprint was made from
    step-00000300/              state after 300 updates
        model.safetensors  optimizer.safetensors  state.json
        manifest.json           size and sha256 of the others, written last
    best-00000250.safetensors   the best weights so far, named by their step
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nima.errors import CheckpointError, UserError
from nima.outputs import remove
from nima.tensors import read_tensors, write_tensors

MANIFEST = "manifest.json"
FINISHED = "finished.json"
VERSION = 1
FILES = {"model.safetensors", "optimizer.safetensors", "state.json"}
# Room that is left alone beyond a checkpoint's own size: JSON, file system bookkeeping.
SPARE_BYTES = 1_000_000
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to continue after `step` updates."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def run_fingerprint(parts: dict[str, Any]) -> str:
    """sha256 (hex) of everything that decides a run's result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


class RunFolder:
    """The checkpoints of one run. Use inside `open_run`, which holds the lock."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then drop the oldest beyond `keep`. Raises `UserError` when the disk is full.

        Tied weights share memory, which the format refuses: name them once.
        """
        final = self.step_path(checkpoint.step)
        partial = final.with_name(f"partial-{final.name}")
        replaced = final.with_name(f"partial-replaced-{final.name}")
        size = num_bytes(checkpoint.model) + num_bytes(checkpoint.optimizer)
        with self.room_for(size, f"the checkpoint of step {checkpoint.step}", partial):
            partial.mkdir(parents=True)
            write_tensors(partial / "model.safetensors", checkpoint.model)
            write_tensors(partial / "optimizer.safetensors", checkpoint.optimizer)
            write_json(partial / "state.json", checkpoint.state | {"step": checkpoint.step})
            write_json(partial / MANIFEST, manifest_of(partial))
            sync_folder(partial)
            if final.exists():
                final.rename(replaced)
            partial.rename(final)
            sync_folder(self.path)
        remove(replaced)
        self.prune(checkpoint.step)

    def load_newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; `warn` hears about each broken one that is passed over."""
        for path in sorted(self.path.glob("step-*"), reverse=True):
            try:
                checkpoint = load(path)
                if checkpoint.state.get("best"):
                    self.load_best(checkpoint.state["best"])
                return checkpoint
            except CheckpointError as error:
                warn(f"{error}; falling back to the one before")
        return None

    def save_best(self, step: int, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write the best weights so far; returns the record of them that belongs in the run's state."""
        final = self.path / f"best-{step:08d}.safetensors"
        partial = final.with_name(f"partial-{final.name}")
        with self.room_for(num_bytes(weights), f"the best weights, of step {step}", partial):
            write_tensors(partial, weights)
            partial.rename(final)
            sync_folder(self.path)
        return {"file": final.name, "sha256": sha256_of(final)}

    def load_best(self, record: dict[str, Any]) -> dict[str, Tensor]:
        path = self.path / record["file"]
        if not path.is_file() or sha256_of(path) != record["sha256"]:
            raise CheckpointError(f"{path}: missing or damaged")
        return read_tensors(path)

    def finish(self, model: Path) -> None:
        """Note which exported model came out, by the hash that DVC files it under.

        The state stays until `drop_stored`: if DVC then fails to store the outputs, the run is not lost.
        """
        with model.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        write_json(self.path / FINISHED, {"model_md5": md5})

    def prune(self, step: int) -> None:
        """Drop all but the newest `keep` up to `step`; later ones were passed over, so they are broken."""
        found = sorted(self.path.glob("step-*"))
        steps = [path for path in found if path <= self.step_path(step)]
        for path in set(found) - set(steps[-self.keep :]):
            shutil.rmtree(path)
        referenced = set()
        for path in steps[-self.keep :]:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                best = json.loads((path / "state.json").read_text(encoding="utf-8")).get("best") or {}
                referenced.add(best.get("file"))
        newest = max(self.path.glob("best-*"), default=None)
        for path in self.path.glob("best-*"):
            if path != newest and path.name not in referenced:
                path.unlink()

    def step_path(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    @contextlib.contextmanager
    def room_for(self, size: int, what: str, partial: Path) -> Iterator[None]:
        """Look for room before writing; on failure remove what was written, so that older state survives."""
        remove(partial)
        free = shutil.disk_usage(self.path).free
        if free < size + SPARE_BYTES:
            raise self.disk_full(what, f"needs {size + SPARE_BYTES:,} bytes, {free:,} are free")
        try:
            yield
        except OSError as error:
            remove(partial)
            if error.errno in DISK_FULL:
                raise self.disk_full(what, "the disk filled up while it was written") from None
            raise

    def disk_full(self, what: str, why: str) -> UserError:
        newest = max((path.name for path in self.path.glob("step-*")), default=None)
        kept = f"{newest} is intact; free some room and run again to continue from it"
        return UserError(
            f"{self.path}: no room for {what}: {why}. " + (kept if newest else "Free some room and run again")
        )


@contextlib.contextmanager
def open_run(path: Path, parts: dict[str, Any], keep: int) -> Iterator[RunFolder]:
    """The run's folder, locked: two trainers never share one. Raises `UserError` if another holds it."""
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
        for leftover in path.glob("partial-*"):
            remove(leftover)
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
            write_json(path / "run.json", parts)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        yield RunFolder(path, keep)


def drop_stored(runs: Path, is_stored: Callable[[str], bool]) -> None:
    """Delete the finished runs whose exported model DVC holds: `is_stored` answers for a file's MD5.

    A run that a trainer has taken up again is left alone.
    """
    for marker in runs.glob(f"*/{FINISHED}"):
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError),
            (marker.parent / "lock").open("a", encoding="utf-8") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_stored(json.loads(marker.read_text(encoding="utf-8"))["model_md5"]):
                shutil.rmtree(marker.parent)


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint's folder. Raises `CheckpointError` saying which file is wrong."""
    verify(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(
            step=state["step"],
            model=read_tensors(path / "model.safetensors"),
            optimizer=read_tensors(path / "optimizer.safetensors"),
            state=state,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not written by Nima: {' '.join(str(error).split())}") from None


def verify(path: Path) -> None:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        whole = manifest["version"] == VERSION and listed.keys() == FILES
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no {MANIFEST}, so the checkpoint was never finished") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path / MANIFEST}: damaged") from None
    if not whole:
        raise CheckpointError(f"{path / MANIFEST}: damaged, or of another version")
    for name, (size, sha256) in listed.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, {size} were written")
        if sha256_of(file) != sha256:
            raise CheckpointError(f"{file}: damaged (its sha256 differs from the manifest's)")


def manifest_of(folder: Path) -> dict[str, Any]:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    return {"version": VERSION, "files": files}


def write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=True)
        file.write("\n")
    sync_file(path)


def num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
