"""What a tracker is told of a run, and what it must be able to do."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Outcome = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """One run, under the same name at every tracker."""

    name: str
    tags: list[str]
    params: dict[str, Any]
    """Every param by its dotted key."""
    folder: str
    """For a tracker's local files, where its own variables name no other."""
    process: int
    """The trainer's process id."""
    state: str | None = None
    """File that remembers the run's id and which rows the tracker has, so that a resumed run goes on."""
    known_id: str | None = None
    """The tracker's id of a run to go on with, where no state is kept."""


@dataclass(frozen=True)
class Histogram:
    """How many values lie between each edge and the next."""

    edges: list[float]
    counts: list[int]
    num_values: int
    total: float
    total_squares: float


@dataclass(frozen=True)
class Point:
    """The tracker's row `number` (from 0). One of training and one of validation may have the same step."""

    number: int
    step: int
    figures: dict[str, float]
    histograms: dict[str, Histogram]


@dataclass(frozen=True)
class Ending:
    """What a tracker gets at the end of its part of a run."""

    outcome: Outcome
    number: int = 0
    """How many rows the run has."""
    step: int = 0
    summary: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """Markdown by title."""
    files: list[str] = field(default_factory=list)
    model: str | None = None
    """Folder of the trained model."""


class Tracker(Protocol):
    """One run at one tracker. Whatever a method raises switches the tracker off."""

    id: str
    url: str
    """Where the run is to be seen."""

    def log(self, point: Point) -> None:
        """Take one more row."""

    def end(self, ending: Ending) -> None:
        """Deliver what waits, and close."""
