"""The code that each stage executes, found by its imports; run as a program it writes dvc.yaml's `deps`."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
STAGES = ("prepare", "tokenize", "split", "train", "evaluate", "generate_samples")

# What they do is in no stage's outputs: they write for people and logs, say which saved runs can go,
# or only save time.
IN_NO_OUTPUT = {"monitoring", "observation", "trackers", "finished_runs", "first"}
# Packages that a cheap stage names whole though it executes a part: it runs once too often rather than cost
# every `dvc repro` the look at each part.
WHOLE = {"split": {"corpus"}, "generate_samples": {"workspace"}}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(SOURCE.glob("nima/**/*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported_names(path: Path, *, at_run_time: bool = True) -> set[str]:
    """Dotted names that a file imports, `from a import b` as both a and a.b."""
    names: set[str] = set()
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if at_run_time and is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))
    return names


def own_imports(path: Path, *, at_run_time: bool = True) -> set[str]:
    return {name for name in imported_names(path, at_run_time=at_run_time) if name in MODULES}


def packages_of(module: str) -> set[str]:
    """A module's parent packages, whose __init__ runs first."""
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def pages_of(path: Path) -> set[Path]:
    """The templates of pages that a module names."""
    words = {node.value for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant)}
    return {page for page in SOURCE.glob("nima/**/*.html") if page.name in words}


def executes_nothing(path: Path) -> bool:
    """Whether a file is an `__init__` of words alone: a docstring and names like `__version__`."""
    return path.name == "__init__.py" and all(
        ast.unparse(node).startswith(("'", '"', "__")) for node in tree_of(path).body
    )


def is_in_no_output(module: str) -> bool:
    return not IN_NO_OUTPUT.isdisjoint(module.split("."))


def closure(stage: str) -> set[Path]:
    """Every file of the project that `python -m stages.STAGE` executes.

    Those whose doing is in no output are left out, that a change does not train anew.
    So is `stages/__init__.py`, which tests hold to what changes no result: all stages would name it.
    """
    start = ROOT / "stages" / f"{stage}.py"
    seen: set[str] = set()
    waiting = own_imports(start)
    while waiting:
        module = waiting.pop()
        if module not in seen and not is_in_no_output(module):
            seen.add(module)
            waiting |= packages_of(module) | own_imports(MODULES[module])
    pages = {page for module in seen for page in pages_of(MODULES[module])}
    whole = {path for package in WHOLE.get(stage, ()) for path in (SOURCE / "nima" / package).rglob("*.py")}
    return {MODULES[module] for module in seen} | pages | whole | {start}


def in_whole_folders(files: set[Path]) -> set[Path]:
    """The same files, those of a package that is there to the last file by its folder.

    An `__init__` of words alone comes only with its folder. Every entry costs DVC about a millisecond, also
    when there is nothing to do.
    """
    folders = {parent for path in files for parent in path.parents if (SOURCE / "nima") in parent.parents}
    known = files | {path for module, path in MODULES.items() if is_in_no_output(module)}
    whole = {
        folder
        for folder in folders
        if set(folder.rglob("*.py")) <= known and (folder / "__init__.py").exists()
    }
    doing = {path for path in files if not executes_nothing(path)}
    return {next((parent for parent in reversed(path.parents) if parent in whole), path) for path in doing}


def code_of(stage: str) -> list[str]:
    """What dvc.yaml names as a stage's code, sorted."""
    return sorted(path.relative_to(ROOT).as_posix() for path in in_whole_folders(closure(stage)))


def is_code(line: str) -> bool:
    return line.strip().startswith(("- src/", "- stages/"))


def with_code(lines: list[str]) -> list[str]:
    """dvc.yaml's lines, each stage's code named anew at the end of its `deps`."""
    written: list[str] = []
    stage = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  ") and line.strip(" :") in STAGES:
            stage = line.strip(" :")
        if not is_code(line):
            written.append(line)
        elif not is_code(following):
            written += [f"      - {path}" for path in code_of(stage)]
    return written


def main() -> None:
    pipeline = ROOT / "dvc.yaml"
    lines = pipeline.read_text(encoding="utf-8").splitlines()
    pipeline.write_text("\n".join(with_code(lines)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
