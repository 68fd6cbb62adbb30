"""Changes to params that `-S` asks for: grids spelt out, checked against the schema, and named after.

The grammar and the arithmetic are DVC's own, so that what is checked is what the experiment will see.
"""

import re
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nima.repository.committed import yaml_at
from nima.repository.revisions import flat
from nima.workspace.errors import ParamsError, UserError
from nima.workspace.params import Params, nearest, params_file

PARAMS = "params.yaml"
MAX_LABELS = 3
MAX_LABEL_CHARS = 16


@dataclass(frozen=True)
class Combination:
    """One experiment's params."""

    overrides: tuple[str, ...]
    """As `dvc exp run -S` takes them."""
    params: Params
    changed: dict[str, Any]
    """Keys and values that are overridden, then those that differ from the commit's params.yaml."""


def combinations(root: Path, settings: Sequence[str], *, grids: bool) -> list[Combination]:
    """Every combination that `settings` (KEY=VALUE, or with `grids` KEY=choice(...)) stand for.

    Raises `ParamsError` with all that the schema has against any of them.
    """
    params_file.load(root / PARAMS)  # what is wrong with the file itself is told with its lines
    tree = params_file.plain(params_file.parse(root / PARAMS))
    committed = dict(flat(yaml_at(root, "HEAD", PARAMS)))
    found, problems = [], []
    with tempfile.TemporaryDirectory(prefix="nima-params-") as folder:
        for overrides in spelt_out([with_sign(text, tree) for text in settings], grids=grids):
            copy = Path(folder, PARAMS)
            copy.write_bytes((root / PARAMS).read_bytes())
            apply(copy, overrides)
            try:
                params = params_file.load(copy)
            except ParamsError as error:
                what = " ".join(overrides)
                problems += [f"-S {what}: {without_place(problem)}" for problem in error.problems]
                continue
            changed = differences(
                committed, dict(flat(params_file.plain(params_file.parse(copy)))), overrides
            )
            found.append(Combination(tuple(overrides), params, changed))
    if problems:
        raise ParamsError(list(dict.fromkeys(problems)))
    return found


def spelt_out(settings: list[str], *, grids: bool) -> list[list[str]]:
    """One list of overrides for each combination of a grid; a single one without a grid."""
    from dvc.utils.hydra import get_hydra_sweeps, to_hydra_overrides

    is_grid = False
    for text in settings:
        try:
            (override,) = to_hydra_overrides([text])
            if override.is_sweep_override():
                is_grid = True
                get_hydra_sweeps({PARAMS: [text]})
        except Exception as error:  # Hydra's, OmegaConf's and DVC's errors have no class in common
            if type(error).__module__.split(".")[0] not in ("hydra", "omegaconf", "dvc"):
                raise
            raise UserError(f"-S {text}: expected KEY=VALUE: {first_line(error)}") from None
        if is_grid and not grids:
            raise UserError(f"-S {text}: a grid is for the queue: add --queue")
    if not is_grid:
        return [settings]
    return [combination[PARAMS] for combination in get_hydra_sweeps({PARAMS: settings})]


def apply(path: Path, overrides: list[str]) -> None:
    """Change a params file as DVC will."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    try:
        apply_overrides(path, overrides)
    except DvcException as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"-S {' '.join(overrides)}: cannot be applied: {reason}") from None


def with_sign(setting: str, tree: dict[str, Any]) -> str:
    """DVC wants a + before a key that params.yaml leaves out; one that the schema knows needs none.

    Raises `UserError` for a key that nobody knows.
    """
    name, equals, _ = setting.removeprefix(f"{PARAMS}:").partition("=")
    setting = setting.removeprefix(f"{PARAMS}:")
    if not equals or not re.fullmatch(r"[\w.]+", name):
        return setting
    node: Any = tree
    parts = name.split(".")
    for number, part in enumerate(parts):
        if isinstance(node, dict) and part not in node:
            known = params_file.known_keys(tuple(parts[:number]))
            if known and part not in known:
                raise UserError(f"-S {setting}: unknown key {name}{nearest(part, known)}")
            return f"+{setting}"
        if isinstance(node, list):
            whole = ".".join(parts[:number])
            raise UserError(f"-S {setting}: {whole} is a list: give it whole, or change {PARAMS}")
        if not isinstance(node, dict):
            return setting
        node = node[part]
    return setting


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def without_place(problem: str) -> str:
    """The line is one of a file that the user never sees."""
    return re.sub(r"^.*?:\d+: ", "", problem, count=1)


# ------------------------------------------------------------------------------------- differences


def differences(before: dict[str, Any], after: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """What is overridden, then where else `after` is not `before`."""
    keys = [text.lstrip("+~").partition("=")[0] for text in overrides]
    keys = [key for key in keys if key in after or key in before]
    keys += [key for key in after if key not in before or before[key] != after[key]]
    keys += [key for key in before if key not in after]
    return {key: after.get(key) for key in keys}


# ------------------------------------------------------------------------------------- names


def readable_name(combination: Combination, taken: set[str]) -> str:
    """{preset}-{recipe}-{what is changed}-{four digits}, not among `taken`; Git takes it in a reference."""
    named = (combination.params.model.preset, combination.params.run.recipe)
    keys = [key for key in combination.changed if key not in ("model.preset", "run.recipe")]
    labels = [label(key, combination.changed[key]) for key in keys]
    more = [f"and-{len(labels) - MAX_LABELS}-more"] if len(labels) > MAX_LABELS else []
    stem = "-".join([*filter(None, named), *labels[:MAX_LABELS], *more])
    while True:
        name = f"{stem}-{secrets.token_hex(2)}"
        if name not in taken:
            return name


def label(key: str, value: Any) -> str:
    """Short words for one changed param: lr0.003, keep-last, sources."""
    name = key.rpartition(".")[2]
    match value:
        case bool():
            text = f"{name}-{'on' if value else 'off'}"
        case int() | float():
            text = f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
        case str():
            text = f"{name}-{value[:MAX_LABEL_CHARS]}"
        case None:
            text = f"{name}-null"
        case _:
            text = name
    return re.sub(r"[^A-Za-z0-9_.+-]+|\.{2,}", "-", text).strip("-.")
