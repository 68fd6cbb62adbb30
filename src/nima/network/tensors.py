"""Named tensors in safetensors files: the only form in which weights are written or read."""

import errno
import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

# What it says of a failed write is only in words; anything else that it refuses is a bug of the caller's.
SYSTEM_ERROR = re.compile(r"os error (\d+)")


class DamagedTensorsError(ValueError):
    """A file is not a whole safetensors file."""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write and sync to disk. Raises `OSError` with the system's number when the disk refuses."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, metadata=metadata)
    except SafetensorError as error:
        found = SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from None
    path.chmod(0o666 & ~current_umask())  # the library makes files that only their owner can read
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor by name. Raises `DamagedTensorsError`, or `FileNotFoundError`."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamagedTensorsError(str(error)) from None


def parse_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors in the content of a file. Raises `DamagedTensorsError`."""
    try:
        return load(content)
    except SafetensorError as error:
        raise DamagedTensorsError(str(error)) from None


def current_umask() -> int:
    """Reading it means setting it; the second call puts it back."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
