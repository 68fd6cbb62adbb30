"""The learning rate as a function of the step."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nima.schedule import lr_factor


def factors(total_steps: int, **settings: Any) -> list[float]:
    defaults = {"schedule": "linear", "warmup_steps": 0, "decay_fraction": 1.0, "min_lr_ratio": 0.0}
    return [lr_factor(step, total_steps, **defaults | settings) for step in range(total_steps)]


def test_the_warm_up_rises_in_equal_parts_and_wastes_no_update() -> None:
    assert factors(8, schedule="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_constant_schedule_stays_at_its_peak() -> None:
    assert set(factors(50, schedule="constant", decay_fraction=0.5)) == {1.0}


def test_only_the_last_share_of_the_run_decays() -> None:
    found = factors(100, warmup_steps=10, decay_fraction=0.25)
    assert found[9:76] == [1.0] * 67
    assert all(later < earlier for earlier, later in itertools.pairwise(found[75:]))


def test_a_linear_decay_falls_by_equal_parts_to_one_part_above_the_floor() -> None:
    assert factors(4, min_lr_ratio=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_a_cosine_decay_is_half_way_down_in_the_middle() -> None:
    found = factors(100, schedule="cosine", min_lr_ratio=0.1)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.55)
    assert found[25] > 0.85  # flatter than a line at first
    assert found[99] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_floor_is_reached_at_the_end_and_kept_beyond_it(schedule: str) -> None:
    settings = {"schedule": schedule, "warmup_steps": 5, "decay_fraction": 0.5, "min_lr_ratio": 0.1}
    assert lr_factor(100, 100, **settings) == pytest.approx(0.1)
    assert lr_factor(1000, 100, **settings) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_plateau_shortens_the_decay() -> None:
    assert factors(10, warmup_steps=9, decay_fraction=1.0) == pytest.approx(
        [n / 9 for n in range(1, 10)] + [1.0]
    )


runs = st.integers(1, 500).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total - 1)))


@given(
    runs,
    st.sampled_from(["linear", "cosine", "constant"]),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_every_update_has_a_rate_above_zero_that_never_jumps(
    run: tuple[int, int], schedule: str, decay_fraction: float, min_lr_ratio: float
) -> None:
    total, warmup = run
    found = factors(
        total,
        schedule=schedule,
        warmup_steps=warmup,
        decay_fraction=decay_fraction,
        min_lr_ratio=min_lr_ratio,
    )
    assert all(0 < factor <= 1 for factor in found)
    assert all(factor >= min_lr_ratio - 1e-12 for factor in found[warmup:])
    decay_steps = max(1, min(round(decay_fraction * total), total - warmup))
    for step in range(1, total):
        limit = 1 / warmup if step < warmup else math.pi / 2 / decay_steps
        assert abs(found[step] - found[step - 1]) <= limit + 1e-9
