"""When to stop early: small rules, each with a state that is saved, so that none starts again after a resume.

A rule is called with each new value of what it watches and answers whether to stop. Nothing here knows the
trainer: `EarlyStopping("loss", patience=3)` works in any loop.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from nima.workspace.metrics import improves, larger_is_better

RuleState = dict[str, float | int | bool | None]

# Updates that make up a gradient's usual size, and how many must be seen before one is called unusual.
USUAL_UPDATES = 50
FIRST_UPDATES = 20


class Rule:
    """A reason to stop: `patience` values in a row that speak for it (0: never)."""

    patience: int
    misses: int = 0
    saved: ClassVar[tuple[str, ...]] = ("misses",)
    recoverable: ClassVar[bool] = True
    """Whether going back and on with a lower rate could help."""

    def __call__(self, value: float) -> bool:
        """Take the next value; whether to stop."""
        raise NotImplementedError

    def count(self, is_miss: bool) -> bool:
        self.misses = self.misses + 1 if is_miss else 0
        return self.stops

    @property
    def stops(self) -> bool:
        return 0 < self.patience <= self.misses

    @property
    def why(self) -> str:
        """The reason, in words."""
        raise NotImplementedError

    def forgive(self) -> None:
        """Begin to count anew; what was learnt of usual and best values stays."""
        self.misses = 0

    def state(self) -> RuleState:
        return {name: getattr(self, name) for name in self.saved}

    def load_state(self, state: RuleState) -> None:
        for name in self.saved:
            setattr(self, name, state[name])


@dataclass
class EarlyStopping(Rule):
    """Stops once `patience` validations in a row brought no improvement by more than `min_delta`."""

    metric: str
    patience: int
    min_delta: float = 0.0
    best: float | None = None
    misses: int = 0
    saved: ClassVar[tuple[str, ...]] = ("best", "misses")

    def __call__(self, value: float) -> bool:
        better = improves(self.metric, value, self.best, self.min_delta)
        self.best = value if better else self.best
        return self.count(not better)

    @property
    def why(self) -> str:
        return f"{self.metric} has not improved on {self.best} for {self.misses} validations"


@dataclass
class Degradation(Rule):
    """Stops once `patience` validations in a row are worse than the best by more than its share `ratio`."""

    metric: str
    ratio: float
    patience: int = 1
    best: float | None = None
    misses: int = 0
    saved: ClassVar[tuple[str, ...]] = ("best", "misses")

    def __call__(self, value: float) -> bool:
        self.best = value if improves(self.metric, value, self.best) else self.best
        return self.count(self.best is not None and not self.is_near(value, self.best))

    def is_near(self, value: float, best: float) -> bool:
        margin = self.ratio * abs(best)
        return value >= best - margin if larger_is_better(self.metric) else value <= best + margin

    @property
    def why(self) -> str:
        return f"{self.metric} is worse than the best, {self.best}, by more than {self.ratio:.0%} of it"


@dataclass
class GradientCollapse(Rule):
    """Stops once the gradient's norm was below `norm` in `patience` updates in a row: nothing is learnt."""

    norm: float
    patience: int
    misses: int = 0

    def __call__(self, value: float) -> bool:
        return self.count(value < self.norm)

    @property
    def why(self) -> str:
        return f"the gradient norm was below {self.norm} for {self.misses} updates"


@dataclass
class GradientExplosion(Rule):
    """Stops once the norm was above `ratio` times its running mean in `patience` updates in a row.

    The first updates of a run are only taken into the mean; what is unusual never is.
    """

    ratio: float
    patience: int = 1
    mean: float = 0.0
    num_usual: int = 0
    misses: int = 0
    saved: ClassVar[tuple[str, ...]] = ("mean", "num_usual", "misses")

    def __call__(self, value: float) -> bool:
        explodes = self.num_usual >= FIRST_UPDATES and not value <= self.ratio * self.mean
        if not explodes and math.isfinite(value):
            self.num_usual += 1
            self.mean += (value - self.mean) / min(self.num_usual, USUAL_UPDATES)
        return self.count(explodes)

    @property
    def why(self) -> str:
        return (
            f"the gradient norm was above {self.ratio} times its mean, {self.mean:.3g}, {self.misses} times"
        )


@dataclass
class LearningRatePlateau(Rule):
    """Stops once the rate has been down at `ratio` of its peak, or lower, for `patience` updates.

    Called with the rate as a share of its peak. A warm-up, where the rate is low before it was high, is none.
    """

    ratio: float
    patience: int
    has_risen: bool = False
    misses: int = 0
    saved: ClassVar[tuple[str, ...]] = ("has_risen", "misses")
    recoverable: ClassVar[bool] = False

    def __call__(self, value: float) -> bool:
        self.has_risen = self.has_risen or value > self.ratio
        return self.count(self.has_risen and value <= self.ratio)

    @property
    def why(self) -> str:
        return f"the learning rate was at most {self.ratio} of its peak for {self.misses} updates"
