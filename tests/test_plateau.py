"""The schedule that looks at the validations."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nima.training.plateau import ReduceOnPlateau


def ratios(plateau: ReduceOnPlateau, values: list[float]) -> list[float]:
    return [plateau(value) for value in values]


def test_the_rate_falls_after_patience_validations_without_improvement() -> None:
    plateau = ReduceOnPlateau("loss", patience=2, factor=0.5)
    assert ratios(plateau, [3.0, 3.0, 2.0, 2.0, 2.5, 2.0, 2.0]) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


def test_it_never_falls_below_the_floor() -> None:
    plateau = ReduceOnPlateau("loss", patience=1, factor=0.1, floor=0.05)
    assert ratios(plateau, [1.0] * 4) == [1.0, 0.1, 0.05, 0.05]


def test_validations_after_a_fall_may_be_left_uncounted() -> None:
    plateau = ReduceOnPlateau("loss", patience=1, factor=0.5, cooldown=2)
    assert ratios(plateau, [1.0] * 6) == [1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_nan_is_no_improvement() -> None:
    assert ratios(ReduceOnPlateau("loss", patience=1, factor=0.5), [math.nan, 1.0, 0.5]) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("metric", "expected"), [("wiki/accuracy", [1.0, 1.0]), ("loss", [1.0, 0.5])])
def test_what_improves_depends_on_the_metric(metric: str, expected: list[float]) -> None:
    assert ratios(ReduceOnPlateau(metric, patience=1, factor=0.5), [0.1, 0.2]) == expected


@given(st.lists(st.floats(0, 10), max_size=40), st.integers(0, 40), st.integers(1, 4), st.integers(0, 3))
def test_a_plateau_put_back_from_json_goes_on_as_before(
    values: list[float], cut: int, patience: int, cooldown: int
) -> None:
    whole, first, second = (
        ReduceOnPlateau("loss", patience, 0.5, min_delta=0.1, cooldown=cooldown, floor=0.01) for _ in range(3)
    )
    found = ratios(first, values[:cut])
    second.load_state(json.loads(json.dumps(first.state())))
    assert found + ratios(second, values[cut:]) == ratios(whole, values)
    assert second == whole
