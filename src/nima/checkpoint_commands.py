"""Commands on the checkpoints of unfinished runs. Each imports what it needs when it runs."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from nima.workspace.runtime import Runtime

Run = Annotated[str | None, typer.Option(metavar="ID", help="This run, not the last one.")]
Which = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder, name or step.")]


def commands() -> typer.Typer:
    group = partial(typer.Typer, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    checkpoint = group(help="Look after the checkpoints of unfinished runs.")
    checkpoint.command("list")(list_checkpoints)
    checkpoint.command("verify")(verify)
    checkpoint.command("save")(save)
    checkpoint.command("release")(release)
    checkpoint.command("prune")(prune)
    checkpoint.command("restore")(restore)
    checkpoint.command("resume")(resume)
    checkpoint.command("evaluate")(evaluate)
    return checkpoint


def runtime() -> "Runtime":
    from nima.workspace.runtime import load

    return load(Path.cwd())


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def list_checkpoints() -> None:
    """All checkpoints: run, step, size, validation loss, names."""
    from nima.checkpoint.lock import is_held
    from nima.saved_runs import runs, saved_in

    for run in runs(runtime()):
        say(f"{run}{'  (in training)' if is_held(run) else ''}")
        for saved in saved_in(run):
            if saved.manifest is None:
                say(f"  {saved.path.name}  not whole")
                continue
            loss = saved.manifest.metrics.get("loss")
            shown = "" if loss is None else f"  validation loss {loss:.4f}"
            named = f"  {', '.join(saved.names)}" if saved.names else ""
            say(f"  {saved.path.name}  {saved.manifest.num_bytes:,} bytes{shown}{named}")


def verify(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="Folder, name or step; default: all.")
    ] = None,
) -> None:
    """Compare every file with its manifest's hash; exit 2 if one differs."""
    from nima.checkpoint.state import verify as verify_folder
    from nima.saved_runs import find, runs, saved_in
    from nima.workspace.errors import CheckpointError

    here = runtime()
    if checkpoint is not None:
        paths = [find(here, checkpoint)]
    else:
        paths = [saved.path for run in runs(here) for saved in saved_in(run)]
    broken = []
    for path in paths:
        try:
            verify_folder(path)
            say(f"{path}: whole")
        except CheckpointError as error:
            broken.append(str(error))
    if broken:
        raise CheckpointError("\n".join(broken))


def save(
    name: Annotated[str, typer.Argument(metavar="NAME", help="It is kept until the name is released.")],
    step: Annotated[int | None, typer.Option(metavar="N", help="Name the saved one of this step.")] = None,
    run: Run = None,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="For the trainer's answer.")] = 120.0,
) -> None:
    """Have the running trainer save under a name; without one, name the newest checkpoint."""
    from nima.saved_runs import run_named, save_as

    say(f"{name}: {save_as(run_named(runtime(), run), name, step, wait)}")


def release(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    run: Run = None,
) -> None:
    """Take a name away; its checkpoint is then pruned like others."""
    from nima.checkpoint import names
    from nima.saved_runs import run_named

    names.release_name(run_named(runtime(), run), name)


def prune(
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="So many of the newest stay.")] = 1,
    run: Run = None,
) -> None:
    """Drop old checkpoints of a run that is not in training; named ones stay."""
    from nima.saved_runs import prune, run_named

    for path in prune(run_named(runtime(), run), keep):
        say(f"dropped {path}")


def restore(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Its id, if there are more.")] = None,
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="Default: NIMA_MIRROR.")] = None,
) -> None:
    """Fetch a run's newest and named checkpoints from the mirror. (`dvc repro` does so by itself.)"""
    from nima.saved_runs import restore
    from nima.workspace.errors import UserError

    here = runtime()
    url = mirror or here.mirror
    if url is None:
        raise UserError("NIMA_MIRROR: not set; set it, or name the mirror with --mirror")
    path, restored = restore(here, url, run)
    say(f"{path}: {', '.join(restored) or 'has what the mirror has'}")


def resume(
    checkpoint: Which,
    start: Annotated[bool, typer.Option(help="Run `dvc repro train` afterwards.")] = True,
) -> None:
    """Go back to a checkpoint: newer ones of its run are dropped, and the run continues from it."""
    import os

    from nima.saved_runs import find, rewind

    here = runtime()
    for path in rewind(found := find(here, checkpoint), here.mirror):
        say(f"dropped {path}")
    say(f"{found.parent} continues from {found.name}")
    if start:
        os.execvp("dvc", ["dvc", "repro", "train"])  # noqa: S606 - it takes this process's place


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder, name or step; or an exported model's folder.")
    ],
    split: Annotated[Literal["validation", "test"], typer.Option(help="The text to score.")] = "validation",
) -> None:
    """Score a checkpoint, or an exported model, on a split's text; nothing is written."""
    from nima.saved_runs import find, model_in
    from nima.training.recipe import evaluated
    from nima.workspace.params import params_file
    from nima.workspace.stage import PARAMS

    here, params = runtime(), params_file.load(PARAMS)
    model = model_in(find(here, checkpoint), params.model)
    for source, metrics in evaluated(model, params, here, split).items():
        figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        say(f"{source}  {figures}")
