"""The learning rate as a function of the step."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nima.training.schedule import lr_factor, warmup_steps_of


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


def test_wsd_is_stable_before_it_decays_in_its_shape() -> None:
    shapes = {
        shape: factors(100, schedule="wsd", warmup_steps=10, decay_fraction=0.2, decay_shape=shape)
        for shape in ("linear", "cosine", "1-sqrt")
    }
    for found in shapes.values():
        assert found[9:81] == [1.0] * 72
        assert found[81] < 1.0
    assert shapes["linear"][85] == pytest.approx(0.75)
    assert shapes["cosine"][90] == pytest.approx(0.5)
    assert shapes["1-sqrt"][85] == pytest.approx(0.5)


def test_restarts_go_back_to_the_peak_and_cycles_may_grow() -> None:
    even = factors(12, schedule="cosine_restarts", num_cycles=3)
    assert even[:4] == even[4:8] == even[8:] == pytest.approx(factors(4, schedule="cosine"))
    grown = factors(14, schedule="cosine_restarts", num_cycles=3, cycle_growth=2.0)
    assert [step for step, factor in enumerate(grown) if factor == 1.0] == [0, 2, 6]
    one = factors(9, schedule="cosine_restarts", num_cycles=1, min_lr_ratio=0.1)
    assert one == pytest.approx(factors(9, schedule="cosine", min_lr_ratio=0.1))


def test_restarts_begin_after_the_warm_up_and_end_at_the_floor() -> None:
    settings = {"schedule": "cosine_restarts", "num_cycles": 2, "warmup_steps": 2, "min_lr_ratio": 0.1}
    found = factors(10, **settings)
    assert [step for step, factor in enumerate(found) if factor == 1.0] == [1, 2, 6]
    defaults: dict[str, Any] = {"decay_fraction": 1.0}
    assert lr_factor(10, 10, **defaults, **settings) == pytest.approx(0.1)


def test_a_warm_up_is_given_in_steps_or_as_a_share() -> None:
    assert warmup_steps_of(7, 0.0, 100) == 7
    assert warmup_steps_of(0, 0.05, 100) == 5
    assert warmup_steps_of(0, 0.0, 100) == 0


@given(st.integers(1, 300), st.integers(1, 40), st.floats(0.1, 10), st.floats(0, 1), st.floats(0.01, 1))
def test_restarts_never_leave_the_range_however_many_cycles(
    total: int, num_cycles: int, growth: float, floor: float, fraction: float
) -> None:
    found = factors(
        total,
        schedule="cosine_restarts",
        num_cycles=num_cycles,
        cycle_growth=growth,
        min_lr_ratio=floor,
        decay_fraction=fraction,
    )
    assert all(0 < factor <= 1 and factor >= floor - 1e-12 for factor in found)
    assert sum(later > earlier for earlier, later in itertools.pairwise(found)) <= num_cycles - 1


runs = st.integers(1, 500).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total - 1)))


@given(
    runs,
    st.sampled_from(["linear", "cosine", "constant", "wsd"]),
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
