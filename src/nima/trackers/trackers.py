"""All trackers of one run."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from nima.trackers.courier import Courier
from nima.trackers.histograms import histograms_of
from nima.trackers.tracked_run import Ending, TrackedRun
from nima.workspace.metrics import Row
from nima.workspace.runtime import Runtime

# What trackers have at the end to take what they don't have yet, and more for a model, by its size.
WAIT_SECONDS = 60.0
WAIT_SECONDS_WHEN_STOPPED = 3.0
MODEL_BYTES_PER_SECOND = 1e6


class Trackers:
    """The trackers that the runtime names, each in a process of its own.

    `clock` gives figures that go to trackers beside a row's own; they differ from run to run, so they are in
    no output. While history is repeated it gives none. `say` takes a line for each run begun or tracker lost.
    With `known`, a record's runs by tracker, only those trackers are served, and their runs go on.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        printed: Path,
        say: Callable[[str], None],
        clock: Callable[[Row], Mapping[str, float]] = lambda _: {},
        model: nn.Module | None = None,
        known: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.telling = runtime.telling
        self.folder = runtime.scratch / "trackers"
        self.clock = clock
        self.model = model
        self.known = known or {}
        self.num_points = 0
        self.couriers: dict[str, Courier] = {}
        for name in self.telling.trackers if runtime.is_first_process else ():
            if known is None or name in known:
                try:
                    self.couriers[name] = Courier(
                        name,
                        folder=runtime.workspace,
                        environment=runtime.settings,
                        printed=printed.with_name(f"{printed.stem}-{name}.txt"),
                        say=say,
                    )
                except OSError as error:  # there is no place for its log, or no memory for its process
                    say(f"{name}: {error.strerror}; switched off, training goes on")

    def begin(self, record: Mapping[str, Any], state: Path | None = None) -> None:
        """Tell them which run it is, from its record; one that the folder `state` remembers goes on."""
        for name, courier in self.couriers.items():
            run = TrackedRun(
                name=record["name"],
                tags=record["tags"],
                params=dict(flat(record["params"])),
                folder=str(self.folder / name),
                process=os.getpid(),
                state=str(state / f"{name}.json") if state else None,
                known_id=self.known[name]["id"] if name in self.known else None,
            )
            courier.send(line(asdict(run)))

    def log_row(self, row: Row) -> None:
        """Hand over a point of the curves; takes no longer late in a run than early."""
        if not any(courier.is_on for courier in self.couriers.values()):
            return
        clock = self.clock(row)
        message = line({"row": row, "clock": clock, "histograms": self.histograms() if clock else {}})
        for courier in self.couriers.values():
            courier.send(message)

    def histograms(self) -> dict[str, Any]:
        self.num_points += 1
        every = self.telling.histograms
        if every is None or self.model is None or self.num_points % every:
            return {}
        return {name: asdict(found) for name, found in histograms_of(self.model).items()}

    def end(self, ending: Ending) -> None:
        """Close all, and wait a while for what they don't have yet; a run that was stopped hardly waits."""
        wait = WAIT_SECONDS if ending.outcome == "finished" else WAIT_SECONDS_WHEN_STOPPED
        if ending.model:
            wait += folder_bytes(Path(ending.model)) / MODEL_BYTES_PER_SECOND
        until = time.monotonic() + wait
        for courier in self.couriers.values():
            courier.send(line(asdict(ending)))
        for courier in self.couriers.values():
            courier.close(until)

    def runs(self) -> dict[str, dict[str, str]]:
        """Id and address of the run at each tracker that has begun it."""
        return {
            name: {"id": courier.id, "url": courier.url}
            for name, courier in self.couriers.items()
            if courier.id
        }


def line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists of mappings by their dotted keys; other lists are one value."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value and all(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{key}.{number}")
    else:
        yield key, value if isinstance(value, bool | int | float | str) else str(value)


def figures_in(tree: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers among the leaves of nested mappings, by names with slashes as trackers group them."""
    for key, value in flat(tree):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key.replace(".", "/"), float(value)


def folder_bytes(folder: Path) -> int:
    with suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0
