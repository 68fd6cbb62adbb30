"""When a run stops early: each rule alone, as anybody's loop could use it."""

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nima.training.stopping import (
    FIRST_UPDATES,
    Degradation,
    EarlyStopping,
    GradientCollapse,
    GradientExplosion,
    LearningRatePlateau,
    Rule,
)
from nima.workspace.metrics import improves


def decisions(stopper: Rule, values: list[float]) -> list[bool]:
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


def test_the_metric_of_a_source_has_the_direction_of_its_kind() -> None:
    assert improves("wiki/accuracy", 0.5, 0.4)
    assert improves("accuracy/loss", 0.4, 0.5)  # a source may be called like a metric


# -------------------------------------------------------------------------------------------- other rules


def test_a_degradation_is_measured_from_the_best_by_its_share() -> None:
    rule = Degradation("loss", ratio=0.1, patience=2)
    assert decisions(rule, [2.0, 2.3, 2.19, 2.3, 2.21]) == [False, False, False, False, True]
    assert rule.best == 2.0
    assert decisions(Degradation("accuracy", 0.5), [0.8, 0.41, 0.39]) == [False, False, True]


def test_nan_is_a_degradation_once_there_is_a_best() -> None:
    assert decisions(Degradation("loss", 0.1), [math.nan, 3.0, math.nan]) == [False, False, True]


def test_a_gradient_collapses_when_it_stays_small() -> None:
    rule = GradientCollapse(norm=0.01, patience=3)
    assert decisions(rule, [1.0, 0.001, 0.001, 0.5, 0.0, 0.0, 0.0]) == [False] * 6 + [True]


def test_a_gradient_explodes_against_its_own_mean() -> None:
    usual = [1.0, 3.0] * (FIRST_UPDATES // 2)
    rule = GradientExplosion(ratio=5.0)
    assert not any(decisions(rule, [*usual, 9.0]))
    assert rule.mean == pytest.approx((sum(usual) + 9.0) / (FIRST_UPDATES + 1))
    assert rule(5.1 * rule.mean)


def test_the_first_gradients_are_usual_whatever_they_are() -> None:
    assert not any(decisions(GradientExplosion(ratio=2.0), [10.0**n for n in range(FIRST_UPDATES)]))


@pytest.mark.parametrize("norm", [math.inf, math.nan, 1e9])
def test_an_explosion_does_not_become_the_usual(norm: float) -> None:
    rule = GradientExplosion(ratio=5.0, patience=3)
    assert decisions(rule, [1.0] * FIRST_UPDATES + [norm] * 3) == [False] * (FIRST_UPDATES + 2) + [True]
    assert rule.mean == 1.0


def test_a_low_rate_counts_only_after_a_high_one() -> None:
    rule = LearningRatePlateau(ratio=0.1, patience=2)
    assert decisions(rule, [0.05, 0.1, 0.1, 1.0, 0.1, 0.5, 0.1, 0.05]) == [False] * 7 + [True]
    assert not LearningRatePlateau.recoverable


def test_a_rule_that_forgives_counts_anew_but_keeps_what_it_learnt() -> None:
    stopper = EarlyStopping("loss", patience=2)
    decisions(stopper, [2.0, 3.0, 3.0])
    assert stopper.stops
    stopper.forgive()
    assert not stopper.stops
    assert decisions(stopper, [2.5, 2.5]) == [False, True]


RULES = st.sampled_from(
    [
        lambda patience: EarlyStopping("loss", patience, 0.1),
        lambda patience: EarlyStopping("accuracy", patience, 0.1),
        lambda patience: Degradation("a/loss", 0.2, patience),
        lambda patience: GradientCollapse(1.0, patience),
        lambda patience: GradientExplosion(1.5, patience),
        lambda patience: LearningRatePlateau(0.5, patience),
    ]
)


@given(
    st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=60),
    st.integers(0, 60),
    st.integers(0, 5),
    RULES,
)
def test_a_rule_put_back_from_json_decides_as_before(
    values: list[float], cut: int, patience: int, rule: Callable[[int], Rule]
) -> None:
    whole, first, second = (rule(patience) for _ in range(3))
    found = decisions(first, values[:cut])
    second.load_state(json.loads(json.dumps(first.state())))
    assert found + decisions(second, values[cut:]) == decisions(whole, values)
    assert second == whole or math.isnan(sum(values))


@given(st.lists(st.floats(0, 10), max_size=60), st.integers(1, 5), RULES)
def test_a_rule_says_why_exactly_when_it_stops(
    values: list[float], patience: int, rule: Callable[[int], Rule]
) -> None:
    stopper = rule(patience)
    for value in values:
        stopper(value)
        assert stopper.stops == (stopper.misses >= patience)
    assert "\n" not in stopper.why
