"""The metrics files of a stage: figures that follow from params and data, and apart from them the clock's."""

import json
import math
from pathlib import Path
from typing import Any

from nima.workspace.errors import UserError
from nima.workspace.outputs import writing_to

METRICS = Path("metrics")
TIMING = METRICS / "timing.json"
LARGER_IS_BETTER = frozenset({"accuracy"})

Row = dict[str, Any]
"""Named figures; a logged point has its "step" among them."""


def write_metrics(stage: str, metrics: Row) -> None:
    """metrics/STAGE.json, rewritten whole."""
    write_json(METRICS / f"{stage}.json", metrics)


def read_metrics(stage: str) -> Row:
    """What the stage's metrics file says. Raises `UserError`."""
    path = METRICS / f"{stage}.json"
    try:
        content: Row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the stage {stage} first") from None
    return content


def write_timing(stage: str, figures: dict[str, float]) -> None:
    """Put a stage's clock figures beside the other stages' in metrics/timing.json.

    The file is in no stage's outputs: it differs from run to run, and dvc.lock must not.
    """
    try:
        timing = json.loads(TIMING.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        timing = {}
    if not isinstance(timing, dict):
        timing = {}
    timing[stage] = {name: round(value, 3) for name, value in figures.items()}
    write_json(TIMING, dict(sorted(timing.items())))


def write_json(path: Path, content: Row) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_suffix(".partial")
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def improves(metric: str, value: float, best: float | None, min_delta: float = 0.0) -> bool:
    """Whether `value` beats `best` (None: nothing yet) by more than `min_delta`. NaN never does.

    `metric` may begin with the name of a source: wiki/accuracy.
    """
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value > best + min_delta if larger_is_better(metric) else value < best - min_delta


def larger_is_better(metric: str) -> bool:
    return metric.rpartition("/")[2] in LARGER_IS_BETTER
