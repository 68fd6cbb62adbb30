"""Runs side by side: params that differ, metrics with what is better, and whether that exceeds the noise.

The noise is that of the seed. With at least two runs on both sides, the difference of means gets Welch's
95% confidence interval; beyond the noise is a difference whose interval leaves out 0.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nima.repository.revisions import Revision
from nima.workspace.errors import UserError
from nima.workspace.params import nearest

CONFIDENCE = 0.95
# Whether less (-1) or more (+1) is better, by a metric's last part.
DIRECTIONS = {
    "loss": -1,
    "perplexity": -1,
    "bits_per_byte": -1,
    "accuracy": 1,
    "seconds": -1,
    "training_seconds": -1,
    "peak_memory_bytes": -1,
    "tokens_per_second": 1,
}
SHOWN = ("evaluate.", "train.validation.", "timing.train.")
CURVES = {
    "Validation loss": ("validation/loss", "nats per token"),
    "Validation bits per byte": ("validation/bits_per_byte", "bits per byte of text"),
}
ABSENT = "—"


@dataclass(frozen=True)
class Side:
    """A revision with all its runs: itself first, then its repeats with other seeds."""

    revision: Revision
    runs: Sequence[Revision]

    @property
    def label(self) -> str:
        return self.revision.label

    def values(self, metric: str) -> list[float]:
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]


@dataclass(frozen=True)
class Difference:
    """What a side's mean has over the first side's, and the interval in which the true one probably lies."""

    value: float
    low: float | None
    high: float | None
    """None: with a single run on a side, the noise is unknown."""

    def verdict(self, direction: int) -> str:
        if self.value == 0 and self.low in (None, 0.0):
            return "equal"
        word = "differs" if not direction else "better" if self.value * direction > 0 else "worse"
        if self.low is None or self.high is None:
            return f"{word}, noise unknown"
        return "within the noise" if self.low <= 0 <= self.high else f"{word}, beyond the noise"


@dataclass(frozen=True)
class MetricRow:
    name: str
    direction: int
    """-1: less is better, 1: more is better, 0: neither."""
    values: Sequence[Sequence[float]]
    """Of every run, by side."""
    differences: Sequence[Difference | None]
    """Of each side to the first one, which has None; None also where a side has no value."""

    @property
    def goal(self) -> str:
        return {-1: "less is better", 1: "more is better", 0: ""}[self.direction]

    def cells(self) -> list[str]:
        return [mean_text(values) for values in self.values]

    def verdicts(self) -> list[str]:
        return [found.verdict(self.direction) if found else "" for found in self.differences]


@dataclass(frozen=True)
class Comparison:
    sides: Sequence[Side]
    params: Sequence[tuple[str, Sequence[str]]]
    """Key and value by side, of keys that differ."""
    metrics: Sequence[MetricRow]

    @property
    def noise_is_known(self) -> bool:
        return all(len(side.runs) > 1 for side in self.sides)

    @property
    def note(self) -> str:
        """What the verdicts rest on."""
        runs = ", ".join(f"{side.label} {len(side.runs)}" for side in self.sides)
        if self.noise_is_known:
            return (
                f"Runs with different seeds: {runs}. Mean ± standard deviation; [95% confidence interval] of "
                "the difference to the first (Welch). One in twenty exceeds it by chance."
            )
        single = "One run each" if all(len(side.runs) == 1 for side in self.sides) else f"Runs: {runs}"
        return f"{single}: the noise is unknown. --seeds 3 repeats every side with three seeds."

    def absent(self) -> list[str]:
        """A line for each run that lacks files."""
        lines = []
        for side in self.sides:
            for run in side.runs:
                if run.absent:
                    files = ", ".join(run.absent)
                    lines.append(f"{run.name}: not there or not in DVC's cache: {files} (try dvc fetch)")
        return lines


def compared(sides: Sequence[Side], wanted: Sequence[str] = ()) -> Comparison:
    """Sides against the first one. `wanted` chooses metrics; raises `UserError` for one that none has."""
    params = differing_params([side.revision for side in sides])
    rows = [metric_row(name, sides) for name in chosen_metrics(sides, wanted)]
    return Comparison(sides, params, rows)


def differing_params(revisions: Sequence[Revision]) -> list[tuple[str, Sequence[str]]]:
    keys = dict.fromkeys(key for revision in revisions for key in revision.params)
    rows = [(key, [param_text(revision.params, key) for revision in revisions]) for key in keys]
    return [(key, texts) for key, texts in rows if len(set(texts)) > 1]


def param_text(params: dict[str, Any], key: str) -> str:
    if key not in params:
        return ABSENT
    value = params[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def chosen_metrics(sides: Sequence[Side], wanted: Sequence[str]) -> list[str]:
    """Full names. A wanted name may be the end of full ones, such as test.loss: all are meant."""
    known = list(dict.fromkeys(name for side in sides for run in side.runs for name in run.metrics))
    if not wanted:
        return [name for name in known if name.startswith(SHOWN) and direction_of(name)]
    chosen = []
    for ending in wanted:
        found = [name for name in known if f".{name}".endswith(f".{ending}")]
        if not found:
            endings = sorted({name[start:] for name in known for start in starts(name)})
            raise UserError(f"--metric {ending}: no revision has it{nearest(ending, endings or ['none'])}")
        chosen += found
    return list(dict.fromkeys(chosen))


def starts(name: str) -> list[int]:
    return [0, *(place + 1 for place, sign in enumerate(name) if sign == ".")]


def direction_of(name: str) -> int:
    return DIRECTIONS.get(name.rsplit(".", 1)[-1], 0)


def metric_row(name: str, sides: Sequence[Side]) -> MetricRow:
    values = [side.values(name) for side in sides]
    differences = [None, *(difference(values[0], other) for other in values[1:])]
    return MetricRow(name, direction_of(name), values, differences)


def difference(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Mean of `second` minus mean of `first`, with Welch's interval (B. L. Welch, 1947)."""
    if not first or not second:
        return None
    value = statistics.fmean(second) - statistics.fmean(first)
    if min(len(first), len(second)) < 2:
        return Difference(value, None, None)
    squares = [statistics.variance(values) / len(values) for values in (first, second)]
    if sum(squares) == 0:
        return Difference(value, value, value)
    shares = [part**2 / (len(values) - 1) for part, values in zip(squares, (first, second), strict=True)]
    half = student_t(sum(squares) ** 2 / sum(shares)) * math.sqrt(sum(squares))
    return Difference(value, value - half, value + half)


def student_t(degrees: float) -> float:
    """How many standard errors the interval reaches to either side."""
    try:
        from scipy.special import stdtrit
    except ImportError:
        message = "confidence intervals: need the extra stats: pip install 'nima-lm[stats]'"
        raise UserError(message) from None
    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1e4 else f"{value:.5g}"


def mean_text(values: Sequence[float]) -> str:
    if not values:
        return ABSENT
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.fmean(values))} ± {statistics.stdev(values):.2g}"


def difference_text(found: Difference | None) -> str:
    if found is None:
        return ABSENT
    text = f"{found.value:+,.0f}" if abs(found.value) >= 1e4 else f"{found.value:+.4g}"
    return text if found.low is None else f"{text} [{found.low:+.3g}, {found.high:+.3g}]"
