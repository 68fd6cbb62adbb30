"""When a run stops early."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nima.stopping import EarlyStopping, improves


def decisions(stopper: EarlyStopping, values: list[float]) -> list[bool]:
    return [stopper(value) for value in values]


def test_it_stops_after_patience_validations_in_a_row_without_improvement() -> None:
    stopper = EarlyStopping("loss", patience=2)
    assert decisions(stopper, [3.0, 2.0, 2.5, 1.9, 1.9, 2.0]) == [False, False, False, False, False, True]


def test_an_improvement_must_exceed_min_delta() -> None:
    stopper = EarlyStopping("loss", patience=2, min_delta=0.5)
    assert decisions(stopper, [3.0, 2.75, 2.5]) == [False, False, True]
    assert stopper.best == 3.0


def test_small_steps_add_up_to_an_improvement() -> None:
    assert not any(decisions(EarlyStopping("loss", patience=2, min_delta=0.5), [3.0, 2.75, 2.25, 2.0, 1.7]))


@pytest.mark.parametrize("metric", ["loss", "perplexity", "bits_per_byte"])
def test_smaller_is_better_for_losses(metric: str) -> None:
    assert improves(metric, 1.0, 2.0)
    assert not improves(metric, 2.0, 1.0)
    assert not improves(metric, 1.0, 1.0)


def test_larger_is_better_for_accuracy() -> None:
    assert improves("accuracy", 0.5, 0.4, min_delta=0.05)
    assert not improves("accuracy", 0.4, 0.5)
    assert decisions(EarlyStopping("accuracy", patience=1), [0.1, 0.2, 0.2]) == [False, False, True]


def test_nan_never_improves_and_wears_patience_out() -> None:
    assert decisions(EarlyStopping("loss", patience=2), [math.nan, math.nan]) == [False, True]
    assert decisions(EarlyStopping("loss", patience=2), [math.nan, 1.0, math.nan]) == [False, False, False]


def test_a_finite_value_improves_on_an_infinite_one() -> None:
    assert improves("perplexity", 10.0, math.inf)


@given(st.lists(st.floats(allow_nan=True), max_size=30))
def test_without_patience_it_never_stops(values: list[float]) -> None:
    assert not any(decisions(EarlyStopping("loss", patience=0), values))


@given(
    st.lists(st.floats(-10, 10), max_size=30),
    st.integers(0, 30),
    st.integers(0, 5),
    st.sampled_from(["loss", "accuracy"]),
)
def test_a_stopper_put_back_from_json_decides_as_before(
    values: list[float], cut: int, patience: int, metric: str
) -> None:
    whole, first, second = (EarlyStopping(metric, patience, 0.1) for _ in range(3))
    found = decisions(first, values[:cut])
    second.load_state(json.loads(json.dumps(first.state())))
    assert found + decisions(second, values[cut:]) == decisions(whole, values)
    assert second.stops == whole.stops
