"""The plain record of a training run: one JSON file with what ran, on what, with what, and what came out.

It needs neither DVC nor Git to be read and outlives both's garbage collection. It lies in `.nima/records` of
the main workspace: that folder is known to Git's ignore list, belongs to no stage's outputs (a record tells
the time, and dvc.lock must not), and is found from the copies in which temporary and queued experiments run.
A run that is interrupted and goes on keeps its record; every process that worked on it is one of `sessions`.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Self

from torch import nn

from nima.monitoring.hardware import machine
from nima.monitoring.log_file import finite, note
from nima.workspace.inputs import fingerprint_of
from nima.workspace.params import Params
from nima.workspace.runtime import Runtime

SCHEMA = 1
POINTER = "record"
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
# Beside NIMA_*: what steers arithmetic.
TELLING_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")
MAX_CHANGED_FILES = 50
# What a reader looks for first stands first.
ORDER = (
    *("schema", "name", "status", "started", "ended", "tags", "metrics", "trackers", "sessions", "log"),
    *("git", "inputs", "outputs", "model", "params", "environment", "hardware", "versions"),
)


class RunRecord:
    """A record on disk. A disk that refuses it stops nothing: the log says so."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    @classmethod
    def open(cls, records: Path, run_folder: Path, label: str, name: str | None = None) -> Self:
        """The record of the run in `run_folder`: the one that it has already, else a new one.

        Without a `name` the run is called by its label and the time.
        """
        pointer = run_folder / POINTER
        if pointer.is_file():
            path = records / pointer.read_text(encoding="utf-8")
            if content := read(path):
                return cls(path, content)
        started = datetime.now(UTC)
        stamp = f"{started:%Y%m%d-%H%M%S}"
        content = {
            "schema": SCHEMA,
            "name": name or f"{label}-{stamp}",
            "status": "running",
            "started": started.isoformat(timespec="seconds"),
            "ended": None,
            "sessions": [],
        }
        record = cls(free_path(records, f"{stamp}-{slug(label)}"), content)
        if record.write():
            with suppress(OSError):
                pointer.write_text(record.path.name, encoding="utf-8")
        return record

    def begin_session(self, **facts: Any) -> None:
        """Another process works on the run. One that never ended its session was killed."""
        for session in self.content["sessions"]:
            if session["outcome"] == "running":
                session["outcome"] = "killed"
        session = {"started": now(), "ended": None, "outcome": "running", "process": os.getpid()}
        self.content["sessions"].append(session | where())
        self.content |= {"status": "running", "ended": None} | facts
        self.write()

    def end_session(self, outcome: str, session: Mapping[str, Any], **facts: Any) -> None:
        self.content["sessions"][-1] |= {"ended": now(), "outcome": outcome, **session}
        self.content |= {"status": outcome, "ended": now()} | facts
        self.write()

    def add(self, **facts: Any) -> None:
        self.content |= facts
        self.write()

    def write(self) -> bool:
        ordered = {key: self.content[key] for key in ORDER if key in self.content} | self.content
        text = json.dumps(finite(ordered), indent=2, ensure_ascii=False, default=str) + "\n"
        partial = self.path.with_suffix(".partial")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            note("record refused", "warning", path=str(self.path), reason=error.strerror)
            return False
        return True


def records_in(folder: Path) -> list[dict[str, Any]]:
    """Every readable record, oldest first."""
    return [content for path in sorted(folder.glob("*.json")) if (content := read(path))]


def read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else None


# ------------------------------------------------------------------------------------------------ facts


def label_of(params: Params, runtime: Runtime) -> str:
    """What kind of run it is: preset, sources, and the experiment's name if it has one."""
    names = [source.name for source in params.prepare.sources]
    more = [f"{len(names) - 2}-more"] if len(names) > 2 else []
    parts = [params.model.preset, "+".join([*names[:2], *more]), runtime.settings.get("DVC_EXP_NAME")]
    return "-".join(filter(None, parts))


def tags_of(params: Params) -> list[str]:
    """Words to find a run by."""
    training = params.training
    sources = [source.name for source in params.prepare.sources]
    return list(dict.fromkeys([params.model.preset, training.optimizer, training.precision, *sources]))


def where() -> dict[str, Any]:
    """Where this process runs: machine, folder and, under `dvc exp run`, the experiment."""
    folder, workspace = os.getcwd(), os.environ.get("DVC_ROOT")  # noqa: PTH109 - as text
    return {
        "host": platform.node(),
        "folder": folder,
        "temporary": workspace is not None and os.path.realpath(workspace) != os.path.realpath(folder),
        "experiment": os.environ.get("DVC_EXP_NAME"),
        "baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
    }


def git_state() -> dict[str, Any] | None:
    """Commit, branch and what is not committed in the current folder's repository; None without one."""
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = (git("status", "--porcelain") or "").splitlines()
    return {
        "commit": commit,
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(changed),
        "changed": changed[:MAX_CHANGED_FILES],
        "num_changed": len(changed),
    }


def git(*arguments: str) -> str | None:
    try:
        command = ["git", "--no-optional-locks", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip()


def input_hashes(contents: Mapping[str, str]) -> dict[str, Any]:
    """One hash for each folder of data, one for all code, one of all; from `inputs.contents`."""
    places: dict[str, dict[str, str]] = {}
    for name, found in contents.items():
        place = "code" if name.endswith(".py") else PurePosixPath(name).parent.as_posix()
        places.setdefault(place, {})[name] = found
    return {"sha256": fingerprint_of(contents)} | {
        place: {
            "sha256": fingerprint_of(files),
            "files": len(files),
            "bytes": sum(int(found.split()[0]) for found in files.values()),
        }
        for place, files in sorted(places.items())
    }


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings that say where and how fast, without secrets."""
    return {
        name: re.sub(r"(?<=//)[^/@\s]+@", "***@", value)
        for name, value in sorted(settings.items())
        if (name.startswith("NIMA_") or name in TELLING_SETTINGS) and not SECRET.search(name)
    }


def versions() -> dict[str, str]:
    """Python's version, and that of every installed package by its normal name (PEP 503)."""
    found = {}
    for place in map(Path, sys.path):
        for folder in place.glob("*.dist-info"):  # reading each one's metadata takes a hundred times as long
            name, _, version = folder.name.removesuffix(".dist-info").partition("-")
            found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return {"python": platform.python_version()} | dict(sorted(found.items()))


def parameter_counts(model: nn.Module) -> dict[str, Any]:
    """Numbers of parameters: in total, those that are trained, and layer by layer."""
    layers: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        layer = ".".join(parts[:2] if len(parts) > 2 and parts[1].isdecimal() else parts[:1])
        layers[layer] = layers.get(layer, 0) + parameter.numel()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"total": sum(layers.values()), "trainable": trained, "layers": layers}


def facts_of(params: Params, runtime: Runtime, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of a run before it begins."""
    return {
        "params": params.model_dump(mode="json"),
        "tags": [*tags_of(params), *runtime.telling.tags],
        "inputs": dict(inputs),
        "git": git_state(),
        "model": {"shape": params.model.shape(), "parameters": parameter_counts(model)},
        "hardware": machine(),
        "environment": environment(runtime.settings),
        "versions": versions(),
    }


# ------------------------------------------------------------------------------------------------ names


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", label)[:80].strip("-.") or "run"


def free_path(folder: Path, name: str) -> Path:
    path, number = folder / f"{name}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{name}_{number}.json"  # sorts behind the first
    return path


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
