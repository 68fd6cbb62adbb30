"""MLflow. Its own variables say where: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ..."""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from nima.trackers.tracked_run import Ending, Point, TrackedRun

STATUSES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
# What a server takes at once, and the longest value of a param.
PARAMS_AT_ONCE = 100
MAX_PARAM_CHARS = 6000


def begin(run: TrackedRun, known_id: str | None) -> "MLflow":
    client, artifacts = client_for(Path(run.folder))
    if known_id is not None:
        client.update_run(known_id, status="RUNNING")
        return MLflow(client, known_id)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or experiment_of(client, artifacts)
    tags = {"mlflow.source.name": "stages/train.py"} | dict.fromkeys(run.tags, "yes")
    begun = client.create_run(experiment, tags=tags, run_name=run.name)
    params = [Param(key, str(value)[:MAX_PARAM_CHARS]) for key, value in run.params.items()]
    for start in range(0, len(params), PARAMS_AT_ONCE):
        client.log_batch(begun.info.run_id, params=params[start : start + PARAMS_AT_ONCE])
    return MLflow(client, begun.info.run_id)


def client_for(folder: Path) -> tuple[MlflowClient, str | None]:
    """A client of the named server, else of a database in `folder`, and that place's URL for artifacts."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return MlflowClient(uri), None
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # of two that create the tables at once, one would fail
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        client.search_experiments(max_results=1)
    return client, (folder / "artifacts").as_uri()


def experiment_of(client: MlflowClient, artifacts: str | None) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "nima")
    with suppress(MlflowException):  # it is there already
        return client.create_experiment(name, artifact_location=artifacts)
    found = client.get_experiment_by_name(name)
    if found is None:
        raise LookupError(f"experiment {name} can neither be made nor found")
    return found.experiment_id


class MLflow:
    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.id = run_id
        self.url = f"{client.tracking_uri} run {run_id}"

    def log(self, point: Point) -> None:
        self.client.log_batch(self.id, metrics=list(metrics_of(point.figures, point.step)))
        if point.histograms:
            content = {name: asdict(found) for name, found in point.histograms.items()}
            self.client.log_dict(self.id, content, f"histograms/step-{point.step:08d}.json")

    def end(self, ending: Ending) -> None:
        self.client.log_batch(self.id, metrics=list(metrics_of(ending.summary, ending.step)))
        for title, text in ending.texts.items():
            self.client.log_text(self.id, text, f"texts/{title}.md")
        for path in ending.files:
            self.client.log_artifact(self.id, path)
        if ending.model:
            self.client.log_artifacts(self.id, ending.model, "model")
        self.client.set_terminated(self.id, STATUSES[ending.outcome])


def metrics_of(figures: Mapping[str, float], step: int) -> Iterator[Metric]:
    milliseconds = int(time.time() * 1000)
    for name, value in figures.items():
        yield Metric(name, float(value), milliseconds, step)
