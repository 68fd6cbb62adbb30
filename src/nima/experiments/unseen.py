"""Files that stages need and that a queued or temporary experiment will not see.

Such a run works in a copy of what Git tracks, together with the changes to tracked files; outputs and data
that DVC tracks come from its cache. A file that is untracked or ignored is not there: new text is silently
left out, a new module fails on import.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from nima.repository import git
from nima.workspace.params import params_file

SETTINGS = (params_file.PIPELINE.as_posix(), "params.yaml", "dvc.lock", ".dvcignore", ".dvc/config")


@dataclass(frozen=True)
class Unseen:
    path: str
    is_ignored: bool
    why: str
    """What needs it."""


def unseen_files(root: Path) -> list[Unseen]:
    """Every such file once, sorted by path."""
    pipeline = params_file.plain(params_file.parse(root / params_file.PIPELINE))
    stages: dict[str, dict[str, Any]] = pipeline.get("stages") or {}
    readers = {path: name for name, stage in reversed(stages.items()) for path in stage.get("deps") or []}
    needs = {path: f"an input of {reader}" for path, reader in readers.items()}
    needs |= {path: f"named in params.yaml under {key}" for path, key in paths_in_params(root)}
    needs |= {f"{path}.dvc": why for path, why in needs.items()}
    needs |= dict.fromkeys(SETTINGS, "read by DVC")
    stored = {path for stage in stages.values() for path in outputs_of(stage)} | described_data(root)
    needs = {path: why for path, why in needs.items() if not is_inside(path, stored)}
    code = [name for path in readers for name in modules_in(root, path)]
    found = [*needed_modules(root, code), *needed_files(root, needs, stored)]
    return sorted({file.path: file for file in found}.values(), key=lambda file: file.path)


def modules_in(root: Path, place: str) -> list[str]:
    """A dependency's Python files: itself, or those of a package that is named by its folder."""
    if (root / place / "__init__.py").is_file():
        return [path.relative_to(root).as_posix() for path in sorted((root / place).rglob("*.py"))]
    return [place] if place.endswith(".py") else []


def needed_files(root: Path, needs: dict[str, str], stored: set[str]) -> Iterator[Unseen]:
    """Untracked and ignored files at or below the needed paths."""
    untracked, ignored = unknown_to_git(root, needs)
    for path in [*untracked, *ignored]:
        if not is_inside(path, stored):
            place = next(place for place in (path, *parents(path)) if place in needs)
            why = needs[place] if place == path else f"in {place}, {needs[place]}"
            yield Unseen(path, path in ignored, why)


def unknown_to_git(root: Path, places: Iterable[str]) -> tuple[list[str], set[str]]:
    """Untracked files, and ignored ones, that are there in these places and that DVC doesn't ignore."""
    there = [place for place in places if (root / place).exists()]
    if not there:
        return [], set()
    others = partial(git.paths, root, "--literal-pathspecs", "ls-files", "--others", "-z")
    dvcignore = ("--exclude-from=.dvcignore",) if (root / ".dvcignore").is_file() else ()
    untracked = others(*dvcignore, "--exclude-standard", "--", *there)
    return untracked, set(others(*dvcignore, "--", *there)) - set(untracked)


def outputs_of(stage: dict[str, Any]) -> list[str]:
    """What a stage writes, as dvc.yaml names it."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind) or []]
    return [next(iter(out)) if isinstance(out, dict) else str(out) for out in listed]


def described_data(root: Path) -> set[str]:
    """What .dvc files describe: DVC takes it from its cache."""
    found = set()
    for name in git.paths(
        root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "*.dvc"
    ):
        if (root / name).is_file():
            outs = params_file.plain(params_file.parse(root / name)).get("outs") or []
            found |= {(PurePosixPath(name).parent / out["path"]).as_posix() for out in outs}
    return found


def parents(path: str) -> list[str]:
    return [parent.as_posix() for parent in PurePosixPath(path).parents][:-1]


def is_inside(path: str, places: set[str]) -> bool:
    return path in places or not places.isdisjoint(parents(path))


# ----------------------------------------------------------------------------------------- params


def paths_in_params(root: Path) -> Iterator[tuple[str, str]]:
    """Values of params.yaml that name something in the project, each with its key."""
    path = root / "params.yaml"
    for key, value in leaves(params_file.plain(params_file.parse(path)) if path.is_file() else {}):
        looks_like_path = key.rpartition(".")[2] == "path" or "/" in value
        if looks_like_path and not PurePosixPath(value).is_absolute() and ".." not in value.split("/"):
            try:
                is_there = (root / value).exists()
            except (OSError, ValueError):  # too long, or with a null character: a text, no path
                continue
            if is_there and PurePosixPath(value).parts:
                yield PurePosixPath(value).as_posix(), key


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from leaves(value, f"{key}[{number}]")
    elif isinstance(node, str):
        yield key, node


# ----------------------------------------------------------------------------------------- code


def needed_modules(root: Path, code: list[str]) -> Iterator[Unseen]:
    """Modules unknown to Git that the stages' code imports, directly or through one another."""
    starts = {import_root(root, path) for path in code}
    folders = sorted({PurePosixPath(path).parent.as_posix() for path in code})
    untracked, ignored = unknown_to_git(root, folders)
    places = [(path, start) for path in [*untracked, *ignored] for start in starts]
    by_name = {name: path for path, start in places if (name := module_name(path, start))}
    waiting, seen = list(code), set(code)
    while waiting:
        importer = waiting.pop()
        for name in sorted(imports_of(root, importer)):
            path = by_name.get(name)
            if path is not None and path not in seen:
                seen.add(path)
                waiting.append(path)
                yield Unseen(path, path in ignored, f"imported by {importer}")


def import_root(root: Path, path: str) -> PurePosixPath:
    """The folder above a file's packages, which its dotted name is counted from."""
    folder = PurePosixPath(path).parent
    while folder.name and (root / folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def module_name(path: str, start: PurePosixPath) -> str:
    """A file's dotted name counted from a folder; empty if it has none there."""
    file = PurePosixPath(path)
    if file.suffix != ".py" or not file.is_relative_to(start):
        return ""
    parts = file.relative_to(start).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(root: Path, path: str) -> set[str]:
    """Dotted names that a file may import, with the packages above them; `from a import b` is a and a.b."""
    try:
        tree = ast.parse((root / path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    found: set[str] = set()
    own = module_name(path, import_root(root, path)).split(".")
    package = own if PurePosixPath(path).name == "__init__.py" else own[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = [*above, *([node.module] if node.module else [])]
            found.update(".".join([*origin, *name]) for name in ([], *([alias.name] for alias in node.names)))
    parts = [name.split(".") for name in found]
    return {".".join(names[:length]) for names in parts for length in range(1, len(names) + 1)}
