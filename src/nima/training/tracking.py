"""One run's metrics, logged through DVCLive."""

import csv
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from nima.workspace.metrics import METRICS, Row


def imported_without(absent: str, name: str) -> ModuleType:
    """The module `name`, to which `absent` is not installed; unless that is loaded already."""
    with nullcontext() if absent in sys.modules else hidden(absent):
        return import_module(name)


@contextmanager
def hidden(module: str) -> Iterator[None]:
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


if TYPE_CHECKING:
    from dvclive import Live
else:
    # DVCLive loads pandas where it can, half a second of every start, for tables, which Nima does not log.
    Live = imported_without("pandas", "dvclive").Live

PLOTS = Path("plots")


class StageLive(Live):
    """DVCLive that writes metrics/STAGE.json and plots/STAGE/, touches no dvc.yaml and phones nobody."""

    def __init__(self, stage: str, *listeners: Callable[[Row], None]) -> None:
        self.stage = stage
        self.listeners = listeners
        """Hear each row too, the repeated history of a resumed run as well."""
        super().__init__(dir=str(PLOTS / stage), dvcyaml=False, save_dvc_exp=False)

    def _init_dvc(self) -> None:
        """The pipeline is DVC's already: no repository is opened, or initialised where there is none."""
        self._inside_dvc_pipeline = True
        self._dvc_file = "dvc.yaml"

    def _init_resume(self) -> None:
        """History is replayed from the checkpoint: DVCLIVE_RESUME in the environment must not add to it."""
        self._init_cleanup()

    @property
    def metrics_file(self) -> str:
        return str(METRICS / f"{self.stage}.json")

    @property
    def plots_dir(self) -> str:
        return str(PLOTS / self.stage)

    def log_row(self, row: Row) -> None:
        """Append one point. `next_step()` would read every curve again, at a cost that grows with the run."""
        self.step = row["step"]
        for name, value in row.items():
            if name != "step":
                self.log_metric(name, value)
        for listener in self.listeners:
            listener(row)

    def replay(self, rows: list[Row]) -> None:
        """Append the rows of an earlier process: each curve's file is opened once, not once a point."""
        curves: dict[str, list[Row]] = {}
        for row in rows:
            for name in row:
                if name != "step":
                    curves.setdefault(name, []).append(row)
        for name, points in curves.items():
            self.step = points[0]["step"]
            self.log_metric(name, points[0][name])  # makes the file, with its head
            path = self._metrics[name].output_path
            with path.open("a", encoding="utf-8", newline="") as file:
                lines = csv.writer(file, delimiter="\t", lineterminator=os.linesep)
                lines.writerows([row["step"], row[name]] for row in points[1:])
            self.log_metric(name, points[-1][name], plot=False)
        for row in rows:
            self.step = row["step"]
            for listener in self.listeners:
                listener(row)

    def finish(self, summary: Row) -> None:
        """Write the metrics file. (`Live.end()` would also git-add outputs that DVC caches.)"""
        self.summary.update(summary)
        self.make_summary()


class Unlogged:
    """The log of a process that leaves logging to the first one."""

    def log_row(self, row: Row) -> None: ...

    def replay(self, rows: list[Row]) -> None: ...

    def finish(self, summary: Row) -> None: ...
