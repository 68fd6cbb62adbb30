"""The folder of one run: which checkpoints are in it, and who may write there."""

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nima.checkpoint import names
from nima.checkpoint.background import Staging, Writer
from nima.checkpoint.compression import SUFFIXES, compress, content_of
from nima.checkpoint.files import description_of, sync_folder, write_json
from nima.checkpoint.finished_runs import mark_finished
from nima.checkpoint.lock import locked
from nima.checkpoint.mirror import Mirror
from nima.checkpoint.state import Checkpoint, Manifest, load, read_manifest, verify, verify_file, write
from nima.network.tensors import parse_tensors, read_tensors, write_tensors
from nima.workspace.errors import CheckpointError, UserError
from nima.workspace.metrics import larger_is_better
from nima.workspace.outputs import remove

# Room that is left alone beyond a checkpoint's own size: JSON, file system bookkeeping.
SPARE_BYTES = 1_000_000
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_fingerprint(parts: dict[str, Any]) -> str:
    """sha256 (hex) of everything that decides a run's result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


class RunFolder:
    """The checkpoints of one run. Use inside `open_run`, which holds the lock.

    Saving copies the tensors and returns; a thread writes. `keep` of the newest checkpoints stay, and
    `keep_best` of those with the best `best_metric`, and all that have a name.
    """

    def __init__(
        self,
        path: Path,
        keep: int,
        *,
        keep_best: int = 0,
        best_metric: str = "loss",
        compression: str = "none",
        mirror: Mirror | None = None,
    ) -> None:
        self.path = path
        self.keep, self.keep_best, self.best_metric = keep, keep_best, best_metric
        self.compression = compression
        self.mirror = mirror
        self.writer = Writer()
        self.staged_model, self.staged_optimizer, self.staged_best = Staging(), Staging(), Staging()
        self.answering: list[str] = []
        """Names that the checkpoint which is being written will have."""
        self.best: dict[str, Any] | None = None
        """The newest best weights: file, bytes, sha256. Touched by the writer's thread."""

    # ------------------------------------------------------------------------------------------ saving

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then drop what is not to be kept. Raises `UserError` when the disk is full.

        Tied weights share memory, which the format refuses: name them once.
        """
        self.begin_save(checkpoint)
        self.wait()

    def begin_save(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint and write it in the background, after those before. Raises what they raised."""
        self.writer.wait("checkpoint")
        copied = replace(
            checkpoint,
            model=self.staged_model.copy(checkpoint.model),
            optimizer=self.staged_optimizer.copy(checkpoint.optimizer),
            # Lists and mappings in it grow or are replaced by the loop; what they hold is not changed.
            state={key: shallow_copy(value) for key, value in checkpoint.state.items()},
        )
        self.answering = names.requested(self.path)
        self.writer.begin("checkpoint", partial(self.write, copied, self.answering))

    def write(self, checkpoint: Checkpoint, wanted_names: list[str]) -> None:
        final = self.step_path(checkpoint.step)
        unfinished = final.with_name(f"partial-{final.name}")
        replaced = final.with_name(f"replaced-{final.name}")
        sizes = num_bytes(checkpoint.model), num_bytes(checkpoint.optimizer)
        best = self.best if checkpoint.state.get("best") else None
        with self.room_for(sizes, f"the checkpoint of step {checkpoint.step}", unfinished):
            write(checkpoint, unfinished, self.path.name, self.compression, best)
            if final.exists():
                final.rename(replaced)
            unfinished.rename(final)
            sync_folder(self.path)
            remove(replaced)
        for name in wanted_names:
            names.answer(self.path, name, final.name)
        self.prune(checkpoint.step)
        if self.mirror is not None:
            self.mirror.wake()

    def save_best(self, step: int, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Copy the best weights so far and write them in the background.

        Returns the record of them that belongs in the run's state.
        """
        self.writer.wait("best")
        name = f"best-{step:08d}.safetensors"
        self.writer.begin("best", partial(self.write_best, step, name, self.staged_best.copy(weights)))
        return {"file": name + SUFFIXES[self.compression]}

    def write_best(self, step: int, name: str, weights: dict[str, Tensor]) -> None:
        unfinished = self.path / f"partial-{name}"
        with self.room_for((num_bytes(weights),), f"the best weights, of step {step}", unfinished):
            write_tensors(unfinished, weights)
            plain_bytes = unfinished.stat().st_size
            packed = compress(unfinished, self.compression)
            final = self.path / packed.name.removeprefix("partial-")
            packed.rename(final)
            sync_folder(self.path)
        self.best = {"file": final.name, "plain_bytes": plain_bytes} | description_of(final)

    def wait(self) -> None:
        """Until all that was begun is on the disk. Raises `UserError` when it did not fit there."""
        self.writer.wait()

    def close(self) -> None:
        """Wait for what was begun, whatever comes of it."""
        self.writer.close()
        if self.mirror is not None:
            self.mirror.close()

    def check(self) -> None:
        """Raise what writing in the background has raised by now."""
        self.writer.check()

    def wants(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether a checkpoint is asked for by name, or would be among the best that are kept."""
        if set(names.requested(self.path)) - set(self.answering):
            return True
        if not self.keep_best or self.best_metric not in metrics:
            return False
        self.writer.wait("checkpoint")
        manifests = self.manifests()
        best = self.best_steps(manifests)[: self.keep_best]
        is_better = len(best) < self.keep_best or self.rank(metrics) < self.rank(manifests[best[-1]].metrics)
        return step not in manifests and is_better

    # ----------------------------------------------------------------------------------------- loading

    def load_newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; `warn` hears about each broken one that is passed over."""
        self.wait()
        broken = self.checkpoints(newest_first=True)
        for path in broken:
            try:
                manifest = verify(path)
                if manifest.run != self.path.name:
                    raise CheckpointError(f"{path}: belongs to another run, {manifest.run}")
                checkpoint = load(path, manifest)
                if checkpoint.state.get("best"):
                    self.verify_best(manifest)
                self.best = manifest.best
                return checkpoint
            except CheckpointError as error:
                warn(f"{error}; falling back to the one before")
        if broken and self.mirror is not None:
            for path in broken:
                remove(path)
            return self.load_newest(warn) if self.mirror.restore() else None
        return None

    def verify_best(self, manifest: Manifest) -> None:
        if manifest.best is None:
            raise CheckpointError(f"{self.step_path(manifest.step)}: its manifest names no best weights")
        file = self.path / manifest.best["file"]
        try:
            verify_file(file, manifest.best)
        except CheckpointError:
            raise CheckpointError(f"{file}: missing or damaged") from None

    def load_best(self, record: dict[str, Any]) -> dict[str, Tensor]:
        """The weights that `save_best` gave this record for. Raises `CheckpointError`."""
        self.wait()
        path, known = self.path / record["file"], self.best
        if known is None or known["file"] != path.name:
            raise CheckpointError(f"{path}: nothing vouches for these weights")
        try:
            verify_file(path, known)
        except CheckpointError:
            raise CheckpointError(f"{path}: missing or damaged") from None
        kind = next(kind for kind, suffix in SUFFIXES.items() if path.name.endswith(f".safetensors{suffix}"))
        if kind == "none":
            return read_tensors(path)
        return parse_tensors(content_of(path, kind, known["plain_bytes"]))

    # ----------------------------------------------------------------------------------------- keeping

    def prune(self, step: int) -> list[Path]:
        """Drop what is not to be kept; checkpoints beyond `step` were passed over, so they are broken.

        Returns what was dropped.
        """
        with names.naming(self.path):
            found, named = self.checkpoints(), set(names.names_in(self.path).values())
            steps = [path for path in found if path <= self.step_path(step)]
            kept = {*steps[-self.keep :]}
            manifests = self.manifests()
            kept |= {self.step_path(best) for best in self.best_steps(manifests)[: self.keep_best]}
            kept &= set(steps)
            kept |= {path for path in found if path.name in named}
            dropped = [path for path in found if path not in kept]
            for path in dropped:
                # A folder that is half removed must not look like a checkpoint.
                path.rename(doomed := path.with_name(f"partial-dropped-{path.name}"))
                shutil.rmtree(doomed)
        referenced = {
            manifest.best["file"]
            for at, manifest in manifests.items()
            if manifest.best and self.step_path(at) in kept
        }
        newest = max(self.path.glob("best-*"), default=None)
        for path in self.path.glob("best-*"):
            if path != newest and path.name not in referenced:
                path.unlink()
                dropped.append(path)
        return dropped

    def manifests(self) -> dict[int, Manifest]:
        """By step; checkpoints whose manifest can't be read are left out."""
        found = {}
        for path in self.checkpoints():
            with contextlib.suppress(CheckpointError):
                found[int(path.name.removeprefix("step-"))] = read_manifest(path)
        return found

    def best_steps(self, manifests: dict[int, Manifest]) -> list[int]:
        """The steps with the metric that decides, best first, earlier before later."""
        scored = [step for step, manifest in manifests.items() if self.best_metric in manifest.metrics]
        return sorted(scored, key=lambda step: (self.rank(manifests[step].metrics), step))

    def rank(self, metrics: dict[str, float]) -> float:
        sign = -1.0 if larger_is_better(self.best_metric) else 1.0
        return sign * metrics[self.best_metric]

    def checkpoints(self, *, newest_first: bool = False) -> list[Path]:
        return sorted(self.path.glob("step-" + "[0-9]" * 8), reverse=newest_first)

    def step_path(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def finish(self, model: Path) -> None:
        """Note which exported model came out of this run; see `drop_stored`."""
        mark_finished(self.path, model)

    # -------------------------------------------------------------------------------------------- disk

    @contextlib.contextmanager
    def room_for(self, sizes: tuple[int, ...], what: str, unfinished: Path) -> Iterator[None]:
        """Look for room before writing; on failure remove what was written, so that older state survives."""
        remove(unfinished)
        needed = sum(sizes) + SPARE_BYTES
        if self.compression != "none":  # which lies beside the plain file for a while
            needed += max(sizes)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise self.disk_full(what, f"needs {needed:,} bytes, {free:,} are free")
        try:
            yield
        except OSError as error:
            remove(unfinished)
            remove(unfinished.with_name(unfinished.name + SUFFIXES[self.compression]))
            with contextlib.suppress(OSError):  # else the next one to open the run does it
                recover_replaced(self.path)
            if error.errno in DISK_FULL:
                raise self.disk_full(what, "the disk filled up while it was written") from None
            raise

    def disk_full(self, what: str, why: str) -> UserError:
        newest = max((path.name for path in self.checkpoints()), default=None)
        kept = f"{newest} is intact; free some room and run again to continue from it"
        return UserError(
            f"{self.path}: no room for {what}: {why}. " + (kept if newest else "Free some room and run again")
        )


class NoFolder:
    """What a process has in a run's folder that leaves saving to another: nothing."""

    path = Path()

    def load_newest(self, warn: Callable[[str], None]) -> None: ...

    def load_best(self, record: dict[str, Any]) -> dict[str, Tensor]:  # noqa: ARG002
        return {}

    def begin_save(self, checkpoint: Checkpoint) -> None: ...

    def save_best(self, step: int, weights: dict[str, Tensor]) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def check(self) -> None: ...

    def wait(self) -> None: ...

    def wants(self, step: int, metrics: dict[str, float]) -> bool:  # noqa: ARG002
        return False

    def step_path(self, step: int) -> Path:  # noqa: ARG002
        return self.path

    def finish(self, model: Path) -> None: ...


@contextlib.contextmanager
def open_run(path: Path, parts: dict[str, Any], keep: int, **how: Any) -> Iterator[RunFolder]:
    """The run's folder, locked: two trainers never share one. Raises `UserError` if another holds it.

    `how` is what `RunFolder` takes beside. At the end everything that was begun is written.
    """
    with locked(path):
        for leftover in path.glob("partial-*"):
            remove(leftover)
        recover_replaced(path)
        try:
            write_json(path / "run.json", parts)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        folder = RunFolder(path, keep, **how)
        if folder.mirror is not None:
            folder.mirror.restore()
        try:
            yield folder
            folder.wait()
        finally:
            folder.close()


def recover_replaced(path: Path) -> None:
    """Saving a step again puts the old folder aside for a moment: whoever was stopped then gets it back."""
    for aside in path.glob("replaced-*"):
        final = aside.with_name(aside.name.removeprefix("replaced-"))
        if final.exists():
            remove(aside)
        else:
            aside.rename(final)


def num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def shallow_copy(value: Any) -> Any:
    return value.copy() if isinstance(value, list | dict) else value
