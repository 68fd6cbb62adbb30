"""Memory of this process: what it has, had at most, and may still take."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024


def available_memory_bytes(cgroup: Path = CGROUP) -> int:
    """What this process may still take before anything is swapped out or killed: a container's limit too."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text("ascii"))  # "max" where there is none
        used = int((cgroup / "memory.current").read_text("ascii"))
        free = min(free, limit - used + reclaimable_bytes(cgroup))
    return max(0, free)


def reclaimable_bytes(cgroup: Path) -> int:
    """Of the container's memory, files that were read and can be read again."""
    for line in (cgroup / "memory.stat").read_text("ascii").splitlines():
        name, _, size = line.partition(" ")
        if name == "inactive_file":
            return int(size)
    return 0


def resident_bytes() -> int:
    """The memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most memory that this process has had. (`getrusage` may tell of the process that started it.)"""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RUSAGE_UNIT
