"""Weights to begin with: of a checkpoint, or of an exported model."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from nima.checkpoint.files import sha256_of
from nima.checkpoint.state import MANIFEST, load
from nima.network import pretrained
from nima.workspace.errors import CheckpointError, UserError

EXPORTED = "config.json"
Shapes = Mapping[str, tuple[int, ...]]


def weights_in(folder: Path) -> dict[str, Tensor]:
    """The parameters by name of a checkpoint's folder or a Hugging Face folder. Raises `UserError`."""
    if (folder / MANIFEST).exists():
        return load(folder).model
    if (folder / EXPORTED).exists():
        return {name: tensor.detach() for name, tensor in pretrained.load(folder).named_parameters()}
    what = "holds neither" if folder.is_dir() else "not found; expected a folder with"
    raise CheckpointError(f"{folder}: {what} a checkpoint ({MANIFEST}) nor an exported model ({EXPORTED})")


def weights_sha256(folder: Path) -> str:
    """The hash by which a run knows what it began with. Raises `UserError`."""
    for name in (MANIFEST, "model.safetensors"):
        if (folder / name).is_file():
            return sha256_of(folder / name)
    weights_in(folder)  # says what is missing
    raise CheckpointError(f"{folder / 'model.safetensors'}: not found")


def put_into(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Copy weights into a model of the very same shape. Raises `CheckpointError` with what differs first."""
    parameters = dict(model.named_parameters())
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if difference := first_difference(found, wanted):
        raise CheckpointError(f"{folder}: of another architecture: {difference}; change the section model")
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])


def first_difference(found: Shapes, wanted: Shapes) -> str | None:
    for name, shape in wanted.items():
        if name not in found:
            return f"it has no {name}, this model has"
        if found[name] != shape:
            return f"{name} has the shape {found[name]}, in this model {shape}"
    more = sorted(found.keys() - wanted.keys())
    return f"it has {more[0]}, this model has not" if more else None


def resolve(path: str, workspace: Path, outputs: tuple[Path, ...]) -> Path:
    """Where `training.init_from` points: from here, or from the main workspace in a temporary run.

    Raises `UserError` for one of the stage's own outputs, which are emptied before it starts.
    """
    folder = Path(path).expanduser()
    if folder.resolve() in [output.resolve() for output in outputs]:
        raise UserError(f"training.init_from: {path}: this stage writes there; name a copy of it elsewhere")
    return folder if folder.exists() or folder.is_absolute() else workspace / folder
