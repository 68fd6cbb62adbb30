"""The unfinished runs of a project and their checkpoints, for those who look at them from outside."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nima.checkpoint import names
from nima.checkpoint.files import sync_folder
from nima.checkpoint.lock import is_held, locked
from nima.checkpoint.mirror import Mirror
from nima.checkpoint.run_folder import RunFolder
from nima.checkpoint.state import Manifest, read_manifest, verify
from nima.checkpoint.store import Store
from nima.checkpoint.weights import weights_in
from nima.network.decoder import Decoder, DecoderConfig
from nima.workspace.errors import CheckpointError, UserError
from nima.workspace.outputs import remove
from nima.workspace.params import ModelParams
from nima.workspace.runtime import Runtime

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Saved:
    """One checkpoint in a run's folder; without a manifest it is not whole."""

    path: Path
    names: list[str]
    manifest: Manifest | None


def runs(runtime: Runtime) -> list[Path]:
    """The folders of all runs, the one that was worked on last at the end."""
    found = [path.parent for path in runtime.checkpoints.glob("*/run.json")]
    return sorted(found, key=lambda run: ((run / "run.json").stat().st_mtime_ns, run.name))


def run_named(runtime: Runtime, name: str | None) -> Path:
    """The run with this id, or the last one. Raises `UserError`."""
    found = runs(runtime)
    if name is not None:
        found = [run for run in found if run.name.startswith(name)]
    if not found:
        what = f"no run {name!a}" if name is not None else "no runs"
        raise UserError(f"{runtime.checkpoints}: {what}; `dvc repro train` begins one")
    return found[-1]


def saved_in(run: Path) -> Iterator[Saved]:
    """The run's checkpoints, oldest first."""
    named = names.names_in(run)
    for path in RunFolder(run, keep=1).checkpoints():
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            manifest = None
        yield Saved(path, [name for name, folder in named.items() if folder == path.name], manifest)


def find(runtime: Runtime, what: str) -> Path:
    """The folder of a checkpoint by path, by name or by step; the run that was last worked on comes first.

    Raises `UserError`.
    """
    if Path(what).is_dir():
        return Path(what).resolve()
    for run in reversed(runs(runtime)):
        for saved in saved_in(run):
            step = saved.path.name.removeprefix("step-")
            if what in (saved.path.name, *saved.names) or (what.isdecimal() and int(what) == int(step)):
                return saved.path
    raise UserError(f"{what}: no folder, name or step of a checkpoint; see `nima checkpoint list`")


# --------------------------------------------------------------------------------------------- changes


def save_as(run: Path, name: str, step: int | None, wait_seconds: float) -> Path:
    """Ask the run's trainer for a checkpoint, or name one that is there. Returns it. Raises `UserError`."""
    if step is None and is_held(run):
        return saved_on_request(run, name, wait_seconds)
    whole = [saved.path for saved in saved_in(run) if saved.manifest is not None]
    if step is not None:
        chosen = RunFolder(run, keep=1).step_path(step)
    elif whole:
        chosen = whole[-1]
    else:
        raise UserError(f"{run}: nothing is saved there yet")
    verify(chosen)
    names.give_name(run, name, chosen.name)
    return chosen


def saved_on_request(run: Path, name: str, wait_seconds: float) -> Path:
    request = names.request_save(run, name)
    deadline = time.monotonic() + wait_seconds
    while request.exists() and is_held(run) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if name in (named := names.names_in(run)):
        return run / named[name]
    request.unlink(missing_ok=True)
    raise UserError(f"{run}: its trainer did not answer within {wait_seconds:g} s, or it ended; try again")


def prune(run: Path, keep: int) -> list[Path]:
    """Drop all but the newest `keep` checkpoints and the named ones. Raises `UserError` during training."""
    with locked(run):
        folder = RunFolder(run, keep)
        steps = [int(path.name.removeprefix("step-")) for path in folder.checkpoints()]
        return folder.prune(max(steps)) if steps else []


def rewind(checkpoint: Path, mirror: str | None) -> list[Path]:
    """Drop what is newer than this checkpoint, so that its run continues from it. Raises `UserError`."""
    run = checkpoint.parent
    manifest = verify(checkpoint)
    if manifest.run != run.name:
        raise UserError(
            f"{checkpoint}: is not in the folder of its run, {manifest.run}; name it as training.init_from "
            "to begin another run with its weights"
        )
    with locked(run):
        newer = [saved for saved in saved_in(run) if saved.path.name > checkpoint.name]
        if named := [name for saved in newer for name in saved.names]:
            raise UserError(f"{run}: {', '.join(named)} is newer and has a name; release it first")
        for saved in newer:
            remove(saved.path)
        sync_folder(run)
        if mirror is not None:
            store = Store(mirror, run.name)
            for step in store.steps():
                if step > checkpoint.name:
                    store.remove(step)
    return [saved.path for saved in newer]


def restore(runtime: Runtime, url: str, run: str | None) -> tuple[Path, list[str]]:
    """Fetch a run's newest and named checkpoints from a mirror. Raises `UserError`."""
    known = sorted(Store(url, "").names())
    wanted = [name for name in known if run is None or name.startswith(run)]
    if len(wanted) != 1:
        raise UserError(f"{url}: expected one of its runs: {', '.join(known) or 'it has none'}")
    path = runtime.checkpoints / wanted[0]
    with locked(path):
        restored = Mirror(url, path, lambda line: print(line)).restore()  # noqa: T201
        if not (path / "run.json").exists():
            Store(url, wanted[0]).get("run.json", path / "run.json")
    return path, restored


# ------------------------------------------------------------------------------------------ evaluation


def model_in(folder: Path, model: ModelParams) -> Decoder:
    """The model of a checkpoint or an exported folder; a checkpoint's shape is its run's, else `model`'s.

    Raises `UserError`.
    """
    from nima.checkpoint.weights import EXPORTED, put_into
    from nima.network import pretrained

    if (folder / EXPORTED).exists():
        return pretrained.load(folder)
    weights = weights_in(folder)
    with contextlib.suppress(OSError, ValueError, KeyError):
        record = json.loads((folder.parent / "run.json").read_text(encoding="utf-8"))
        model = ModelParams(**record["model"])
    vocab_size = weights["embedding.weight"].shape[0]
    built = Decoder(DecoderConfig(vocab_size=vocab_size, **model.shape()))
    put_into(built, weights, folder)
    return built
