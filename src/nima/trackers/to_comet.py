"""Comet. Its own variables say where: COMET_API_KEY, COMET_WORKSPACE, COMET_START_ONLINE (0: offline), ..."""

import os
from pathlib import Path
from typing import cast

import comet_ml
from comet_ml.config import get_api_key, get_config
from comet_ml.data_structure import Histogram

from nima.trackers.sender import new_id
from nima.trackers.tracked_run import Ending, Point, TrackedRun


def begin(run: TrackedRun, known_id: str | None) -> "Comet":
    given, config = os.environ, get_config()
    is_online = config.get_bool(None, "comet.start.online", default=True)
    if is_online and get_api_key(None, config) is None:
        raise ValueError("COMET_API_KEY is not set (COMET_START_ONLINE=0 keeps the data here)")
    experiment = comet_ml.start(
        mode="create" if known_id is None else "get_or_create",
        experiment_key=known_id or new_id(),
        project_name=given.get("COMET_PROJECT_NAME", "nima"),
        experiment_config=comet_ml.ExperimentConfig(
            name=given.get("COMET_START_EXPERIMENT_NAME", run.name),
            tags=run.tags,
            offline_directory=given.get("COMET_OFFLINE_DIRECTORY", run.folder),
            # Of what it would find out for itself, this process has nothing to show but the machine's load.
            log_code=False,
            log_git_patch=False,
            auto_output_logging=cast(str, False),  # False is documented, its type is not
            auto_param_logging=False,
            auto_metric_logging=False,
            parse_args=False,
            display_summary_level=0,
        ),
    )
    if not experiment.alive:
        raise ConnectionError("no connection to its server, or no right to write there")
    if known_id is None:
        experiment.log_parameters(run.params)
    return Comet(experiment, Path(given.get("COMET_OFFLINE_DIRECTORY", run.folder)))


class Comet:
    def __init__(self, experiment: comet_ml.CometExperiment, folder: Path) -> None:
        self.experiment = experiment
        self.id = experiment.get_key()
        self.url = experiment.url or str(folder)

    def log(self, point: Point) -> None:
        self.experiment.log_metrics(point.figures, step=point.step)
        for name, found in point.histograms.items():
            bars = Histogram()
            middles = [(low + high) / 2 for low, high in zip(found.edges, found.edges[1:], strict=False)]
            bars.add(values=middles, counts=found.counts)
            self.experiment.log_histogram_3d(bars, name=name, step=point.step)

    def end(self, ending: Ending) -> None:
        self.experiment.log_metrics(ending.summary, step=ending.step)
        self.experiment.log_other("outcome", ending.outcome)
        for title, text in ending.texts.items():
            self.experiment.log_text(text, step=ending.step, metadata={"title": title})
        for path in ending.files:
            self.experiment.log_asset(path, file_name=Path(path).name)
        if ending.model:
            self.experiment.log_model(Path(ending.model).name, ending.model)
        self.experiment.end()
