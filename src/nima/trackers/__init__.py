"""The same metrics as DVCLive's at other places: TensorBoard, Weights & Biases, Comet, MLflow.

Each tracker works in a process of its own (`sender`), which gets the rows through a pipe. Whatever happens to
it there - no key, a server that is down or slow, a crash of its library - training neither waits nor fails:
one line says so, and the tracker is switched off.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from nima.workspace.runtime import Runtime


def tell_trackers(runtime: Runtime, model: Path, **found: Any) -> None:
    """Add what a stage found out about a model to the run that trained it: see `later.add_to_run`.

    Imported by its name, and only where there are trackers: stages don't depend on whom they tell.
    """
    if runtime.telling.trackers:
        import_module("nima.trackers.later").add_to_run(runtime, model, **found)
