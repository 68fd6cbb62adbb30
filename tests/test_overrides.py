"""Settings of experiments: grids spelt out, checked, and turned into names that Git takes."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Project
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.experiments.overrides import Combination, combinations, label, readable_name
from nima.workspace.errors import UserError
from nima.workspace.params.params_file import load


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Params in a commit, and nothing else."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    project = Project(tmp_path)
    project.run("git", "init", "-q")
    project.commit("Params")
    return project


def overrides(project: Project, *given: str) -> list[tuple[str, ...]]:
    return [found.overrides for found in combinations(project.path, given, grids=True)]


def test_every_combination_of_a_grid_is_spelt_out(project: Project) -> None:
    found = overrides(project, "training.lr=choice(1e-5,0.02)", "split.seed=range(1,3)", "training.keep=last")
    assert found == [
        (lr, seed, "training.keep=last")
        for lr in ("training.lr=1e-05", "training.lr=0.02")
        for seed in ("split.seed=1", "split.seed=2")
    ]


def test_small_numbers_stay_numbers(project: Project) -> None:
    (found,) = combinations(project.path, ["training.lr=1e-5"], grids=False)
    assert found.params.training.lr == 1e-5
    assert found.changed == {"training.lr": 1e-5}


def test_without_settings_there_is_one_combination(project: Project) -> None:
    assert overrides(project) == [()]


def test_params_that_are_wrong_themselves_are_told_with_their_lines(project: Project) -> None:
    project.set_params({"training": {"lr": -1.0}})
    with pytest.raises(UserError, match=r"params.yaml:\d+: training.lr: expected greater than 0"):
        combinations(project.path, [], grids=False)


def test_sections_that_no_longer_agree_are_found(project: Project) -> None:
    with pytest.raises(
        UserError, match=r"^-S training.block_tokens=4096: training.block_tokens: 4096 must not "
    ):
        combinations(project.path, ["training.block_tokens=4096"], grids=False)


def test_a_mapping_can_be_given_whole(project: Project) -> None:
    setting = "training.early_stopping={metric: loss, patience: 3, min_delta: 0.0}"
    (found,) = combinations(project.path, [setting], grids=False)
    assert found.params.training.early_stopping.patience == 3
    assert found.changed == {"training.early_stopping.patience": 3}


def test_names_say_what_is_changed(project: Project) -> None:
    (found,) = combinations(project.path, ["training.lr=0.003", "training.keep=last"], grids=False)
    assert readable_name(found, set()).rpartition("-")[0] == "gpt-tiny-technical-lr0.003-keep-last"
    many = [
        "split.seed=1",
        "training.lr=0.003",
        "training.keep=last",
        "training.seed=3",
        "training.beta1=0.8",
    ]
    (found,) = combinations(project.path, many, grids=False)
    assert (
        readable_name(found, set()).rpartition("-")[0]
        == "gpt-tiny-technical-seed1-lr0.003-keep-last-and-2-more"
    )
    (found,) = combinations(project.path, ["model.preset=gpt-small"], grids=False)
    assert readable_name(found, set()).rpartition("-")[0] == "gpt-small-technical"


def test_names_are_not_given_twice(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter(["0000", "0000", "1111"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(draws))
    found = Combination((), load(project.path / "params.yaml"), {})
    first = readable_name(found, set())
    assert (first, readable_name(found, {first})) == ("gpt-tiny-technical-0000", "gpt-tiny-technical-1111")


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["a.b", "c", "d.e[x y].f"]), VALUES))
def test_git_takes_every_name(changed: dict[str, object]) -> None:
    stem = "-".join(["gpt-tiny", *(label(key, value) for key, value in changed.items())])
    command = ["git", "check-ref-format", f"refs/exps/ab/cd/{stem}-0123"]
    assert subprocess.run(command, check=False).returncode == 0, stem
    assert not set(stem) & set("/ \\'\"$;|&<>*?")
