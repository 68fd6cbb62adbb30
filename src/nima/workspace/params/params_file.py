"""Reading params.yaml, and what dvc.yaml says of a stage.

YAML 1.2 rules, so that `1e-05` is a number. Every problem of a file is reported at once, each with its
line, the value found and what would be right.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarbool import ScalarBoolean

from nima.workspace.errors import ParamsError
from nima.workspace.params import Params, Section, nearest

PIPELINE = Path("dvc.yaml")


def load(path: Path) -> Params:
    """Read and check a params file. Raises `ParamsError` with every problem found, one per line."""
    return checked(parse(path), path)


def checked(tree: Any, path: Path) -> Params:
    """What `parse` read from `path`, perhaps changed since."""
    try:
        return Params.model_validate(plain(tree))
    except ValidationError as error:
        problems = [line for problem in error.errors() for line in describe(problem, tree, path)]
        raise ParamsError(problems) from None


def parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError([f"{path}: not found; run from the project's root, where it lies"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ParamsError([f"{path}:{line}: not UTF-8 at byte {error.start}"]) from None
    except OSError as error:
        raise ParamsError([f"{path}: cannot be read: {error.strerror}"]) from None
    return parse_text(text, path)


def parse_text(text: str, path: Path) -> Any:
    """`path` is what errors call it."""
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ParamsError([f"{path}:{line}: not valid YAML: {error.problem}"]) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"control character {chr(error.character)!r}"
        raise ParamsError([f"{path}:{line}: not valid YAML: {found}"]) from None
    except (YAMLError, ValueError) as error:  # written like a date or tagged as a number, but none
        raise ParamsError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else "a list" if isinstance(tree, list) else repr(tree)
        raise ParamsError([f"{path}:1: expected a mapping of sections, found {found}"])
    return tree


def plain(node: Any) -> Any:
    """ruamel's round-trip nodes as the plain Python values that strict checks accept."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    if isinstance(node, ScalarBoolean):  # an anchored one; ruamel derives it from int
        return bool(node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def describe(problem: ErrorDetails, tree: Any, path: Path) -> list[str]:
    """Lines of the form file:line: key: what is wrong, what was found, what would be right."""
    location = problem["loc"]
    if problem["type"] == "cross_field":
        return [
            place(location + parts_of(key), tree, path) + message
            for key, message in problem["ctx"]["problems"]
        ]
    return [place(location, tree, path) + what_is_wrong(problem)]


def parts_of(key: str | tuple[str, ...]) -> tuple[str, ...]:
    return key if isinstance(key, tuple) else tuple(key.split(".") if key else ())


def place(location: tuple[int | str, ...], tree: Any, path: Path) -> str:
    return f"{path}:{line_of(location, tree)}: {dotted(location)}: "


def what_is_wrong(problem: ErrorDetails) -> str:
    location, message = problem["loc"], problem["msg"]
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key{nearest(str(location[-1]), known_keys(location[:-1]))}"
        case "missing":
            return "missing; add it to this section"
        case "model_type":
            message = "a mapping of keys"
        case "string_pattern_mismatch":
            message = f"text that matches {problem['ctx']['pattern']}"
    expected = message.removeprefix("Input should be ").removeprefix("a valid ").removeprefix("valid ")
    expected = expected.replace("should have ", "of ").replace(" after validation", "")
    return f"expected {expected[:1].lower()}{expected[1:]}, found {shortened(repr(problem['input']))}"


def shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def line_of(location: tuple[int | str, ...], tree: Any) -> int:
    """The line (from 1) of the deepest part of `location` that the file has."""
    node, line = tree, 0
    for part in location:
        try:
            line = node.lc.data[part][0]
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line + 1


def dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `location` may have."""
    section: Any = Params
    for part in location:
        if isinstance(part, str) and part in section.model_fields:  # else a name that the user chose
            section = section.model_fields[part].annotation
        section = next((kind for kind in [section, *_arguments(section)] if _is_section(kind)), section)
    return list(section.model_fields) if _is_section(section) else []


def _arguments(annotation: Any) -> list[Any]:
    return list(getattr(annotation, "__args__", ()))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def stage_dependencies(stage: str) -> list[Path]:
    """The files and folders that dvc.yaml names as the stage's inputs; none without such a file."""
    return [Path(str(entry)) for entry in declared(stage).get("deps") or []]


def stage_sections(stage: str) -> list[str]:
    """The sections of params.yaml that dvc.yaml tracks for the stage; none without such a file."""
    return [str(entry) for entry in declared(stage).get("params") or []]


def declared(stage: str) -> dict[str, Any]:
    stages = parse(PIPELINE).get("stages") if PIPELINE.is_file() else None
    return (stages or {}).get(stage) or {}
