"""Weights & Biases. Its own variables say where: WANDB_API_KEY, WANDB_MODE, WANDB_PROJECT, ..."""

import os
from html import escape
from pathlib import Path

import numpy as np
import wandb

from nima.trackers.sender import new_id
from nima.trackers.tracked_run import Ending, Point, TrackedRun

EXIT_CODES = {"finished": 0, "interrupted": 3, "failed": 1}


def begin(run: TrackedRun, known_id: str | None) -> "WeightsAndBiases":
    given = os.environ
    given.setdefault("WANDB_DIR", run.folder)
    given.setdefault("WANDB_DATA_DIR", run.folder)  # where artifacts wait
    for name in ("WANDB_DIR", "WANDB_DATA_DIR"):
        Path(given[name]).mkdir(parents=True, exist_ok=True)
    return WeightsAndBiases(
        wandb.init(
            project=given.get("WANDB_PROJECT", "nima"),
            name=given.get("WANDB_NAME", run.name),
            tags=[*run.tags, *filter(None, given.get("WANDB_TAGS", "").split(","))],
            id=known_id or new_id(),
            resume="allow",
            config=run.params,
            settings=wandb.Settings(console="off", silent=True, save_code=False, x_stats_pid=run.process),
        )
    )


class WeightsAndBiases:
    def __init__(self, run: wandb.Run) -> None:
        self.run = run
        self.id = run.id
        self.url = run.url or str(Path(run.dir).parent)
        # Its own steps may only grow, so they number the rows; charts are drawn over the steps of training.
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")

    def log(self, point: Point) -> None:
        charts = {
            name: wandb.Histogram(np_histogram=(np.array(found.counts), np.array(found.edges)))
            for name, found in point.histograms.items()
        }
        self.run.log({"step": point.step, **point.figures, **charts}, step=point.number, commit=True)

    def end(self, ending: Ending) -> None:
        self.run.summary.update(ending.summary)
        if ending.texts:
            html = {title: wandb.Html(f"<pre>{escape(text)}</pre>") for title, text in ending.texts.items()}
            self.run.log({"step": ending.step, **html}, step=ending.number, commit=True)
        if ending.files:
            self.log_artifact("files", "run", ending.files)
        if ending.model:
            self.log_artifact("model", "model", [ending.model])
        self.run.finish(exit_code=EXIT_CODES[ending.outcome])

    def log_artifact(self, what: str, kind: str, paths: list[str]) -> None:
        artifact = wandb.Artifact(f"{what}-{self.id}", type=kind)
        for path in paths:
            (artifact.add_dir if Path(path).is_dir() else artifact.add_file)(path)
        self.run.log_artifact(artifact)
