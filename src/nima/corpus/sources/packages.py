"""Pinned packages of PyPI and npm: fetched once, checked against their SHA-256, kept for use offline.

pip and npm fetch them, from wherever they are set up to look. Nothing of a package is run or unpacked.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from nima.corpus.sources.files import checksum
from nima.corpus.sources.registry import fetch_tarball
from nima.corpus.stores.failures import redacted
from nima.workspace.errors import SourceError
from nima.workspace.params import PackageParams


def fetched(package: PackageParams, packages: Path) -> Path:
    """The archive of `package`, from the folder `packages` or else fetched there; its checksum is right."""
    name = f"{package.name}-{package.version}"
    folder = packages / name if package.index == "pypi" else packages / "npm" / name
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


def download(package: PackageParams, folder: Path) -> Path:
    """Fetch the package's archive into `folder`; nothing appears there before it is checked."""
    fetch = pip_download if package.index == "pypi" else npm_download
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as name:
            archive = fetch(package, Path(name))
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
    """A wheel, or else the sdist."""
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
    raise not_fetched(package, f"pip says: {last.removeprefix('ERROR: ')}")


def npm_download(package: PackageParams, folder: Path) -> Path:
    """The tarball as the registry keeps it: by npm, or without npm straight from the registry."""
    command = ["npm", "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--json"]
    command += ["--pack-destination", str(folder), "--loglevel", "error"]
    try:
        npm = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        return fetch_tarball(package, folder)
    if npm.returncode == 0:
        return next(folder.glob("*.tgz"))
    raise not_fetched(package, f"npm says: {npm_complaint(npm.stdout) or 'nothing'}")


def npm_complaint(output: str) -> str:
    try:
        return json.loads(output)["error"]["summary"].strip().splitlines()[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return output.strip().partition("\n")[0]


def not_fetched(package: PackageParams, reason: str) -> SourceError:
    return SourceError(f"package {package.name} {package.version}: cannot be fetched; {redacted(reason)}")


def wrong_checksum(package: PackageParams, found: list[str]) -> SourceError:
    return SourceError(
        f"package {package.name} {package.version}: wrong checksum: expected sha256 {package.sha256}, "
        f"found {' and '.join(dict.fromkeys(found))}; mend the pinned sha256 if you trust it"
    )
