"""The metrics files of a stage: figures that follow from params and data, and apart from them the clock's."""

import json
from pathlib import Path
from typing import Any

METRICS = Path("metrics")
TIMING = METRICS / "timing.json"

Row = dict[str, Any]
"""Named figures; a logged point has its "step" among them."""


def write_metrics(stage: str, metrics: Row) -> None:
    """metrics/STAGE.json, rewritten whole."""
    METRICS.mkdir(exist_ok=True)
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    (METRICS / f"{stage}.json").write_text(text + "\n", encoding="utf-8")


def write_timing(stage: str, figures: dict[str, float]) -> None:
    """Put a stage's clock figures beside the other stages' in metrics/timing.json.

    The file is in no stage's outputs: it differs from run to run, and dvc.lock must not.
    """
    METRICS.mkdir(exist_ok=True)
    try:
        timing = json.loads(TIMING.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        timing = {}
    if not isinstance(timing, dict):
        timing = {}
    timing[stage] = {name: round(value, 3) for name, value in figures.items()}
    partial = TIMING.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted(timing.items())), indent=2) + "\n", encoding="utf-8")
    partial.replace(TIMING)
