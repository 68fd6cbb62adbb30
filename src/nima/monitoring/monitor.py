"""How busy the machine is while a run goes on, and the energy that goes into it.

Looks at it from a thread of its own, which a crash of the run takes along. The figures belong to the clock:
they go to metrics/timing.json, the log file and trackers, never into an output.
"""

import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

from nima.monitoring.hardware import EnergyMeter, Gpus
from nima.monitoring.log_file import note

# Figures whose highest value tells more than their mean.
PEAKS = ("process_memory_bytes", "memory_percent", "disk_percent", "gpu_memory_bytes")


class Monitor:
    """Looks at the load every `every_seconds`; with 0 only at the start and the end, for the energy."""

    def __init__(self, every_seconds: float, disk: Path, *, meter: EnergyMeter | None = None) -> None:
        self.every_seconds = every_seconds
        self.disk = disk
        self.gpus = Gpus()
        self.meter = meter or EnergyMeter(self.gpus)
        self.process = psutil.Process()
        self.latest: dict[str, float] = {}
        self.sums: dict[str, float] = defaultdict(float)
        self.highest: dict[str, float] = {}
        self.num_looks = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="monitor", daemon=True)

    def __enter__(self) -> Self:
        self.bytes_before = written_bytes(self.process)
        for reading in (self.process.cpu_percent, psutil.cpu_percent):
            reading()  # the first reading only sets the mark
        if self.every_seconds:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join(timeout=1)

    def watch(self) -> None:
        while not self.ended.wait(self.every_seconds):
            self.look()

    def look(self) -> None:
        """Take one reading of everything."""
        self.latest = self.load()
        self.num_looks += 1
        for name, value in self.latest.items():
            self.sums[name] += value
            self.highest[name] = max(value, self.highest.get(name, value))
        note("load", "info", **self.latest)

    def load(self) -> dict[str, float]:
        """Percentages of the machine, but process_cpu_percent: 100 is one core."""
        readings: dict[str, Callable[[], float]] = {
            "process_cpu_percent": self.process.cpu_percent,
            "process_memory_bytes": lambda: self.process.memory_info().rss,
            "cpu_percent": psutil.cpu_percent,
            "memory_percent": lambda: psutil.virtual_memory().percent,
            "disk_percent": lambda: psutil.disk_usage(str(self.disk)).percent,
        }
        figures = {}
        for name, read in readings.items():
            try:
                figures[name] = float(read())
            except (OSError, psutil.Error):  # a container may hide it
                continue
        # Energy too: its counters wrap within minutes on a large machine.
        return figures | self.gpus.load() | self.meter.read()

    def figures(self) -> dict[str, float]:
        """Means or highest values over the run, bytes written and joules drawn. Ends the watch."""
        self.stop()
        if not self.num_looks:
            self.look()
        energy = self.meter.read()
        figures = {}
        for name in self.sums.keys() - energy.keys():
            if name in PEAKS:
                figures[f"{name}_max"] = self.highest[name]
            else:
                figures[f"{name}_mean"] = self.sums[name] / self.num_looks
        written = written_bytes(self.process)
        if written is not None and self.bytes_before is not None:
            figures["disk_written_bytes"] = float(written - self.bytes_before)
        return dict(sorted(figures.items())) | energy


def written_bytes(process: psutil.Process) -> int | None:
    try:
        return process.io_counters().write_bytes
    except (AttributeError, OSError, psutil.Error):  # not on every system
        return None
