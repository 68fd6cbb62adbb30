"""What later stages find out about a model, added to the run that trained it."""

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from nima.monitoring.run_record import records_in
from nima.trackers.tracked_run import Ending
from nima.trackers.trackers import Trackers, figures_in
from nima.workspace.inputs import content_of
from nima.workspace.metrics import Row
from nima.workspace.runtime import Runtime


def add_to_run(
    runtime: Runtime, model: Path, *, metrics: Row | None = None, texts: Mapping[str, str] | None = None
) -> None:
    """Give figures and texts (Markdown by title) to the trackers that have the run of the model in `model`.

    A model that was trained elsewhere has no run here: a line says so.
    """
    weights = content_of(model / "model.safetensors")
    made = [run for run in records_in(runtime.records) if weights in run.get("outputs", {}).values()]
    if not made or not made[-1].get("trackers"):
        say(f"{model}: no tracker here knows the run that trained it; nothing is added to it")
        return
    run = made[-1]
    printed = runtime.logs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
    trackers = Trackers(runtime, printed=printed, say=say, known=run["trackers"])
    trackers.begin(run)
    figures = dict(figures_in(metrics or {}))
    step = run["metrics"]["step"]
    trackers.end(Ending("finished", run["num_rows"], step, summary=figures, texts=dict(texts or {})))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
