"""What a stage read, as one hash; and a guard against inputs that change while a stage runs."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nima.workspace.errors import InputsChangedError, UserError

MAX_NAMES = 5


def fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256, in hex, of the names, sizes and contents of all files in `paths` (files and folders).

    Names are relative to the working folder, so that a copy of the project gives the same hash. Raises
    `UserError` for a path that is not there or cannot be read.
    """
    return fingerprint_of(contents(paths))


def fingerprint_of(hashes: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name}\0{hashes[name]}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def contents(paths: Iterable[Path]) -> dict[str, str]:
    """Each file's size in bytes and SHA-256, by name."""
    return {name: content_of(path) for name, path in files_in(paths)}


def snapshot(paths: Iterable[Path]) -> dict[str, str]:
    """What the file system says about each file, by name: cheap, and it differs after every write."""
    return {name: status_of(path) for name, path in files_in(paths)}


def changed_since(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """One phrase per file that was changed, added or removed; empty if nothing was."""
    return (
        [f"{name} changed" for name in sorted(before) if name in after and before[name] != after[name]]
        + [f"{name} added" for name in sorted(after.keys() - before.keys())]
        + [f"{name} removed" for name in sorted(before.keys() - after.keys())]
    )


@contextmanager
def guard_inputs(paths: Iterable[Path]) -> Iterator[str]:
    """Gives the fingerprint of `paths`; raises `InputsChangedError` if it is another at the end.

    At the end only files are hashed that the file system reports as touched.
    """
    places = list(paths)
    statuses = snapshot(places)
    before = contents(places)
    yield fingerprint_of(before)
    changes = changed_since(before, contents_again(places, before, statuses))
    if changes:
        more = f" and {len(changes) - MAX_NAMES} more" if len(changes) > MAX_NAMES else ""
        raise InputsChangedError(
            f"inputs changed while the stage ran: {', '.join(changes[:MAX_NAMES])}{more}; run it again"
        )


def contents_again(
    places: list[Path], before: Mapping[str, str], statuses: Mapping[str, str]
) -> dict[str, str]:
    try:
        return {
            name: before[name] if statuses.get(name) == status_of(path) else content_of(path)
            for name, path in files_in([place for place in places if place.exists()])
        }
    except FileNotFoundError as error:
        raise InputsChangedError(
            f"inputs changed while the stage ran: {error.filename} removed; run it again"
        ) from None


def files_in(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Every regular file in `paths`, with its name relative to the working folder."""
    for path in paths:
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                # Python writes there while a stage runs.
                folders[:] = [name for name in folders if name != "__pycache__"]
                for name in names:
                    file = Path(folder) / name
                    if file.is_file():
                        yield relative_name(file), file
        elif path.is_file():
            yield relative_name(path), path
        else:
            raise UserError(f"{path}: not found; a stage needs it as input")


def relative_name(path: Path) -> str:
    return Path(os.path.relpath(path)).as_posix()


def content_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            return f"{stream.tell()} {sha256}"
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def status_of(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
