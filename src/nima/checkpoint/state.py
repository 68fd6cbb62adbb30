"""One checkpoint: tensors and JSON in a folder, and a manifest by which its wholeness is known."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nima.checkpoint.compression import SUFFIXES, compress, content_of
from nima.checkpoint.files import description_of, sha256_of, sync_folder, write_json
from nima.network.tensors import parse_tensors, read_tensors, write_tensors
from nima.workspace.errors import CheckpointError

MANIFEST = "manifest.json"
VERSION = 2
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to continue after `step` updates."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the validation at this very step, if there was one."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself; read from a file, of which every part was checked."""

    run: str
    step: int
    compression: str
    metrics: dict[str, float]
    files: dict[str, dict[str, Any]]
    """By the file's name on disk: bytes, sha256, and plain_bytes before compression."""
    best: dict[str, Any] | None
    """File, and what `files` says of one: the best weights that the state names, beside the checkpoint."""

    @property
    def num_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())


def write(
    checkpoint: Checkpoint, folder: Path, run: str, compression: str, best: dict[str, Any] | None
) -> None:
    """Write everything into a new folder and sync it; the manifest comes last."""
    folder.mkdir(parents=True)
    write_tensors(folder / "model.safetensors", checkpoint.model)
    write_tensors(folder / "optimizer.safetensors", checkpoint.optimizer)
    write_json(folder / "state.json", checkpoint.state | {"step": checkpoint.step})
    files = {}
    for name in FILES:
        plain_bytes = (folder / name).stat().st_size
        path = compress(folder / name, compression)
        files[path.name] = description_of(path) | {"plain_bytes": plain_bytes}
    content = {"version": VERSION, "run": run, "step": checkpoint.step, "compression": compression}
    content |= {"metrics": checkpoint.metrics, "files": files, "best": best}
    write_json(folder / MANIFEST, content | {"sha256": own_sha256(content)})
    sync_folder(folder)


def load(path: Path, manifest: Manifest | None = None) -> Checkpoint:
    """Read and verify a checkpoint's folder. Raises `CheckpointError` saying which file is wrong."""
    known = manifest or verify(path)
    try:
        state = json.loads(plain(path, "state.json", known))
        return Checkpoint(
            step=state["step"],
            model=tensors(path, "model.safetensors", known),
            optimizer=tensors(path, "optimizer.safetensors", known),
            state=state,
            metrics=known.metrics,
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not written by Nima: {' '.join(str(error).split())}") from None


def tensors(path: Path, name: str, manifest: Manifest) -> dict[str, Tensor]:
    if manifest.compression == "none":
        return read_tensors(path / name)  # a map of the file, not a copy
    return parse_tensors(plain(path, name, manifest))


def plain(path: Path, name: str, manifest: Manifest) -> bytes:
    file = name + SUFFIXES[manifest.compression]
    return content_of(path / file, manifest.compression, manifest.files[file]["plain_bytes"])


def verify(path: Path) -> Manifest:
    """Compare every file with the manifest. Raises `CheckpointError`."""
    manifest = read_manifest(path)
    for name, entry in manifest.files.items():
        verify_file(path / name, entry)
    return manifest


def verify_file(file: Path, entry: dict[str, Any]) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing")
    if file.stat().st_size != entry["bytes"]:
        raise CheckpointError(f"{file}: {file.stat().st_size} bytes, {entry['bytes']} were written")
    if sha256_of(file) != entry["sha256"]:
        raise CheckpointError(f"{file}: damaged (its sha256 differs from the manifest's)")


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint's folder. Raises `CheckpointError`."""
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: no {MANIFEST}, so the checkpoint was never finished") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path / MANIFEST}: damaged") from None
    try:
        return manifest_of(content)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path / MANIFEST}: damaged, or of another version") from None


def manifest_of(content: dict[str, Any]) -> Manifest:
    """Raises `ValueError` and its like when anything is not as `write` wrote it."""
    if content.pop("sha256") != own_sha256(content):
        raise ValueError("something in it changed")
    compression, best = content["compression"], content["best"]
    files = {str(name): entry_of(entry, "plain_bytes") for name, entry in content["files"].items()}
    expected = {name + SUFFIXES[compression] for name in FILES}
    if content["version"] != VERSION or files.keys() != expected:
        raise ValueError("another version or other files")
    if best is not None:
        best = entry_of(best, "plain_bytes") | {"file": plain_name(best["file"])}
    metrics = {str(name): float(value) for name, value in content["metrics"].items()}
    step = whole_number(content["step"])
    return Manifest(str(content["run"]), step, compression, metrics, files, best)


def own_sha256(content: dict[str, Any]) -> str:
    """Of a manifest without this very entry."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def entry_of(entry: dict[str, Any], *more: str) -> dict[str, Any]:
    numbers = {name: whole_number(entry[name]) for name in ("bytes", *more)}
    return numbers | {"sha256": str(entry["sha256"])}


def whole_number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number")
    return value


def plain_name(value: Any) -> str:
    if not isinstance(value, str) or Path(value).name != value:
        raise ValueError("not a file's name")
    return value
