"""What a person sees of a training: plain lines in a pipe, a bar and a table on a terminal."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from nima.monitoring import pace
from nima.monitoring.pace import Pace
from nima.monitoring.progress import TrainingProgress, duration

SOURCE = Path(__file__).parent.parent / "src"
RUN = """
from nima.monitoring.progress import TrainingProgress
with TrainingProgress(8, print_every_steps=3) as progress:
    progress.start_at(0)
    for step in range(1, 9):
        progress.step(step, 2.0, 1.5, 100)
        if step == 4:
            progress.say("step 4: [bold]validation[/bold] loss 1.9")
    progress.summarize("gpt-tiny", {"updates": "8 of 8", "best": "step 4: validation loss 1.9000"})
"""


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    exec(RUN, {})
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("step ") and "/8 " in line]
    assert [line.split()[1] for line in steps] == ["3/8", "6/8", "8/8"]
    assert re.fullmatch(r"step 3/8  loss 2\.000  1\.500 bits/byte  [\d,]+ tokens/s  \d+ s left", steps[0])
    assert "step 4: [bold]validation[/bold] loss 1.9" in lines, "text is no markup"
    assert any(line.startswith("forecast: 0 s") for line in lines)
    assert lines[-3:] == ["gpt-tiny", "  updates  8 of 8", "  best     step 4: validation loss 1.9000"]
    assert all("\x1b" not in line for line in lines)


def test_on_a_terminal_there_are_a_bar_and_a_table() -> None:
    mine, its = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-c", RUN]
    with subprocess.Popen(command, stderr=its, stdout=its, stdin=its, env=environment) as process:
        os.close(its)
        seen = b""
        while select.select([mine], [], [], 30)[0]:
            try:
                seen += os.read(mine, 65_536)
            except OSError:  # the other end is closed
                break
        assert process.wait(timeout=10) == 0
    os.close(mine)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "━" in text
    assert "100%" in text
    assert "loss 2.000  1.500 bits/byte" in text
    assert "step 4: [bold]validation[/bold] loss 1.9" in text
    assert re.search(r"│ best\s+│ step 4: validation loss 1\.9000\s*│", text)
    assert "step 3/8" not in text, "the bar says it"


# ------------------------------------------------------------------------------------------------- the pace


class Clock:
    """Stands for time.perf_counter, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(pace.time, "perf_counter", found)
    return found


def done(pace: Pace, clock: Clock, steps: list[int], seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        pace.step(step, 10)


def test_the_forecast_comes_after_a_few_steps_and_leaves_the_first_out(clock: Clock) -> None:
    run = Pace(total_steps=100)
    run.start_at(0)
    done(run, clock, [1], 50.0)
    for step, seconds in ((2, 1.0), (3, 5.0), (4, 2.0), (5, 4.0)):
        done(run, clock, [step], seconds)
    assert run.forecast_seconds is None
    done(run, clock, [6], 3.0)
    assert run.forecast_seconds == pytest.approx(65 + 94 * 3.0)


def test_the_forecast_counts_what_validation_will_take(clock: Clock) -> None:
    run = Pace(total_steps=100, extra_steps=50.0)
    run.start_at(0)
    done(run, clock, list(range(1, 7)), 2.0)
    assert run.forecast_seconds == pytest.approx(12 + 94 * 1.5 * 2.0)


def test_a_resumed_run_counts_only_its_own_steps(clock: Clock) -> None:
    run = Pace(total_steps=100)
    clock.now += 1000
    run.start_at(90)
    done(run, clock, list(range(91, 97)), 2.0)
    assert run.forecast_seconds == pytest.approx(20.0)
    assert run.tokens_per_second == pytest.approx(60 / 12)
    assert run.left_seconds() == pytest.approx(8.0)
    done(run, clock, list(range(97, 101)), 4.0)
    figures = run.figures()
    assert figures["forecast_error"] == pytest.approx(20 / 28 - 1)
    assert figures["steps_per_second"] == pytest.approx(10 / 28)
    assert figures["step_seconds_median"] == pytest.approx(2.0)


def test_a_run_that_stopped_early_has_no_error_of_its_forecast_and_one_without_steps_no_figures(
    clock: Clock,
) -> None:
    run = Pace(total_steps=100)
    run.start_at(0)
    assert run.figures() == {}
    done(run, clock, list(range(1, 11)), 1.0)
    assert "forecast_seconds" in run.figures()
    assert "forecast_error" not in run.figures()


def test_the_speed_of_late_is_that_since_it_was_asked_before(clock: Clock) -> None:
    run = Pace(total_steps=100)
    run.start_at(0)
    done(run, clock, [1, 2], 1.0)
    assert run.tokens_per_second_of_late() == pytest.approx(10.0)
    done(run, clock, [3, 4], 5.0)
    assert run.tokens_per_second_of_late() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2.0 min"), (7199, "120.0 min"), (7200, "2.0 h")],
)
def test_durations_are_said_in_a_unit_that_fits(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_step_costs_the_same_late_in_a_run() -> None:
    import statistics
    import time

    progress = TrainingProgress(20_000, print_every_steps=1_000_000)
    times = []
    with progress:
        progress.start_at(0)
        for step in range(1, 10_001):
            started = time.perf_counter()
            progress.step(step, 1.0, 1.0, 100)
            times.append(time.perf_counter() - started)
    assert statistics.median(times[-1000:]) < 3 * statistics.median(times[100:1100]) + 20e-6
