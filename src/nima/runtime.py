"""Where and how fast a stage runs: never what it computes.

Settings come from the environment, or from a git-ignored `.env` in the project's root:

NIMA_DEVICE   cpu, cuda or auto (default)
NIMA_THREADS  threads for arithmetic (default: the physical cores this process may use)
NIMA_WORKERS  processes that read and tokenize text (default: the cores this process may use)
NIMA_ENGINE   local (default), or ray: reading and tokenizing run on the cluster that RAY_ADDRESS names
NIMA_CACHE    folder for downloaded packages (default: .nima/packages in the main workspace)
"""

import configparser
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from nima.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Runtime:
    device: str
    threads: int
    workers: int
    engine: str
    scratch: Path
    """State of unfinished work, git-ignored and unknown to DVC. Shared by temporary experiment runs."""
    packages: Path
    """Downloaded packages by name and version."""
    dvc_cache: Path

    @property
    def downloads(self) -> Path:
        """What sources fetched from servers, by source."""
        return self.scratch / "downloads"

    @property
    def checkpoints(self) -> Path:
        """Unfinished runs by fingerprint, and finished ones that DVC has not stored yet."""
        return self.scratch / "checkpoints"

    def is_in_dvc_cache(self, md5: str) -> bool:
        return (self.dvc_cache / "files" / "md5" / md5[:2] / md5[2:]).is_file()


def load(root: Path) -> Runtime:
    """The runtime of a stage that runs in `root`. Raises `UserError` on an unusable setting."""
    # A temporary or queued experiment runs in a copy without git-ignored files that is deleted afterwards:
    # `.env` and what must outlive the copy lie in the main workspace, which DVC names.
    workspace = Path(os.environ.get("DVC_ROOT") or root).resolve()
    settings = dotenv(workspace / ".env") | {key: value for key, value in os.environ.items() if value}
    scratch = workspace / ".nima"
    device = settings.get("NIMA_DEVICE", "auto")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"NIMA_DEVICE: expected auto, cpu or cuda, found {device!r}")
    engine = settings.get("NIMA_ENGINE", "local")
    if engine not in ("local", "ray"):
        raise UserError(f"NIMA_ENGINE: expected local or ray, found {engine!r}")
    return Runtime(
        device=device,
        threads=count("NIMA_THREADS", settings) or min(usable_cores(), physical_cores()),
        workers=count("NIMA_WORKERS", settings) or usable_cores(),
        engine=engine,
        scratch=scratch,
        packages=workspace / Path(settings.get("NIMA_CACHE", scratch / "packages")).expanduser(),
        dvc_cache=dvc_cache_of(workspace),
    )


def dvc_cache_of(workspace: Path) -> Path:
    """Where the workspace's DVC keeps outputs: .dvc/cache, or what `dvc cache dir` set."""
    place = "cache"
    for name in ("config", "config.local"):
        config = configparser.ConfigParser(interpolation=None, strict=False)
        config.read(workspace / ".dvc" / name, encoding="utf-8")
        place = config.get("cache", "dir", fallback=place)
    return workspace / ".dvc" / place


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    return psutil.cpu_count(logical=False) or usable_cores()


def count(key: str, settings: dict[str, str]) -> int | None:
    """A setting that is a number of at least 1; None if it is not set."""
    setting = settings.get(key)
    if setting is None:
        return None
    if not setting.isdecimal() or int(setting) < 1:
        raise UserError(f"{key}: expected a whole number of at least 1, found {setting!r}")
    return int(setting)


def dotenv(path: Path) -> dict[str, str]:
    """KEY=value lines; `#` starts a comment line. A missing file is an empty one, an empty value is none."""
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    settings = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        key, separator, value = line.removeprefix("export ").partition("=")
        if not separator:  # the line is not shown: it may hold a secret
            raise UserError(f"{path}:{number}: expected KEY=value, found a line without '='")
        settings[key.strip()] = value.strip().strip("\"'")
    return {key: value for key, value in settings.items() if value}


def set_up_torch(runtime: Runtime) -> "torch.device":
    """Apply device, threads and deterministic arithmetic to torch; returns the device to compute on."""
    import torch

    available = torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise UserError("NIMA_DEVICE: found cuda, but no CUDA device is available; set cpu or auto")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(runtime.threads)
    return torch.device("cuda" if available and runtime.device != "cpu" else "cpu")
