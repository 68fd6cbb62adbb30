"""A search's memory: its trials in a SQLite file that survives every interruption (Optuna).

Values come from TPE (Bergstra et al., 2011), each trial's with random numbers of its own: what a trial gets
depends on the seed and on the trials before it, not on how often the search was interrupted.
"""

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nima.tuning.search_space import Dimension, Value
from nima.workspace.errors import UserError
from nima.workspace.params import TuneParams

if TYPE_CHECKING:
    import optuna

REASON, COMMIT, PRESENT = "reason", "commit", "starts_from_present"
FINISHED = ("complete", "pruned", "failed")
MIN_FOR_IMPORTANCES = 4


@dataclass(frozen=True)
class Record:
    """What is known of a trial."""

    number: int
    state: str
    """complete, pruned, failed, running or waiting."""
    params: dict[str, Value]
    value: float | None
    curve: list[tuple[int, float]]
    """Validations: (step, value)."""
    reason: str
    seconds: float | None


@dataclass(frozen=True)
class Study:
    name: str
    tune: TuneParams
    space: Sequence[Dimension]
    inner: "optuna.Study"

    @property
    def is_more_better(self) -> bool:
        return self.tune.metric == "accuracy"

    @property
    def commit(self) -> str:
        """What all trials start from."""
        return str(self.inner.user_attrs[COMMIT])

    @property
    def starts_from_present(self) -> bool:
        """Whether the first trial has the params as they were before the search."""
        return bool(self.inner.user_attrs.get(PRESENT))

    def records(self) -> list[Record]:
        return [record(found) for found in self.inner.get_trials(deepcopy=False)]

    def num_finished(self) -> int:
        return sum(found.state in FINISHED for found in self.records())

    def best(self) -> Record | None:
        complete = [found for found in self.records() if found.state == "complete"]
        sign = -1 if self.is_more_better else 1
        return min(complete, key=lambda found: (sign * (found.value or 0.0), found.number), default=None)

    def importances(self) -> dict[str, float]:
        """Shares of what decides between good and bad trials (PED-ANOVA); empty with few trials."""
        import optuna

        if sum(found.state == "complete" for found in self.records()) < MIN_FOR_IMPORTANCES:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(optuna.importance.get_param_importances(self.inner))

    def next_trial(self) -> "Trial":
        """The one that was interrupted, else a new one with its values chosen."""
        import optuna

        trials = self.inner.get_trials(deepcopy=False)
        unfinished = [found for found in trials if found.state == optuna.trial.TrialState.RUNNING]
        number = unfinished[0].number if unfinished else sum(found.state.is_finished() for found in trials)
        seed = (self.tune.seed * 1_000_003 + number) % 2**32
        self.inner.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.tune.random_trials)
        inner = optuna.trial.Trial(self.inner, unfinished[0]._trial_id) if unfinished else self.inner.ask()
        return Trial(self, inner, {dimension.key: suggested(inner, dimension) for dimension in self.space})


@dataclass(frozen=True)
class Trial:
    study: Study
    inner: "optuna.trial.Trial"
    params: dict[str, Value]

    @property
    def number(self) -> int:
        return self.inner.number

    @property
    def name(self) -> str:
        """Of the experiment."""
        return f"{self.study.name}-trial-{self.number:03d}"

    def report(self, curve: Sequence[tuple[int, float]]) -> bool:
        """Note validations that are not known yet; whether they leave no hope for the trial."""
        known = {step for step, _ in self.record().curve}
        # A trial that has come as far as any other is done: there is nothing to save.
        ends = [
            found.curve[-1][0] for found in self.study.records() if found.state == "complete" and found.curve
        ]
        is_hopeless = False
        for step, value in curve:
            if step not in known:
                self.inner.report(value, step)
                is_hopeless = is_hopeless or (step < max(ends, default=0) and self.inner.should_prune())
        return is_hopeless

    def record(self) -> Record:
        trials = self.study.inner.get_trials(deepcopy=False)
        return record(next(found for found in trials if found.number == self.number))

    def complete(self, value: float) -> None:
        self.study.inner.tell(self.inner, value)

    def prune(self) -> None:
        import optuna

        step, value = self.record().curve[-1]
        self.inner.set_user_attr(REASON, f"stopped at step {step} with {value:.4f}: worse than others there")
        self.study.inner.tell(self.inner, state=optuna.trial.TrialState.PRUNED)

    def fail(self, reason: str) -> None:
        import optuna

        self.inner.set_user_attr(REASON, reason)
        self.study.inner.tell(self.inner, state=optuna.trial.TrialState.FAIL)


def record(found: "optuna.trial.FrozenTrial") -> Record:
    state = {"fail": "failed"}.get(found.state.name.lower(), found.state.name.lower())
    return Record(
        number=found.number,
        state=state,
        params=dict(found.params),
        value=found.value if state == "complete" else None,
        curve=sorted(found.intermediate_values.items()),
        reason=found.user_attrs.get(REASON, ""),
        seconds=found.duration.total_seconds() if found.duration else None,
    )


def suggested(inner: "optuna.trial.Trial", dimension: Dimension) -> Value:
    """The value that the trial has already, else one that the sampler chooses."""
    found = dimension.settings
    if found.choices:
        choice: Value = inner.suggest_categorical(dimension.key, found.choices)
        return choice
    low, high = found.bounds
    if dimension.is_whole:
        step = int(found.step or 1)
        return inner.suggest_int(dimension.key, int(low), int(high), step=step, log=found.log)
    return inner.suggest_float(dimension.key, low, high, step=found.step, log=found.log)


# ------------------------------------------------------------------------------------------- opening


def open_study(
    path: Path,
    name: str,
    tune: TuneParams,
    space: Sequence[Dimension],
    *,
    commit: str,
    present: dict[str, Value] | None,
) -> Study:
    """The study in a SQLite file, begun if there is none.

    `present`: the first trial's values. Raises `UserError` without Optuna, or if the study in the file is not
    one over this space and metric.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("nima tune: needs the extra tune: pip install 'nima-lm[tune]'") from None
    optuna.logging.set_verbosity(logging.ERROR)
    about = {
        "space": json.dumps({dimension.key: dimension.text() for dimension in space}),
        "metric": tune.metric,
        COMMIT: commit,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inner = optuna.create_study(
                storage=f"sqlite:///{path}",
                study_name=name,
                direction="maximize" if tune.metric == "accuracy" else "minimize",
                pruner=pruner(tune),
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's, SQLite's and Optuna's own
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: no study can be read there ({reason}); move it away") from error
    for key, value in about.items():
        if key not in inner.user_attrs:  # a study that is new, or whose beginning was interrupted
            inner.set_user_attr(key, value)
    refuse_another(name, inner.user_attrs, about)
    if present is not None and not inner.get_trials(deepcopy=False):
        inner.enqueue_trial(present)
        inner.set_user_attr(PRESENT, True)
    return Study(name, tune, space, inner)


def refuse_another(name: str, before: dict[str, Any], now: dict[str, str]) -> None:
    """Raises `UserError` saying in what a study differs from what params.yaml asks for now."""
    differences = []
    if before["metric"] != now["metric"]:
        differences.append(f"metric {before['metric']}, now {now['metric']}")
    old, new = json.loads(before["space"]), json.loads(now["space"])
    differences += [
        f"{key} {old.get(key, 'not searched')}, now {new.get(key, 'not searched')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    if differences:
        way_out = f"restore that in params.yaml, or begin another: nima tune {name}-2"
        raise UserError(f"study {name} has another search space: {'; '.join(differences)}; {way_out}")


def pruner(tune: TuneParams) -> "optuna.pruners.BasePruner":
    import optuna

    if tune.pruning is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.PercentilePruner(
        tune.pruning.percentile,
        n_startup_trials=tune.pruning.after_trials,
        n_warmup_steps=tune.pruning.after_steps,
    )
