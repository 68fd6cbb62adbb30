"""Folders that stages write: emptied first, and a refusal of the disk told in one line."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nima.workspace.errors import UserError


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses inside into a `UserError` that names the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(
            f"{folder}: cannot be written: {reason}; it must be a folder with room in it"
        ) from None


def remove(folder: Path) -> None:
    """DVC may have linked a whole folder into its cache: then the link goes, not what it points to."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def rewritten(folder: Path) -> Path:
    """An output folder, emptied: outputs are rewritten whole. Raises `UserError` if it can't be written."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            remove(path)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied", str(folder))
    return folder


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """An output folder with just these text files, by name."""
    with writing_to(rewritten(folder)):
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    return folder
