"""With what a stage ran: versions, machine, settings; all that may change a result beside params and data.

It is in `metrics/environment.json`, which Git tracks and which belongs to no stage's outputs. The commit of
an experiment has it, and it names no clock and no host, so that it stays as it is until something changes.
"""

import json
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from nima.workspace.metrics import METRICS, write_json
from nima.workspace.runtime import Runtime, physical_cores

CPUINFO = Path("/proc/cpuinfo")
ENVIRONMENT = METRICS / "environment.json"
# Packages whose version may change a result.
PACKAGES = (
    *("torch", "numpy", "tokenizers", "tiktoken", "sentencepiece", "transformers", "safetensors"),
    *("pyarrow", "ftfy", "selectolax", "chardet", "py3langid", "dvclive"),
)


def write_environment(stage: str, runtime: Runtime) -> None:
    """Put what a stage ran with beside what the other stages did."""
    try:
        found = json.loads(ENVIRONMENT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    stages = found if isinstance(found, dict) else {}
    write_json(ENVIRONMENT, dict(sorted((stages | {stage: environment(runtime)}).items())))


def environment(runtime: Runtime) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := installed(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": physical_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus(),
        "device": runtime.device,
        "threads": runtime.threads,
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name as its maker gives it."""
    with suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Names of the GPUs that torch sees; none for a stage that computes without torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
