"""TensorBoard: event files, which `tensorboard --logdir .nima/tensorboard` shows."""

import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from nima.trackers.tracked_run import Ending, Histogram, Point, TrackedRun


def begin(run: TrackedRun, known_id: str | None) -> "TensorBoard":
    """The run's id is the name of its folder."""
    tracker = TensorBoard(Path(run.folder), known_id or free_name(Path(run.folder), run.name))
    if known_id is None:
        tracker.write(hparams_pb({key: plain(value) for key, value in run.params.items()}, tracker.id))
    return tracker


class TensorBoard:
    def __init__(self, folder: Path, name: str) -> None:
        self.id = name
        self.url = str(folder / name)
        self.events = EventFileWriter(self.url)

    def write(self, summary: Summary, step: int = 0) -> None:
        self.events.add_event(Event(step=step, wall_time=time.time(), summary=summary))
        self.events.flush()

    def log(self, point: Point) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in point.figures.items()]
        values += [Summary.Value(tag=name, histo=proto(found)) for name, found in point.histograms.items()]
        self.write(Summary(value=values), point.step)

    def end(self, ending: Ending) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in ending.summary.items()]
        self.write(Summary(value=values), ending.step)
        for title, text in ending.texts.items():
            self.write(text_pb(title, text), ending.step)
        self.events.close()


def proto(histogram: Histogram) -> HistogramProto:
    return HistogramProto(
        min=histogram.edges[0],
        max=histogram.edges[-1],
        num=histogram.num_values,
        sum=histogram.total,
        sum_squares=histogram.total_squares,
        bucket_limit=histogram.edges[1:],
        bucket=histogram.counts,
    )


def plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def free_name(folder: Path, name: str) -> str:
    """`name`, with a number behind it if another run has it."""
    found, number = name, 1
    while (folder / found).exists():
        number += 1
        found = f"{name}-{number}"
    return found
