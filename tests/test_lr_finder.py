"""The learning-rate finder: what it suggests, what it leaves behind, and what it leaves alone."""

import json
import math
import shutil
import sys
from itertools import pairwise

import pytest
from conftest import Project

from nima.lr_finder import rate, smooth, suggestion
from nima.workspace.errors import UserError
from nima.workspace.metrics import Row
from nima.workspace.params import LrFinderParams

SETTINGS = LrFinderParams(min_lr=1e-4, max_lr=1.0, steps=41)


def rows_of(losses: list[float]) -> list[Row]:
    return [
        {"step": step, "lr": rate(SETTINGS, step), "loss": loss, "smoothed_loss": loss}
        for step, loss in enumerate(losses)
    ]


def test_the_rate_rises_by_the_same_factor_from_the_least_to_the_largest() -> None:
    rates = [rate(SETTINGS, step) for step in range(SETTINGS.steps)]
    assert (rates[0], rates[-1]) == (1e-4, pytest.approx(1.0))
    assert [after / before for before, after in pairwise(rates)] == pytest.approx([10 ** (4 / 40)] * 40)


def test_the_suggestion_lies_between_the_fastest_fall_and_the_lowest_loss() -> None:
    # Falls around step 20 (0.01), is lowest at step 30 (0.1), then rises.
    losses = [8 - 4 / (1 + math.exp(-(step - 20) / 2)) + max(0, step - 30) for step in range(41)]
    found = suggestion(rows_of(losses))
    assert (found.steepest_lr, found.suggested_lr, found.lowest_loss_lr) == (0.01, 0.032, 0.1)
    assert found.command == "dvc exp run -S training.lr=0.032"


def test_a_loss_that_never_falls_is_an_error() -> None:
    with pytest.raises(UserError, match="the loss never falls"):
        suggestion(rows_of([float(step) for step in range(41)]))


def test_smoothing_shifts_nothing() -> None:
    assert smooth([0, 0, 0, 3, 0, 0, 0], 1) == [0, 0, 1, 1, 1, 0, 0]
    line = [float(step) for step in range(9)]
    assert smooth(line, 3) == line


def test_the_command_records_the_same_for_the_same_params_and_touches_no_output(project: Project) -> None:
    project.set_params({"lr_finder": {"min_lr": 1e-4, "max_lr": 1.0, "steps": 24, "runs": 2}})
    before = project.outputs()
    command = [sys.executable, "-m", "nima.cli", "lr-find"]
    told = project.run(*command)
    first = project.files("metrics", "plots/lr_finder")
    assert {"metrics/lr_finder.json", "plots/lr_finder/loss.png"} <= first.keys()
    assert "plots/lr_finder/metrics/smoothed_loss.tsv" in first
    found = json.loads(first["metrics/lr_finder.json"])
    assert 1e-4 < found["suggested_lr"] <= found["lowest_loss_lr"] < 1.0
    assert f"dvc exp run -S training.lr={found['suggested_lr']:.2g}" in told.stdout
    after = project.outputs()
    assert {name: after[name] for name in before} == before
    assert project.dvc("status").stdout.strip().endswith("up to date.")
    project.run(*command)
    assert project.files("metrics", "plots/lr_finder") == first


def test_without_data_the_command_says_what_to_run(project: Project) -> None:
    shutil.rmtree(project.path / "data/tokens")
    done = project.run("python", "-m", "nima.cli", "lr-find", check=False)
    assert done.returncode == 2
    assert "data/tokens" in done.stderr
    assert "Traceback" not in done.stderr
