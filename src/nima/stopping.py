"""When to stop early, with a state that is saved: patience does not start again after a resume."""

import math
from dataclasses import asdict, dataclass

LARGER_IS_BETTER = frozenset({"accuracy"})


def improves(metric: str, value: float, best: float | None, min_delta: float = 0.0) -> bool:
    """Whether `value` beats `best` (None: nothing yet) by more than `min_delta`. NaN never does."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value > best + min_delta if metric in LARGER_IS_BETTER else value < best - min_delta


@dataclass
class EarlyStopping:
    """Call it with each validation's metric; it answers whether to stop.

    It says stop once `patience` validations in a row brought no improvement; patience 0 never stops.
    """

    metric: str
    patience: int
    min_delta: float = 0.0
    best: float | None = None
    misses: int = 0

    def __call__(self, value: float) -> bool:
        if improves(self.metric, value, self.best, self.min_delta):
            self.best, self.misses = value, 0
        else:
            self.misses += 1
        return self.stops

    @property
    def stops(self) -> bool:
        return 0 < self.patience <= self.misses

    def state(self) -> dict[str, float | int | None]:
        return {key: value for key, value in asdict(self).items() if key in ("best", "misses")}

    def load_state(self, state: dict[str, float | int | None]) -> None:
        self.best = None if state["best"] is None else float(state["best"])
        self.misses = int(state["misses"] or 0)
