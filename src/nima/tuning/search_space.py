"""The params that a search changes, and the values it may give them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nima.workspace.errors import ParamsError
from nima.workspace.params import DimensionParams, Params, field_kinds, is_whole, params_file

PARAMS = "params.yaml"
Value = bool | int | float | str | None


@dataclass(frozen=True)
class Dimension:
    key: str
    """The param, dotted."""
    settings: DimensionParams
    is_whole: bool

    def text(self) -> str:
        """In a few words; equal texts mean equal dimensions."""
        found = self.settings
        if found.choices:
            return " or ".join(map(written, found.choices))
        step = f", in steps of {found.step:g}" if found.step else ""
        return f"{found.low:g} to {found.high:g}{', log' if found.log else ''}{step}"

    def holds(self, value: Value) -> bool:
        found = self.settings
        if found.choices:
            return any(value == choice and type(value) is type(choice) for choice in found.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = found.bounds
        steps = (value - low) / found.step if found.step else 0.0
        return low <= value <= high and math.isclose(steps, round(steps), abs_tol=1e-9)

    def ends(self) -> list[tuple[str, Value]]:
        """Where in the file an extreme value stands, and the value."""
        found = self.settings
        if found.choices:
            return [("choices", value) for value in found.choices]
        return [(name, self.number(getattr(found, name))) for name in ("low", "high")]

    def number(self, value: float) -> int | float:
        return int(value) if self.is_whole else value


def dimensions(params: Params) -> list[Dimension]:
    space = params.tune.space if params.tune else {}
    return [
        Dimension(key, settings, is_whole=is_whole(set(field_kinds(Params, key))))
        for key, settings in space.items()
    ]


def check_ends(root: Path, space: Sequence[Dimension]) -> None:
    """Raises `ParamsError` naming the ends of ranges that the schema refuses, the rest being as it is."""
    path = root / PARAMS
    problems = []
    for dimension in space:
        for name, value in dimension.ends():
            tree = params_file.parse(path)
            location = ("tune", "space", dimension.key, name)
            where = params_file.place(location, tree, Path(PARAMS))
            try:
                params_file.checked(changed(tree, {dimension.key: value}), path)
            except ParamsError as error:
                reason = error.problems[0].partition(": ")[2]
                problems.append(f"{where}{written(value)} would not do: {reason}")
    if problems:
        raise ParamsError(problems)


def refusal(root: Path, values: dict[str, Value]) -> str | None:
    """What params.yaml's schema has against these values together; None if nothing."""
    path = root / PARAMS
    try:
        params_file.checked(changed(params_file.parse(path), values), path)
    except ParamsError as error:
        return error.problems[0].partition(": ")[2]
    return None


def changed(tree: Any, values: dict[str, Value]) -> Any:
    """The tree itself, with other values."""
    for key, value in values.items():
        *parents, last = key.split(".")
        section = tree
        for part in parents:
            section = section.setdefault(part, {})
        section[last] = value
    return tree


def value_at(tree: Any, key: str) -> Value:
    """What a tree of params has under a dotted key; None if it is left out."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def override(key: str, value: Value) -> str:
    """++KEY=VALUE as `dvc exp run --set-param` reads it: also of a key that the file leaves out."""
    return f"++{key}={json.dumps(value, ensure_ascii=False)}"


def written(value: Any) -> str:
    """As a person would write it in params.yaml."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
