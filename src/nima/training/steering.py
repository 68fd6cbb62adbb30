"""What keeps a run on its course: the learning rate, when to stop, when to go back, what not to survive.

All of it follows from the params, the step and what `validated` and `updated` were told; the state is saved.
"""

from collections.abc import Mapping
from typing import Any

from nima.scoring.likelihood import Likelihood, total
from nima.training.plateau import ReduceOnPlateau
from nima.training.schedule import lr_factor, warmup_steps_of
from nima.training.stopping import (
    Degradation,
    EarlyStopping,
    GradientCollapse,
    GradientExplosion,
    LearningRatePlateau,
    Rule,
)
from nima.workspace.errors import UserError
from nima.workspace.params import EarlyStoppingParams, TrainingParams

# A run in which nothing is finite any more is over, whatever is to be skipped.
MAX_SKIPS_IN_A_ROW = 20
OF_GRADIENTS = (GradientCollapse, GradientExplosion)


class Steering:
    """One run's course."""

    def __init__(self, settings: TrainingParams, total_steps: int) -> None:
        self.settings = settings
        self.total_steps = total_steps
        self.rules = rules_of(settings.early_stopping)
        plateau = settings.plateau.model_dump() | {"floor": settings.min_lr_ratio}
        self.plateau = ReduceOnPlateau(**plateau) if settings.schedule == "plateau" else None
        self.recoveries = 0
        self.lr_ratio = 1.0
        self.skips_in_a_row = 0
        self.is_lost = False
        self.factor = 0.0

    def lr_factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by in update `step`."""
        settings, total_steps = self.settings, self.total_steps
        self.factor = lr_factor(
            step,
            total_steps,
            schedule=settings.schedule,
            warmup_steps=warmup_steps_of(settings.warmup_steps, settings.warmup_fraction, total_steps),
            decay_fraction=settings.decay_fraction,
            min_lr_ratio=settings.min_lr_ratio,
            decay_shape=settings.decay_shape,
            num_cycles=settings.num_cycles,
            cycle_growth=settings.cycle_growth,
        )
        self.factor *= self.lr_ratio * (self.plateau.ratio if self.plateau else 1.0)
        return self.factor

    def validated(self, likelihoods: dict[str, Likelihood]) -> None:
        """Tell what a validation found, by source. Raises `UserError` if a metric's source is not in it."""
        metrics = total(likelihoods).metrics()
        for source, likelihood in likelihoods.items():
            metrics |= {f"{source}/{name}": value for name, value in likelihood.metrics().items()}
        for key, watcher in self.watchers().items():
            if watcher.metric not in metrics:
                known = ", ".join(likelihoods)
                raise UserError(f"training.{key}.metric: {watcher.metric}: validated are only {known}")
            watcher(metrics[watcher.metric])

    def watchers(self) -> dict[str, EarlyStopping | Degradation | ReduceOnPlateau]:
        """What looks at validations, by its key in params."""
        found = {
            key: rule for key, rule in self.rules.items() if isinstance(rule, EarlyStopping | Degradation)
        }
        return found | ({"plateau": self.plateau} if self.plateau else {})

    def updated(self, gradient_norm: float) -> None:
        """Tell an update's gradient norm, before clipping; its rate was that of the last `lr_factor`."""
        for rule in self.rules.values():
            if isinstance(rule, OF_GRADIENTS):
                rule(gradient_norm)
            elif isinstance(rule, LearningRatePlateau):
                rule(self.factor)

    def finite(self) -> None:
        self.skips_in_a_row = 0

    def survives_non_finite(self) -> bool:
        """Whether the run goes on after an update whose loss or gradient is not finite, without it."""
        if self.settings.non_finite == "skip":
            self.skips_in_a_row += 1
            return self.skips_in_a_row <= MAX_SKIPS_IN_A_ROW
        self.is_lost = self.settings.non_finite == "roll_back" and self.recoveries_left > 0
        return self.is_lost

    @property
    def recoveries_left(self) -> int:
        return self.settings.recovery.max_recoveries - self.recoveries

    @property
    def stopping(self) -> list[Rule]:
        return [rule for rule in self.rules.values() if rule.stops]

    @property
    def stops(self) -> bool:
        """Whether the run ends here, and does not go back instead."""
        return bool(self.stopping) and not self.recovers

    @property
    def recovers(self) -> bool:
        """Whether the run goes back to its best weights now."""
        called_for = self.is_lost or bool(self.stopping)
        return called_for and self.recoveries_left > 0 and all(rule.recoverable for rule in self.stopping)

    @property
    def why(self) -> str:
        """Why the run stops or goes back."""
        reasons = [rule.why for rule in self.stopping]
        return "; ".join(["loss or gradient is not finite"] * self.is_lost + reasons)

    def recovered(self) -> None:
        """The run went back: from here on at a lower rate, and no rule remembers against it."""
        self.recoveries += 1
        self.lr_ratio *= self.settings.recovery.lr_ratio
        self.is_lost = False
        for rule in self.rules.values():
            rule.forgive()

    def state(self) -> dict[str, Any]:
        return {
            "rules": {key: rule.state() for key, rule in self.rules.items()},
            "plateau": self.plateau.state() if self.plateau else None,
            "recoveries": self.recoveries,
            "lr_ratio": self.lr_ratio,
            "skips_in_a_row": self.skips_in_a_row,
            "is_lost": self.is_lost,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        for key, rule in self.rules.items():
            rule.load_state(state["rules"][key])
        if self.plateau:
            self.plateau.load_state(state["plateau"])
        for name in ("recoveries", "lr_ratio", "skips_in_a_row", "is_lost"):
            setattr(self, name, state[name])


def rules_of(settings: EarlyStoppingParams) -> dict[str, Rule]:
    """The rules that are on, by their key in params."""
    rules: dict[str, Rule] = {}
    section = "early_stopping"
    if settings.patience:
        rules[section] = EarlyStopping(settings.metric, settings.patience, settings.min_delta)
    if (ratio := settings.degradation.ratio) is not None:
        degradation = Degradation(settings.degradation.metric, ratio, settings.degradation.patience)
        rules[f"{section}.degradation"] = degradation
    if (norm := settings.gradient_collapse.norm) is not None:
        rules[f"{section}.gradient_collapse"] = GradientCollapse(norm, settings.gradient_collapse.patience)
    if (ratio := settings.gradient_explosion.ratio) is not None:
        explosion = GradientExplosion(ratio, settings.gradient_explosion.patience)
        rules[f"{section}.gradient_explosion"] = explosion
    if (ratio := settings.lr_plateau.ratio) is not None:
        rules[f"{section}.lr_plateau"] = LearningRatePlateau(ratio, settings.lr_plateau.patience)
    return rules
