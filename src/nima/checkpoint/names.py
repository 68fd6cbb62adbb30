"""Checkpoints with names, which pruning leaves alone; and requests to a running trainer for one."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nima.workspace.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> str:
    """Raises `UserError` for what can't be a name."""
    if not NAME.fullmatch(name):
        raise UserError(f"checkpoint name {name!a}: expected letters, digits, '.', '_' and '-', at most 100")
    return name


def names_in(run: Path) -> dict[str, str]:
    """The name of each named checkpoint's folder, by name. A link to nothing is none."""
    return {link.name: link.resolve().name for link in sorted(run.glob("names/*")) if link.exists()}


@contextlib.contextmanager
def naming(run: Path) -> Iterator[Path]:
    """Holds off others who name or prune; gives the folder of names."""
    folder = run / "names"
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def give_name(run: Path, name: str, checkpoint: str) -> None:
    """Link a name to a checkpoint's folder. Raises `UserError` if either is not to be had."""
    check_name(name)
    with naming(run) as folder:
        taken = names_in(run).get(name)
        if taken not in (None, checkpoint):
            raise UserError(f"{folder / name}: already names {taken}; release that name, or choose another")
        if not (run / checkpoint).is_dir():
            raise UserError(f"{run / checkpoint}: not found; see `nima checkpoint list`")
        if taken is None:
            (folder / name).unlink(missing_ok=True)  # a link to nothing
            (folder / name).symlink_to(Path("..") / checkpoint)


def release_name(run: Path, name: str) -> None:
    """Take a name away; pruning may then drop its checkpoint. Raises `UserError` if nothing has it."""
    with naming(run) as folder:
        link = folder / check_name(name)
        if not link.is_symlink():
            raise UserError(f"{link}: no checkpoint has this name; see `nima checkpoint list`")
        link.unlink()


def request_save(run: Path, name: str) -> Path:
    """Ask the run's trainer for a checkpoint of this name; the file goes when it is saved."""
    check_name(name)
    if name in names_in(run):
        raise UserError(f"{run / 'names' / name}: the name is taken; release it, or choose another")
    request = run / "requests" / name
    request.parent.mkdir(exist_ok=True)
    request.touch()
    return request


def requested(run: Path) -> list[str]:
    """The names that are asked for."""
    try:
        with os.scandir(run / "requests") as entries:
            return sorted(entry.name for entry in entries if NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []


def answer(run: Path, name: str, checkpoint: str) -> None:
    """Name the saved checkpoint and withdraw the request. A name that was given meanwhile stays."""
    with contextlib.suppress(UserError):
        give_name(run, name, checkpoint)
    (run / "requests" / name).unlink(missing_ok=True)
