"""One commit of the project in a folder of its own, with just the data that its stages start from.

The workspace is only read: Git's objects and DVC's cache are looked up there, everything new is written into
the clone. What the cache lacks is fetched from DVC's remote.
"""

import configparser
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nima.repository import git
from nima.repository.dvc_command import dvc, environment, reason
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.params import params_file

Hashes = dict[str, str]
"""DVC's MD5 by path."""


@dataclass(frozen=True)
class Stage:
    """What dvc.lock says of a stage."""

    deps: Hashes
    outs: Hashes
    params: dict[str, Any]


@dataclass(frozen=True)
class Clone:
    root: Path
    """The workspace."""
    project: Path
    """The project's folder in the clone."""
    settings: dict[str, str]
    """The environment of what runs there."""

    def lock(self) -> dict[str, Stage]:
        """Every recorded stage. Raises `UserError` if there is none."""
        path = self.project / "dvc.lock"
        if not path.is_file():
            raise UserError("no dvc.lock in that commit, so no run is recorded: dvc repro, then commit it")
        stages = params_file.plain(params_file.parse(path)).get("stages") or {}
        return {
            name: Stage(
                deps={entry["path"]: entry.get("md5", "") for entry in stage.get("deps") or []},
                outs={entry["path"]: entry.get("md5", "") for entry in stage.get("outs") or []},
                params=stage.get("params") or {},
            )
            for name, stage in stages.items()
        }

    def dvc(self, *arguments: str) -> tuple[int, str]:
        return dvc(self.project, *arguments, settings=self.settings)

    def object(self, md5: str) -> Path | None:
        """A file of DVC's cache: the clone's own, else the workspace's."""
        for cache in (self.project / ".dvc/cache", runtime.dvc_cache_of(self.root)):
            path = cache / "files" / "md5" / md5[:2] / md5[2:]
            if path.is_file():
                return path
        return None

    def members(self, md5: str) -> Hashes | None:
        """The files of an output by their path in it (a single file: by ""); None if the cache lacks it."""
        if not md5.endswith(".dir"):
            return {"": md5}
        listing = self.object(md5)
        if listing is None:
            return None
        try:
            entries = json.loads(listing.read_text(encoding="utf-8"))
            return {entry["relpath"]: entry["md5"] for entry in entries}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{listing}: damaged: remove it, then dvc fetch") from None

    def lacks(self, md5: str) -> bool:
        members = self.members(md5)
        return members is None or any(self.object(member) is None for member in members.values())

    def take(self, inputs: Hashes) -> None:
        """Put recorded data in its place. Raises `UserError` naming what is nowhere to be had."""
        printed = ""
        if wanted := [path for path, md5 in inputs.items() if self.lacks(md5)]:
            _, printed = self.dvc("fetch", *wanted)
        if lacking := [path for path in wanted if self.lacks(inputs[path])]:
            lines = [f"{path}: neither in DVC's cache nor fetched from its remote" for path in lacking]
            has_remote = bool(self.dvc("remote", "list")[1].strip())
            why = f"dvc fetch: {reason(printed)}" if has_remote else "no remote is set: dvc remote add -d"
            lines.append(f"{why}; dvc push the data from where it is")
            raise UserError("\n".join(lines))
        for md5 in inputs.values():
            for member in {md5, *(self.members(md5) or {}).values()}:
                self.copy_object(member)
        if inputs:
            code, printed = self.dvc("checkout", *inputs)
            if code != 0:
                raise UserError(f"dvc checkout in the clone: {reason(printed)}")

    def copy_object(self, md5: str) -> None:
        source = self.object(md5)
        target = self.project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        if source is not None and source != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            if (found := md5_of(target)) != md5.removesuffix(".dir"):
                raise UserError(f"{source}: damaged, its MD5 is {found}: remove it, then dvc fetch")


def clone(root: Path, commit: str, folder: Path) -> Clone:
    """Check `commit` out into `folder`, which must be empty."""
    place, packages = folder / "clone", folder / "packages"
    prefix = (git.ask(root, "rev-parse", "--show-prefix") or "").strip()
    check_out(root, commit, place)
    project = place / prefix
    if not (project / ".dvc").is_dir():
        raise UserError(f"{commit[:7]}: no .dvc in that commit, so it records nothing of DVC's")
    settings = project / ".dvc" / "config.local"
    with settings.open("w", encoding="utf-8") as file:
        local_config(root).write(file)
    mirror(runtime.load(root).packages, packages)
    own = {"DVC_SITE_CACHE_DIR": str(folder / "site-cache"), "NIMA_CACHE": str(packages)}
    outside = {key: value for key, value in environment().items() if not key.startswith(("DVC_", "GIT_"))}
    return Clone(root, project, runtime.dotenv(root / ".env") | outside | own)


def check_out(root: Path, commit: str, place: Path) -> None:
    """A repository that borrows the workspace's objects: experiments need no reference there."""
    where = ("rev-parse", "--path-format=absolute", "--git-path", "objects")
    objects = Path((git.ask(root, *where) or "").strip())
    shallow = objects.parent / "shallow"
    place.mkdir()
    git.ask(place, "init", "--quiet", "--template=")
    (place / ".git/objects/info").mkdir(exist_ok=True)
    (place / ".git/objects/info/alternates").write_text(f"{objects}\n", encoding="utf-8")
    if shallow.is_file():
        shutil.copy(shallow, place / ".git" / "shallow")
    command = ["git", "checkout", "--quiet", "--detach", commit]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"git checkout {commit[:7]} into {place}: {reason(done.stderr)}")


def local_config(root: Path) -> configparser.ConfigParser:
    """The workspace's own settings for remotes, and a cache of the clone's own."""
    here = root / ".dvc"
    shared, local = (configparser.ConfigParser(interpolation=None, strict=False) for _ in range(2))
    shared.read([here / "config", here / "config.local"], encoding="utf-8")
    local.read(here / "config.local", encoding="utf-8")
    for name in shared.sections():
        for key, value in shared[name].items():
            # Paths in these files are meant from where the files lie.
            if "remote" in name and not Path(value).is_absolute() and (here / value).exists():
                if name not in local:
                    local.add_section(name)
                local[name][key] = str((here / value).resolve())
    if "cache" in local:
        local.remove_section("cache")
    local["cache"] = {"dir": "cache"}
    return local


def mirror(packages: Path, place: Path) -> None:
    """The same files by links: what is fetched in addition does not end up in the workspace."""
    for folder, _, names in os.walk(packages):
        copy = place / Path(folder).relative_to(packages)
        copy.mkdir(parents=True, exist_ok=True)
        for name in names:
            (copy / name).symlink_to(Path(folder, name).resolve())


def needed_inputs(clone: Clone, stages: Iterable[str]) -> Hashes:
    """Data of DVC's that these stages read and none of them makes."""
    lock, chosen = clone.lock(), set(stages)
    others = {path: md5 for name in lock.keys() - chosen for path, md5 in lock[name].outs.items()}
    stored = dict(described(clone.project)) | {
        path: md5
        for path, md5 in others.items()
        if not git.paths(clone.project, "ls-files", "-z", "--", path)  # else it is there already
    }
    made_here = {path for name in chosen for path in lock[name].outs}
    deps = {dep for name in chosen for dep in lock[name].deps} - made_here
    return {path: md5 for path, md5 in sorted(stored.items()) if any(overlaps(dep, path) for dep in deps)}


def described(project: Path) -> Iterator[tuple[str, str]]:
    """Paths and MD5s of the data in .dvc files."""
    for name in git.paths(project, "ls-files", "-z", "--", "*.dvc"):
        for out in params_file.plain(params_file.parse(project / name)).get("outs") or []:
            yield (PurePosixPath(name).parent / out["path"]).as_posix(), out.get("md5", "")


def overlaps(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
