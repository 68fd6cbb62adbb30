"""How fast a run goes and how long it will take: the clock's figures, which are in no output."""

import time
from array import array
from statistics import median

# The first step compiles, allocates and reads for the first time; a few after it give a fair median.
STEPS_BEFORE = 1
STEPS_MEASURED = 5


class Pace:
    """The time that a run's steps take, and a forecast after a few of them.

    `extra_steps` is what the run does beside its updates (it validates), in steps that would take as long.
    """

    def __init__(self, total_steps: int, extra_steps: float = 0.0) -> None:
        self.total_steps = total_steps
        self.cost = 1 + extra_steps / max(1, total_steps)
        self.step_seconds = array("d")
        self.tokens = 0
        self.forecast_seconds: float | None = None
        self.start_at(0)

    def start_at(self, step: int) -> None:
        """The clock starts here: steps that an earlier process did don't count."""
        self.first_step = self.last_step = step
        self.started = self.last_seen = time.perf_counter()
        self.marked_at, self.marked_tokens = self.started, 0

    def step(self, step: int, tokens: int) -> None:
        """Step `step` is done; it read so many tokens."""
        now = time.perf_counter()
        self.step_seconds.append(now - self.last_seen)
        self.last_step, self.last_seen = step, now
        self.tokens += tokens
        if len(self.step_seconds) == STEPS_BEFORE + STEPS_MEASURED:
            left = (self.total_steps - step) * self.cost * self.typical_step_seconds()
            self.forecast_seconds = now - self.started + left

    @property
    def seconds(self) -> float:
        """From the start to the last step."""
        return max(self.last_seen - self.started, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def left_seconds(self) -> float:
        """What the steps that remain will take if they go on like those so far."""
        return (self.total_steps - self.last_step) * self.seconds / max(1, self.last_step - self.first_step)

    def typical_step_seconds(self) -> float:
        """The median, in which validations, saves and the first step don't count."""
        return median(self.step_seconds[STEPS_BEFORE:] or self.step_seconds)

    def tokens_per_second_of_late(self) -> float:
        """Since this was asked the last time."""
        tokens, seconds = self.tokens - self.marked_tokens, self.last_seen - self.marked_at
        self.marked_at, self.marked_tokens = self.last_seen, self.tokens
        return tokens / max(seconds, 1e-9)

    def figures(self) -> dict[str, float]:
        """The run's figures at its end; none if no step was done.

        `forecast_error` is the share by which the forecast was too long (below 0: too short); only a run that
        came to its planned end has one.
        """
        if not self.step_seconds:
            return {}
        figures = {
            "steps_per_second": len(self.step_seconds) / self.seconds,
            "step_seconds_median": self.typical_step_seconds(),
        }
        if self.forecast_seconds is not None:
            figures["forecast_seconds"] = self.forecast_seconds
            if self.last_step == self.total_steps:
                took = max(time.perf_counter() - self.started, 1e-9)
                figures["forecast_error"] = self.forecast_seconds / took - 1
        return figures
