"""Where and how fast a stage runs: never what it computes.

Settings come from the environment, or from a git-ignored `.env` in the project's root:

NIMA_DEVICE     cpu, cuda or auto (default)
NIMA_THREADS    threads for arithmetic, in each process (default: this process's share of the physical cores)
NIMA_PROCESSES  processes that train, or auto (default): one for each GPU, one on a CPU
NIMA_SHARDING   ddp (default): each holds the model; fsdp, or zero1, zero2, zero3: each holds a part of it
NIMA_LAUNCHER   a command line that starts the training processes, on many machines: `torchrun --nnodes ...`
NIMA_WORKERS    processes that read and tokenize text (default: the cores this process may use)
NIMA_ENGINE     local (default), or ray: reading and tokenizing run on the cluster that RAY_ADDRESS names
NIMA_MIRROR     folder or URL (s3://, gs://, az://, ...) for second copies of checkpoints (default: none)
NIMA_CACHE      folder for downloaded packages (default: .nima/packages in the main workspace)

A process that torchrun, `accelerate launch` or Nima itself started among others learns so from RANK,
WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

What a training run tells, and where:

NIMA_TRACKERS         trackers that get its metrics beside DVCLive: tensorboard, wandb, comet, mlflow (commas
                      between); their own variables (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...) say where
NIMA_RUN_NAME         its name there and in its record (default: from the preset, the sources and the time)
NIMA_TAGS             more tags, with commas between
NIMA_HISTOGRAMS       trackers get histograms of weights and gradients at every so many logged points
NIMA_TRACK_MODEL      1: trackers get the trained model too (default 0)
NIMA_LOG_LEVEL        of the log file: debug (every step), info (default), warning or error
NIMA_LOG_FILE         the log file (default: one per run in .nima/logs in the main workspace)
NIMA_MONITOR_SECONDS  between two looks at the machine's load (default 5; 0: none)
NIMA_PROFILE          1: torch.profiler's trace and table of some steps in .nima/profiles (default 0)
"""

import configparser
import contextlib
import ctypes
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from nima.workspace.errors import UserError

if TYPE_CHECKING:
    import torch

# Tracker: the packages of its extra.
TRACKERS: Mapping[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "comet": ("comet_ml",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Telling:
    """What a training run tells beside its outputs."""

    trackers: tuple[str, ...]
    run_name: str | None
    tags: tuple[str, ...]
    histograms: int | None
    """Logged points from one histogram to the next; None for no histograms."""
    track_model: bool
    log_level: str
    log_file: Path | None
    monitor_seconds: float
    profile: bool


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
    workspace: Path
    """The main workspace, which a temporary run is a copy of."""
    settings: Mapping[str, str] = field(repr=False)
    """The environment, and what `.env` adds to it: secrets among them."""
    telling: Telling
    mirror: str | None = None
    """Where second copies of checkpoints go."""
    processes: int | None = None
    """None: as many as there are GPUs."""
    sharding: str = "ddp"
    launcher: tuple[str, ...] = ()
    place: "Place | None" = None
    """Where this process stands among those that train together; None: nobody started others beside it."""

    @property
    def downloads(self) -> Path:
        """What sources fetched from servers, by source."""
        return self.scratch / "downloads"

    @property
    def checkpoints(self) -> Path:
        """Unfinished runs by fingerprint, and finished ones that DVC has not stored yet."""
        return self.scratch / "checkpoints"

    @property
    def records(self) -> Path:
        """Plain records of training runs."""
        return self.scratch / "records"

    @property
    def logs(self) -> Path:
        return self.scratch / "logs"

    @property
    def compiled(self) -> Path:
        """Layers that torch.compile has translated."""
        return self.scratch / "compiled"

    @property
    def profiles(self) -> Path:
        return self.scratch / "profiles"

    @property
    def is_first_process(self) -> bool:
        """Of those that train together, the one that tells. (torchrun and Accelerate number them in RANK.)"""
        return self.settings.get("RANK", "0") == "0"

    def is_in_dvc_cache(self, md5: str) -> bool:
        return (self.dvc_cache / "files" / "md5" / md5[:2] / md5[2:]).is_file()


@dataclass(frozen=True)
class Place:
    """One of several processes, as torchrun tells it."""

    rank: int
    num_ranks: int
    local_rank: int
    """Its number on its own machine, and so of its GPU."""
    num_local_ranks: int


def load(root: Path) -> Runtime:
    """The runtime of a stage that runs in `root`. Raises `UserError` on an unusable setting."""
    # A temporary or queued experiment runs in a copy without git-ignored files that is deleted afterwards:
    # `.env` and what must outlive the copy lie in the main workspace, which DVC names.
    workspace = Path(os.environ.get("DVC_ROOT") or root).resolve()
    settings = dotenv(workspace / ".env") | {key: value for key, value in os.environ.items() if value}
    scratch = workspace / ".nima"
    place = place_of(os.environ)
    cores = min(usable_cores(), physical_cores())
    return Runtime(
        device=one_of("NIMA_DEVICE", settings, ("auto", "cpu", "cuda")),
        threads=count("NIMA_THREADS", settings) or max(1, cores // (place.num_local_ranks if place else 1)),
        workers=count("NIMA_WORKERS", settings) or usable_cores(),
        engine=one_of("NIMA_ENGINE", settings, ("local", "ray")),
        scratch=scratch,
        packages=workspace / Path(settings.get("NIMA_CACHE", scratch / "packages")).expanduser(),
        dvc_cache=dvc_cache_of(workspace),
        workspace=workspace,
        settings=settings,
        telling=telling_of(settings, workspace),
        mirror=settings.get("NIMA_MIRROR"),
        processes=None if settings.get("NIMA_PROCESSES") == "auto" else count("NIMA_PROCESSES", settings),
        sharding=one_of("NIMA_SHARDING", settings, ("ddp", "fsdp", "zero1", "zero2", "zero3")),
        launcher=tuple(shlex.split(settings.get("NIMA_LAUNCHER", ""))),
        place=place,
    )


def telling_of(settings: Mapping[str, str], workspace: Path) -> Telling:
    log_file = settings.get("NIMA_LOG_FILE")
    return Telling(
        trackers=trackers_of(settings),
        run_name=settings.get("NIMA_RUN_NAME"),
        tags=listed("NIMA_TAGS", settings),
        histograms=count("NIMA_HISTOGRAMS", settings),
        track_model=one_of("NIMA_TRACK_MODEL", settings, ("0", "1")) == "1",
        log_level=one_of("NIMA_LOG_LEVEL", settings, LOG_LEVELS, default="info"),
        log_file=workspace / Path(log_file).expanduser() if log_file else None,
        monitor_seconds=seconds("NIMA_MONITOR_SECONDS", settings, default=5.0),
        profile=one_of("NIMA_PROFILE", settings, ("0", "1")) == "1",
    )


def trackers_of(settings: Mapping[str, str]) -> tuple[str, ...]:
    """The trackers asked for, each once; whether they can be had shows before any work is done."""
    names = tuple(dict.fromkeys(listed("NIMA_TRACKERS", settings)))
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"NIMA_TRACKERS: expected any of {', '.join(TRACKERS)}, found {name!r}")
        if not all(map(is_installed, TRACKERS[name])):
            raise UserError(f"NIMA_TRACKERS: {name} needs the extra {name}: pip install 'nima-lm[{name}]'")
    return names


def is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def place_of(environment: Mapping[str, str]) -> Place | None:
    """None without RANK and WORLD_SIZE. Raises `UserError` if others are missing, or no numbers."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = [environment.get(name, "") for name in names]
    for name, value in zip(names, values, strict=True):
        if not value.isdecimal():
            raise UserError(f"{name}: expected a number beside {', '.join(names)}, found {value!r}")
    rank, num_ranks, local_rank, num_local_ranks = map(int, values)
    return Place(rank, num_ranks, local_rank, num_local_ranks)


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


def count(key: str, settings: Mapping[str, str]) -> int | None:
    """A setting that is a number of at least 1; None if it is not set."""
    setting = settings.get(key)
    if setting is None:
        return None
    if not setting.isdecimal() or int(setting) < 1:
        raise UserError(f"{key}: expected a whole number of at least 1, found {setting!r}")
    return int(setting)


def seconds(key: str, settings: Mapping[str, str], default: float) -> float:
    """A setting that is a time; 0 stands for never."""
    setting = settings.get(key, str(default))
    try:
        found = float(setting)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise UserError(f"{key}: expected seconds, 0 or more, found {setting!r}")
    return found


def one_of(key: str, settings: Mapping[str, str], choices: Sequence[str], default: str | None = None) -> str:
    """A setting that is one of a few words, the first by default."""
    found = settings.get(key, default or choices[0])
    if found not in choices:
        raise UserError(f"{key}: expected {', '.join(choices[:-1])} or {choices[-1]}, found {found!r}")
    return found


def listed(key: str, settings: Mapping[str, str]) -> tuple[str, ...]:
    """A setting that is a list with commas between its members."""
    return tuple(filter(None, map(str.strip, settings.get(key, "").split(","))))


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


def usable_gpus(runtime: Runtime) -> int:
    """How many GPUs a stage may use; 1 where it computes on the CPU."""
    if runtime.device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def set_up_torch(runtime: Runtime) -> "torch.device":
    """Apply device, threads and deterministic arithmetic to torch; returns the device to compute on."""
    import torch

    available = torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise UserError("NIMA_DEVICE: found cuda, but no CUDA device is available; set cpu or auto")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    for name, folder in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ.setdefault(name, str(runtime.compiled / folder))
    compute_deterministically()
    keep_freed_memory()
    torch.set_num_threads(runtime.threads)
    if not available or runtime.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", runtime.place.local_rank) if runtime.place else torch.device("cuda")


def compute_deterministically() -> None:
    """As `torch.use_deterministic_algorithms(True)`, which loads the compiler: two seconds of every start."""
    import torch

    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(True)
    else:
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"  # what the compiler reads if it is loaded later
        torch.set_deterministic_debug_mode("error")


def keep_freed_memory() -> None:
    """Ask glibc to keep what tensors free for the next ones, where there is a glibc.

    Else it gives large blocks back to the system, and gets them again page by page, many times a step.
    """
    no_mmap, trim_threshold, top_pad = -4, -1, -2  # of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(no_mmap, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 * 2**20)
