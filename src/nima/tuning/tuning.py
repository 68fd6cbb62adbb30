"""The search itself: trial after trial, each a real `dvc exp run` in a clone that shares DVC's cache.

The validation curve of the running trial is watched; a trial that does worse than others at the same step is
stopped. Trials up to the present one survive any interruption, and that one goes on from its checkpoint.
"""

import csv
import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from nima.repository import git, other_processes
from nima.repository.revisions import CURVES, SHORT, Revision, experiment_refs
from nima.repository.shared_clone import SharedClone, reason_of, shared_clone
from nima.tuning.search_space import (
    PARAMS,
    Dimension,
    Value,
    check_ends,
    dimensions,
    override,
    refusal,
    value_at,
    written,
)
from nima.tuning.study import Record, Study, Trial, open_study
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.params import UNTRACKED, TuneParams, params_file
from nima.workspace.signals import StopRequest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Clock figures change with every run, and no stage reads them.
UNREAD = ("metrics/timing.json",)
Tell = Callable[[str], None]


def study_folder(root: Path, name: str) -> Path:
    return runtime.load(root).scratch / "studies" / name


def tune(root: Path, name: str, num_trials: int | None, tell: Tell, show: Callable[[Study], None]) -> Study:
    """Search until the study has `num_trials` finished trials. `show` is called after each.

    Raises `UserError` before anything runs if the search could not be trusted, `Interrupted` after a signal.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name}: a study's name has letters, digits, '-' and '_' only")
    settings, space = search_of(root)
    commit = clean_head(root)
    folder = study_folder(root, name)
    # A study that Git's references know but the file does not would be given the same names again.
    is_new = not (folder / "study.db").exists()
    if is_new:
        refuse_taken_names(root, name)
    with StopRequest() as stop, shared_clone(root, commit, folder) as clone:
        if is_new:
            clone.forget_experiments()
        study = open_study(
            folder / "study.db", name, settings, space, commit=commit, present=present_values(root, space)
        )
        clone = on_the_studys_commit(study, clone)
        wanted = num_trials or settings.trials
        while study.num_finished() < wanted:
            stop.check("every finished trial is in the study")
            run_trial(study.next_trial(), clone, folder, stop, tell)
            show(study)
        show(study)
    return study


def search_of(root: Path) -> tuple[TuneParams, list[Dimension]]:
    params = params_file.load(root / PARAMS)
    if params.tune is None:
        raise UserError(f"{PARAMS}: no section tune, so nothing to search: docs/tune.md shows one")
    space = dimensions(params)
    check_ends(root, space)
    return params.tune, space


def present_values(root: Path, space: list[Dimension]) -> dict[str, Value] | None:
    """The params as they are, if the search may reach them: the first trial, to compare with."""
    tree = params_file.plain(params_file.parse(root / PARAMS))
    values = {dimension.key: value_at(tree, dimension.key) for dimension in space}
    return values if all(dimension.holds(values[dimension.key]) for dimension in space) else None


# ------------------------------------------------------------------------------------- what it starts from


def clean_head(root: Path) -> str:
    """HEAD's commit. Raises `UserError` if the trials would not see what lies in the workspace."""
    git.output(root, "rev-parse", "--git-dir")
    try:
        commit = git.output(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    except UserError:
        raise UserError("no commit yet, and trials start from one: git add -A, then git commit") from None
    changed = git.paths(root, "diff", "--name-only", "--relative", "-z", "HEAD")
    new = git.paths(root, "ls-files", "--others", "--exclude-standard", "-z")
    read = inputs(root)
    unseen = [path for path in changed if path not in UNREAD] + [path for path in new if is_read(path, read)]
    if unseen:
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        names = ", ".join(unseen[:5]) + more
        raise UserError(
            f"the trials start from HEAD and would not see: {names}; git add and git commit first"
        )
    return commit


def inputs(root: Path) -> set[str]:
    """Everything that a stage reads, as dvc.yaml names it, and the pipeline's own files."""
    stages = params_file.parse(root / "dvc.yaml").get("stages") or {}
    deps = {str(dep) for stage in stages.values() for dep in stage.get("deps") or []}
    outs = {next(iter(out)) if isinstance(out, dict) else str(out) for out in outputs(stages)}
    return (deps - outs) | {"dvc.yaml", PARAMS}


def outputs(stages: dict) -> list:
    kinds = ("outs", "metrics", "plots")
    return [out for stage in stages.values() for kind in kinds for out in stage.get(kind) or []]


def is_read(path: str, inputs: set[str]) -> bool:
    place = PurePosixPath(path)
    return place.suffix == ".dvc" or any(place.is_relative_to(name) for name in inputs)


def refuse_taken_names(root: Path, name: str) -> None:
    start = f"/{name}-trial-"
    if taken := [ref for ref in experiment_refs(root) if start in ref]:
        shown = taken[0].rsplit("/", 1)[1]
        raise UserError(
            f"{len(taken)} experiments such as {shown} exist, but no study {name} that they belong to: "
            f"choose another name (nima tune {name}-2), or dvc exp remove them"
        )


def on_the_studys_commit(study: Study, clone: SharedClone) -> SharedClone:
    """Trials of one study start from one commit. Raises `UserError` if HEAD has other inputs by now."""
    begun, now = study.commit, clone.commit
    if begun == now:
        return clone
    changed = git.paths(clone.root, "diff", "--name-only", "--relative", "-z", begun, now)
    if other := [path for path in changed if is_read(path, inputs(clone.root)) and path != PARAMS]:
        raise UserError(
            f"study {study.name} was begun on {begun[:SHORT]}, and HEAD has another {other[0]}: git checkout "
            f"{begun[:SHORT]} to continue it, or begin another: nima tune {study.name}-2"
        )
    refuse_other_params(study, clone)
    moved = SharedClone(clone.root, clone.place, clone.project, begun)
    moved.reset()
    return moved


def refuse_other_params(study: Study, clone: SharedClone) -> None:
    trees = []
    for commit in (study.commit, clone.commit):
        SharedClone(clone.root, clone.place, clone.project, commit).reset()
        trees.append(params_file.plain(params_file.parse(clone.project / PARAMS)))
    before, now = trees
    for section in dict.fromkeys([*before, *now]):
        if section not in UNTRACKED and before.get(section) != now.get(section):
            begun = study.commit[:SHORT]
            raise UserError(
                f"study {study.name} was begun on {begun}, and HEAD has other params in {section}: "
                f"git checkout {begun} to continue it, or begin another: nima tune {study.name}-2"
            )


# ---------------------------------------------------------------------------------------------- one trial


def run_trial(trial: Trial, clone: SharedClone, folder: Path, stop: StopRequest, tell: Tell) -> None:
    """Run it to its end, to its pruning or to its failure, and note which."""
    tell(f"trial {trial.number}: {values_text(trial.params)}")
    if reason := refusal(clone.project, trial.params):
        trial.fail(reason)
    else:
        log = folder / f"{trial.name}.log"
        settings = [override(key, value) for key, value in trial.params.items()]
        watch = Watch(trial, clone.project)
        if clone.run(trial.name, settings, log, stop, watch):
            finish(trial, clone, watch)
        else:
            trial.prune() if watch.gave_up else trial.fail(reason_of(log))
            clone.forget_progress()
    tell(f"trial {trial.number}: {outcome_text(trial.record(), trial.study)}")


class Watch:
    """Reads the running trial's curve, and says when there is no hope for it."""

    def __init__(self, trial: Trial, project: Path) -> None:
        self.trial = trial
        self.metric = trial.study.tune.metric
        self.file = project / CURVES / "validation" / f"{self.metric}.tsv"
        self.gave_up = False

    def __call__(self, process: int) -> bool:
        # Before the stage runs, the curve of the commit under it lies there; DVC removes that first.
        if other_processes.descendants(process, ["stages.train"]):
            self.gave_up = self.trial.report(self.curve())
        return self.gave_up

    def curve(self) -> list[tuple[int, float]]:
        text = ""
        with suppress(OSError):
            text = self.file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # the last line may be half written
        rows = csv.DictReader(whole.splitlines(), delimiter="\t")
        found = [(int(row["step"]), float(row[self.metric])) for row in rows]
        return [point for point in found if math.isfinite(point[1])]


def finish(trial: Trial, clone: SharedClone, watch: Watch) -> None:
    """Note the kept weights' validation as the trial's value."""
    found = Revision.find(clone.root, f"{clone.baseline}/{trial.name}")
    curve = [(int(step), value) for step, value in found.curve(f"validation/{watch.metric}")]
    if not curve:
        trial.fail(f"no curve plots/train of validation/{watch.metric}; did the stage train run?")
        return
    trial.report(curve)
    kept, best = value_at(found.param_tree, "training.keep"), found.metrics.get("train.best.step")
    trial.complete(curve[-1][1] if kept == "last" or best is None else dict(curve)[int(best)])


def values_text(params: dict[str, Value]) -> str:
    return ", ".join(f"{key} {written(value)}" for key, value in params.items())


def outcome_text(record: Record, study: Study) -> str:
    if record.value is None:
        return f"{record.state}: {record.reason}"
    best = study.best()
    more = "the best so far" if best and best.number == record.number else ""
    more = more or (f"the best is trial {best.number}, {best.value:.4f}" if best and best.value else "")
    return f"{study.tune.metric} {record.value:.4f}; {more}"
