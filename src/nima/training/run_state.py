"""A run of the loop: what it is given, what changes in it, what comes out."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nima.checkpoint.run_folder import NoFolder, RunFolder
from nima.monitoring.progress import TrainingProgress
from nima.training.tracking import StageLive, Unlogged
from nima.workspace.metrics import Row
from nima.workspace.params import RunParams
from nima.workspace.signals import StopRequest


@dataclass
class State:
    """All that changes during a run beside weights and optimizer; saved as JSON."""

    step: int = 0
    validated_step: int = 0
    rows: list[Row] = field(default_factory=list)
    best: dict[str, Any] | None = None
    steering: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    skipped_updates: int = 0
    non_finite_updates: int = 0
    threads: int = 0
    processes: int = 1
    halvings: list[dict[str, Any]] = field(default_factory=list)
    # Sums since the last logged row.
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def add(self, nats: float, num_tokens: int, num_bytes: int) -> None:
        """An update's sums to those since the last row, unless they are not finite."""
        if math.isfinite(nats):
            self.nats += nats
            self.tokens += num_tokens
            self.bytes += num_bytes

    @property
    def bits_per_byte(self) -> float:
        """Since the last row; not a number where no bytes are counted."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Run:
    """Where a run keeps its progress, shows it, and hears that it should stop."""

    folder: RunFolder | NoFolder
    live: StageLive | Unlogged
    progress: TrainingProgress
    stop: StopRequest
    settings: RunParams


@dataclass(frozen=True)
class Result:
    state: State
    best_weights: dict[str, Tensor]
    last_weights: dict[str, Tensor]
    stopped_early: bool
    seconds: float
    first_step: int
