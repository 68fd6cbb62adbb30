"""The one schedule that is no function of the step: it looks at the validations, and its state is saved."""

from dataclasses import dataclass

from nima.workspace.metrics import improves

PlateauState = dict[str, float | int | None]


@dataclass
class ReduceOnPlateau:
    """Call it with each validation's metric; `ratio` is what the learning rate is multiplied by from then on.

    After `patience` validations in a row without an improvement of more than `min_delta` the ratio is
    multiplied by `factor`, but does not fall below `floor`; the next `cooldown` validations are not counted.
    """

    metric: str
    patience: int
    factor: float
    min_delta: float = 0.0
    cooldown: int = 0
    floor: float = 0.0
    best: float | None = None
    misses: int = 0
    waiting: int = 0
    ratio: float = 1.0

    def __call__(self, value: float) -> float:
        better = improves(self.metric, value, self.best, self.min_delta)
        self.best = value if better else self.best
        if self.waiting:
            self.waiting -= 1
        else:
            self.misses = 0 if better else self.misses + 1
        if self.misses >= self.patience:
            self.ratio = max(self.floor, self.ratio * self.factor)
            self.misses, self.waiting = 0, self.cooldown
        return self.ratio

    def state(self) -> PlateauState:
        return {"best": self.best, "misses": self.misses, "waiting": self.waiting, "ratio": self.ratio}

    def load_state(self, state: PlateauState) -> None:
        for name in self.state():
            setattr(self, name, state[name])
