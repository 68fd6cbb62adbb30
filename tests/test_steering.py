"""The rules of a run together: which of them stop it, which turn it back, what it survives."""

import json
from typing import Any

import pytest

from nima.scoring.likelihood import Likelihood
from nima.training.steering import MAX_SKIPS_IN_A_ROW, Steering
from nima.workspace.errors import UserError
from nima.workspace.params import TrainingParams


def steering_of(**changes: Any) -> Steering:
    settings: dict[str, Any] = {"seed": 1, "max_steps": 100, "lr": 0.01, "block_tokens": 8}
    settings |= {"batch_tokens": 64, "micro_batch_tokens": 64, "schedule": "constant"}
    return Steering(TrainingParams.model_validate(settings | changes), total_steps=100)


def losses(**by_source: float) -> dict[str, Likelihood]:
    return {
        source: Likelihood(nats=loss, num_tokens=1, num_correct=0, num_bytes=1)
        for source, loss in by_source.items()
    }


PATIENCE: dict[str, Any] = {"early_stopping": {"patience": 1}}
RECOVERY: dict[str, Any] = {"recovery": {"max_recoveries": 2, "lr_ratio": 0.5}}


def test_without_rules_nothing_stops_a_run() -> None:
    steering = steering_of()
    for loss in (1.0, 2.0, 3.0):
        steering.validated(losses(a=loss))
        steering.updated(1e9)
    assert (steering.stops, steering.recovers, steering.why) == (False, False, "")


def test_a_rule_can_watch_one_source() -> None:
    steering = steering_of(early_stopping={"metric": "a/loss", "patience": 1})
    steering.validated(losses(a=1.0, b=1.0))
    steering.validated(losses(a=0.5, b=9.0))
    assert not steering.stops
    steering.validated(losses(a=0.6, b=0.1))
    assert steering.stops
    assert steering.why == "a/loss has not improved on 0.5 for 1 validations"


def test_a_source_that_is_not_validated_is_named() -> None:
    steering = steering_of(early_stopping={"degradation": {"metric": "c/loss", "ratio": 0.1}})
    with pytest.raises(UserError, match=r"degradation.metric: c/loss: validated are only a, b$"):
        steering.validated(losses(a=1.0, b=1.0))


def test_every_rule_is_fed_with_what_it_watches() -> None:
    rules: dict[str, Any] = {"gradient_collapse": {"norm": 0.1, "patience": 2}}
    collapse = steering_of(early_stopping=rules)
    collapse.updated(0.05)
    assert not collapse.stops
    collapse.updated(0.05)
    assert collapse.stops
    explosion = steering_of(early_stopping={"gradient_explosion": {"ratio": 3.0}})
    for norm in [1.0] * 30 + [3.5]:
        assert not explosion.stops
        explosion.updated(norm)
    assert explosion.stops
    rules = {"lr_plateau": {"ratio": 0.5, "patience": 10}}
    plateau = steering_of(early_stopping=rules, schedule="linear", warmup_steps=10)
    stopped = []
    for step in range(100):
        plateau.lr_factor(step)
        plateau.updated(1.0)
        stopped.append(plateau.stops)
    assert stopped.index(True) == 55 + 9


def test_a_plateau_lowers_the_rate_to_the_floor_and_not_the_warm_up() -> None:
    steering = steering_of(
        schedule="plateau", plateau={"patience": 1, "factor": 0.1}, min_lr_ratio=0.05, warmup_steps=4
    )
    assert [steering.lr_factor(step) for step in (0, 3, 50)] == [0.25, 1.0, 1.0]
    for expected in (1.0, 0.1, 0.05, 0.05):
        steering.validated(losses(a=1.0))
        assert steering.lr_factor(60) == pytest.approx(expected)


def test_a_run_goes_back_until_its_recoveries_are_used_up() -> None:
    steering = steering_of(**PATIENCE, **RECOVERY)
    steering.validated(losses(a=1.0))
    for recovery in (1, 2):
        steering.validated(losses(a=2.0))
        assert (steering.recovers, steering.stops) == (True, False)
        steering.recovered()
        assert (steering.recovers, steering.stops) == (False, False)
        assert steering.lr_factor(50) == 0.5**recovery
    steering.validated(losses(a=2.0))
    assert (steering.recovers, steering.stops) == (False, True)


def test_a_rate_at_its_floor_is_not_mended_by_a_lower_one() -> None:
    rules = {"patience": 1, "lr_plateau": {"ratio": 0.5, "patience": 1}}
    steering = steering_of(early_stopping=rules, schedule="linear", **RECOVERY)
    for step in (0, 60):
        steering.lr_factor(step)
        steering.updated(1.0)
    assert (steering.recovers, steering.stops) == (False, True)
    for loss in (1.0, 2.0):
        steering.validated(losses(a=loss))
    assert (steering.recovers, steering.stops) == (False, True)


def test_what_is_not_finite_is_survived_as_the_policy_says() -> None:
    assert not steering_of().survives_non_finite()
    skipping = steering_of(non_finite="skip")
    assert all(skipping.survives_non_finite() for _ in range(MAX_SKIPS_IN_A_ROW))
    assert not skipping.survives_non_finite()
    skipping.finite()
    assert skipping.survives_non_finite()
    assert not skipping.recovers
    turning = steering_of(non_finite="roll_back", **RECOVERY)
    for _ in range(2):
        assert turning.survives_non_finite()
        assert turning.recovers
        assert turning.why == "loss or gradient is not finite"
        turning.recovered()
        assert not turning.recovers
    assert not turning.survives_non_finite()


def test_a_course_put_back_from_json_is_the_same() -> None:
    settings: dict[str, Any] = RECOVERY | {
        "early_stopping": {
            "patience": 3,
            "gradient_explosion": {"ratio": 2.0},
            "degradation": {"ratio": 0.5},
        },
        "schedule": "plateau",
        "plateau": {"patience": 1, "factor": 0.5},
        "non_finite": "roll_back",
    }
    one, other = steering_of(**settings), steering_of(**settings)
    for loss in (1.0, 1.1, 1.2):
        one.validated(losses(a=loss))
        one.updated(loss)
    one.survives_non_finite()
    one.recovered()
    one.survives_non_finite()
    other.load_state(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    assert (other.recovers, other.why, other.lr_factor(9)) == (one.recovers, one.why, one.lr_factor(9))
