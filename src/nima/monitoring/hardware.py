"""The machine: what it has, how busy it is, what it draws. What can't be read is left out, never guessed."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

from nima.workspace.runtime import physical_cores, usable_cores
from nima.workspace.surroundings import cpu_model

POWERCAP = Path("/sys/class/powercap")


def machine() -> dict[str, Any]:
    """The hardware and the system, for a run's record."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "physical_cores": physical_cores(),
        "usable_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        **Gpus().description(),
    }


# ------------------------------------------------------------------------------------------------- GPUs


class Gpus:
    """NVIDIA's GPUs that this process may use, read through NVML; none without a driver."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            found = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
            self.handles = [gpu for place, gpu in enumerate(found) if is_visible(place, gpu, chosen)]

    def description(self) -> dict[str, Any]:
        if not self.handles:
            return {"gpus": []}
        return {
            "gpus": [
                {
                    "name": self.figure(pynvml.nvmlDeviceGetName, gpu),
                    "memory_bytes": self.figure(lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).total, gpu),
                }
                for gpu in self.handles
            ],
            "gpu_driver": self.figure(lambda _: pynvml.nvmlSystemGetDriverVersion(), None),
        }

    def load(self) -> dict[str, float]:
        """gpu_percent (mean), gpu_memory_bytes (sum), gpu_watts (sum): as many of them as can be read."""
        readings: dict[str, tuple[Callable[[Any], float], float]] = {
            "gpu_percent": (lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu, len(self.handles)),
            "gpu_memory_bytes": (lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used, 1),
            "gpu_watts": (lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3, 1),
        }
        figures = {}
        for name, (read, divisor) in readings.items():
            found = [self.figure(read, gpu) for gpu in self.handles]
            if found and None not in found:
                figures[name] = sum(found) / divisor
        return figures

    def joules(self) -> list[float]:
        """What each GPU has drawn since its driver was loaded; without those that don't count."""
        found = (
            self.figure(lambda gpu: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3, gpu)
            for gpu in self.handles
        )
        return [joules for joules in found if joules is not None]

    def figure(self, read: Callable[[Any], Any], gpu: Any) -> Any:
        try:
            return read(gpu)
        except pynvml.NVMLError:  # not every board tells everything
            return None


def is_visible(place: int, gpu: Any, chosen: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES (None if it is not set) leaves this GPU in."""
    if chosen is None:
        return True
    wanted = [name.strip() for name in chosen.split(",")]
    return str(place) in wanted or pynvml.nvmlDeviceGetUUID(gpu) in wanted


# ----------------------------------------------------------------------------------------------- energy


@dataclass
class Counter:
    """An energy counter of the kernel (RAPL), in microjoules, that starts again at `wraps_at`."""

    path: Path
    wraps_at: int
    last: int

    def advance(self) -> float:
        """Joules since the last look."""
        now = int(self.path.read_text(encoding="ascii"))
        drawn = now - self.last if now >= self.last else now + self.wraps_at - self.last
        self.last = now
        return drawn / 1e6


class EnergyMeter:
    """Joules that processors and GPUs drew since the meter was made, for whatever work.

    To be read more often than the processors' counters wrap: within minutes, on a large machine. What memory
    draws is in no counter that all machines have.
    """

    def __init__(self, gpus: Gpus, powercap: Path = POWERCAP) -> None:
        self.gpus = gpus
        self.counters = list(package_counters(powercap))
        self.cpu_joules = 0.0
        self.gpu_start = gpus.joules()

    def read(self) -> dict[str, float]:
        """cpu_joules and gpu_joules, those of them that can be read."""
        figures = {}
        with suppress(OSError, ValueError):
            self.cpu_joules += sum(counter.advance() for counter in self.counters)
        if self.counters:
            figures["cpu_joules"] = self.cpu_joules
        now = self.gpus.joules()
        if now and len(now) == len(self.gpu_start):
            figures["gpu_joules"] = sum(now) - sum(self.gpu_start)
        return figures


def package_counters(powercap: Path) -> Iterator[Counter]:
    """One counter a processor package: zones intel-rapl:N, which AMD's processors have too."""
    for zone in sorted(powercap.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):  # most kernels let only root read them
            if zone.name.count(":") == 1 and (zone / "name").read_text("ascii").startswith("package"):
                wraps_at = int((zone / "max_energy_range_uj").read_text("ascii"))
                path = zone / "energy_uj"
                yield Counter(path, wraps_at, int(path.read_text("ascii")))
