"""The search: real experiments, pruned, failed, killed and continued."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, Project
from pages_in_chromium import opened
from searched_project import create_searched_project

from nima.tuning.search_space import Dimension, check_ends, dimensions
from nima.tuning.study import Study, open_study
from nima.tuning.study_page import page
from nima.tuning.tuning import clean_head, search_of, tune
from nima.workspace.errors import ParamsError, UserError
from nima.workspace.params import DimensionParams, TuneParams
from nima.workspace.params.params_file import load

SPACE = {"training.lr": {"low": 0.001, "high": 1.0, "log": True}}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return create_searched_project(tmp_path_factory.mktemp("tuning") / "project")


@pytest.fixture
def untouched(fresh: Project, tmp_path: Path) -> Project:
    return fresh.copy_to(tmp_path / "project")


def command(project: Project, *arguments: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    variables = project.env | {"PYTHONPATH": str(ROOT / "src")} | environment
    return [sys.executable, "-m", "nima.cli", "tune", *arguments], variables


def nima_tune(project: Project, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words, variables = command(project, *arguments, **environment)
    return subprocess.run(
        words, cwd=project.path, env=variables, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture(scope="module")
def searched(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str, str]:
    """After a search of five trials: the project, and what was printed."""
    project = fresh.copy_to(tmp_path_factory.mktemp("searched") / "project")
    done = nima_tune(project, "lr")
    assert done.returncode == 0, done.stderr
    return project, done.stdout, done.stderr


def study_of(project: Project) -> Study:
    settings, space = search_of(project.path)
    path = project.path / ".nima/studies/lr/study.db"
    return open_study(path, "lr", settings, space, commit="x", present=None)


def experiments(project: Project) -> list[str]:
    return sorted(project.dvc("exp", "list", "-A", "--name-only").stdout.split())


def test_every_trial_is_an_experiment_a_pruned_or_a_failed_run(searched: tuple[Project, str, str]) -> None:
    project, printed, told = searched
    records = study_of(project).records()
    assert [found.state for found in records] == ["complete", "complete", "complete", "pruned", "failed"]
    assert records[0].params == {"training.lr": 0.01}, "the first has the params as they are"
    assert records[2].value == pytest.approx(0.2, abs=0.01)
    assert re.fullmatch(r"stopped at step [2-4] with .*: worse than others there", records[3].reason)
    assert len(records[3].curve) < 5
    assert records[4].reason == "train: update 1: loss sum nan; lower training.lr"
    assert experiments(project) == ["lr-trial-000", "lr-trial-001", "lr-trial-002"]
    assert "trial 4: failed: train: update 1: loss sum nan; lower training.lr" in told
    assert re.search(r"nima compare [0-9a-f]{7} lr-trial-002 --seeds 3", printed)


def test_a_pruned_run_was_stopped_by_a_signal_and_leaves_no_state(
    searched: tuple[Project, str, str],
) -> None:
    folder = searched[0].path / ".nima/studies/lr"
    assert "train: stopped by SIGTERM: the state is saved" in (folder / "lr-trial-003.log").read_text()
    assert not (folder / "project/.nima/checkpoints").exists()


def test_the_workspace_is_left_alone_and_the_best_can_be_applied(
    searched: tuple[Project, str, str],
) -> None:
    project, printed, _ = searched
    assert project.run("git", "status", "--porcelain").stdout == ""
    applied = re.search(r"dvc exp apply (\S+)", printed)
    assert applied
    project.dvc("exp", "apply", applied[1])
    lr = load(project.path / "params.yaml").training.lr
    assert lr == study_of(project).best().params["training.lr"]
    assert project.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    project.run("git", "checkout", "-q", ".")


def test_a_finished_study_runs_nothing_and_shows_itself(searched: tuple[Project, str, str]) -> None:
    done = nima_tune(searched[0], "lr")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lr-trial-002" in done.stdout


def test_the_page_draws_the_study_in_both_schemes(searched: tuple[Project, str, str]) -> None:
    path = searched[0].path / ".nima/studies/lr/study.html"
    assert "http:" not in path.read_text(encoding="utf-8").replace("http://www.w3.org", "")
    for scheme in ("light", "dark"):
        with opened(path, scheme=scheme) as tab:
            titles = tab.locator("svg.chart").evaluate_all("all => all.map(one => one.ariaLabel)")
            shown = tab.inner_text("body")
            rows = tab.locator("table").last.locator("tr").count()
            for chart in tab.locator("svg.chart").all():
                assert chart.bounding_box()["width"] > 200
            colours = tab.locator("svg.chart circle").evaluate_all(
                "all => new Set(all.map(one => getComputedStyle(one).fill)).size"
            )
    assert titles == [
        "Trials one after another",
        "Params and what came of them",
        "Validation curves",
        "training.lr",
    ]
    assert rows == 1 + 5
    assert colours == 3, "complete, pruned and best"
    assert "lower training.lr" in shown


# ------------------------------------------------------------------------------------------- interruptions


def started(project: Project, *, seed: int) -> subprocess.Popen[str]:
    """A search whose second trial is slow, once that trial has made some steps."""
    text = project.read("params.yaml").replace("  seed: 0\n  pruning", f"  seed: {seed}\n  pruning")
    (project.path / "params.yaml").write_text(text.replace("after_steps: 2", "after_steps: 99"))
    project.commit("Another seed")
    words, variables = command(project, "lr", "--trials", "2", NAP="3")
    process = subprocess.Popen(
        words, cwd=project.path, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    saved = project.path / ".nima/studies/lr/project/.nima/checkpoints/run"
    deadline = time.monotonic() + 120
    while not any("0.0" not in path.name for path in saved.glob("*.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def trainers(project: Project) -> list[str]:
    """Processes that work below the project."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if place.resolve().is_relative_to(project.path):
                found.append(place.parent.name)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_search_loses_nothing_and_goes_on(untouched: Project, number: int) -> None:
    process = started(untouched, seed=1)
    second = nima_tune(untouched, "lr", "--trials", "2")
    assert second.returncode == 2
    assert f"process {process.pid} works here already; wait for its end" in second.stderr
    os.kill(process.pid, number)
    assert process.wait(60) == {signal.SIGKILL: -9, signal.SIGINT: 3}[number]
    if number == signal.SIGINT:
        assert "stopped by SIGINT: the runs that finished are kept" in process.stderr.read()
        assert trainers(untouched) == []
    before = study_of(untouched).records()
    assert [found.state for found in before] == ["complete", "running"]

    done = nima_tune(untouched, "lr", "--trials", "2", NAP="0")
    assert done.returncode == 0, done.stderr
    after = study_of(untouched).records()
    assert [found.state for found in after] == ["complete", "complete"]
    assert after[1].params == before[1].params
    log = (untouched.path / ".nima/studies/lr/lr-trial-001.log").read_text()
    assert re.search("starts at [1-5]", log), "the trial goes on where it was"
    assert experiments(untouched) == ["lr-trial-000", "lr-trial-001"]
    assert trainers(untouched) == []


# ---------------------------------------------------------------------------------------------- refusals


def search(project: Project, name: str = "lr") -> None:
    tune(project.path, name, 1, print, lambda study: None)


def test_another_search_space_is_named_with_the_way_out(searched: tuple[Project, str, str]) -> None:
    settings, _ = search_of(searched[0].path)
    wider = TuneParams.model_validate({"space": {"training.lr": {"low": 0.1, "high": 1}}})
    space = [Dimension("training.lr", wider.space["training.lr"], is_whole=False)]
    found = r"^study lr has another search space: training\.lr 0\.001 to 1, log, now 0\.1 to 1; .* tune lr-2$"
    with pytest.raises(UserError, match=found):
        open_study(
            searched[0].path / ".nima/studies/lr/study.db", "lr", settings, space, commit="x", present=None
        )


def test_a_study_goes_on_only_over_the_same_inputs(untouched: Project) -> None:
    search(untouched)
    (untouched.path / "notes.md").write_text("Nothing that a stage reads.")
    untouched.commit("Notes")
    tune(untouched.path, "lr", 2, print, lambda study: None)
    untouched.set_params({"training": {"momentum": 0.5}})
    untouched.commit("Another momentum")
    with pytest.raises(
        UserError, match=r"^study lr was begun on [0-9a-f]{7}, .* other params in training: git"
    ):
        search(untouched)
    (untouched.path / "stages/train.py").write_text("pass\n")
    untouched.commit("Other code")
    with pytest.raises(UserError, match=r"HEAD has another stages/train\.py: git checkout"):
        search(untouched)


def test_experiments_without_their_study_keep_their_names(untouched: Project) -> None:
    untouched.dvc("exp", "run", "--temp", "-n", "lr-trial-000", "-S", "training.lr=0.3")
    with pytest.raises(UserError, match=r"^1 experiments such as lr-trial-000 exist, but no study lr"):
        search(untouched)


def test_files_that_the_trials_would_not_see_stop_the_search(untouched: Project) -> None:
    assert clean_head(untouched.path)
    (untouched.path / "notes.md").write_text("Nothing that a stage reads.")
    assert clean_head(untouched.path)
    (untouched.path / "stages/new.py").touch()
    untouched.set_params({"training": {"lr": 0.02}})
    with pytest.raises(
        UserError, match=r"would not see: params\.yaml, stages/new\.py; git add and git commit"
    ):
        search(untouched)


def test_without_git_without_a_commit_and_in_a_shallow_clone(untouched: Project, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    untouched.run("git", "clone", "-q", "--depth", "1", f"file://{untouched.path}", str(shallow))
    with pytest.raises(UserError, match="git fetch --unshallow"):
        search(Project(shallow))
    (untouched.path / ".git").rename(tmp_path / "git")
    with pytest.raises(UserError, match="not a git repository"):
        search(untouched)
    untouched.run("git", "init", "-q")
    with pytest.raises(UserError, match="no commit yet"):
        search(untouched)


def test_without_optuna_the_extra_is_named(untouched: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"^nima tune: needs the extra tune: pip install 'nima-lm\[tune\]'$"):
        search(untouched)


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"study\.db: no study can be read there \(.+\); move it away$"):
        opened_study(path)


def test_a_bad_name_and_no_section_are_told(untouched: Project) -> None:
    with pytest.raises(UserError, match=r"^a/b: a study's name has letters"):
        search(untouched, "a/b")
    text = untouched.read("params.yaml").partition("\ntune:")[0]
    (untouched.path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^params\.yaml: no section tune"):
        search(untouched)


# ------------------------------------------------------------------------------ space and study alone


def written(tmp_path: Path, tune: str) -> Path:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").partition("\ntune:")[0]
    path = tmp_path / "params.yaml"
    path.write_text(f"{text}\ntune:\n{tune}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("tune", "problem"),
    [
        (
            "  metric: los\n  space: {training.lr: {low: 1, high: 2}}\n",
            r"tune\.metric: expected 'loss', .* 'los'",
        ),
        (
            "  space: {training.lrr: {low: 1, high: 2}}\n",
            r"tune\.space\.training\.lrr: no param .* mean 'lr'\?",
        ),
        (
            "  space: {training: {low: 1, high: 2}}\n",
            r"tune\.space\.training: is a section; name one of its keys",
        ),
        ("  space: {run.keep_checkpoints: {low: 2, high: 3}}\n", r"no param of a stage has this name"),
        ("  space: {training.batching: {low: 1, high: 2}}\n", r"is no number: expected choices"),
        ("  space: {model.width: {low: 1.5, high: 2}}\n", r"takes whole numbers"),
        ("  space: {training.lr: {low: 2, high: 1}}\n", r"high: 1 must be above low \(2\)"),
        ("  space: {training.lr: {low: 0, high: 1, log: true}}\n", r"low: 0 must be above 0 with log"),
        ("  space: {training.lr: {low: 1, hihg: 2}}\n", r"hihg: unknown key; did you mean 'high'\?"),
        ("  space: {training.batching: {choices: [blocks]}}\n", r"choices: needs at least two values"),
        ("  space: {}\n", r"tune\.space: expected .* at least 1"),
    ],
)
def test_a_wrong_space_is_named_with_its_line(tmp_path: Path, tune: str, problem: str) -> None:
    with pytest.raises(ParamsError, match=rf"params\.yaml:\d+: .*{problem}"):
        load(written(tmp_path, tune))


def test_ends_that_a_stage_would_refuse_are_named(tmp_path: Path) -> None:
    space = "    model.dropout: {low: 0, high: 1}\n    training.batching: {choices: [blocks, rows]}\n"
    path = written(tmp_path, f"  space:\n{space}")
    with pytest.raises(ParamsError) as found:
        check_ends(tmp_path, dimensions(load(path)))
    first, second = found.value.problems
    assert re.fullmatch(r"params\.yaml:\d+: tune\.space\.model\.dropout\.high: 1 would not do: .*", first)
    assert re.fullmatch(r"params\.yaml:\d+: .*batching\.choices: rows would not do: .* 'padded', .*", second)


def opened_study(path: Path, space: dict | None = None, **settings: object) -> Study:
    tune = TuneParams.model_validate({"random_trials": 3, "space": space or SPACE} | settings)
    found = [Dimension(key, dimension, is_whole=key == "n") for key, dimension in tune.space.items()]
    return open_study(path, "s", tune, found, commit="c", present=None)


@pytest.mark.parametrize(
    ("settings", "inside", "outside"),
    [
        ({"low": 0.1, "high": 0.3}, [0.1, 0.2, 0.3], [0.0, 0.4, True, None, "0.2"]),
        ({"low": 0, "high": 1, "step": 0.1}, [0.3, 0.7, 1.0], [0.25]),
        ({"choices": [1, "a", None]}, [1, "a", None], [True, 1.0, "b"]),
    ],
)
def test_a_dimension_knows_its_values(settings: dict, inside: list, outside: list) -> None:
    dimension = Dimension("x", DimensionParams.model_validate(settings), is_whole=False)
    assert all(dimension.holds(value) for value in inside)
    assert not any(dimension.holds(value) for value in outside)


def test_what_a_trial_gets_does_not_depend_on_interruptions(tmp_path: Path) -> None:
    def values(path: Path, *, interrupted: bool) -> list[object]:
        study, found = opened_study(path), []
        for _ in range(6):
            trial = study.next_trial()
            if interrupted:
                study = opened_study(path)
                trial = study.next_trial()
            found.append(trial.params)
            trial.complete(abs(trial.params["training.lr"] - 0.1))
        return found

    expected = values(tmp_path / "a.db", interrupted=False)
    assert values(tmp_path / "b.db", interrupted=True) == expected
    assert len({str(found) for found in expected}) == 6


def test_all_kinds_of_params_are_drawn_and_shown(tmp_path: Path) -> None:
    space = SPACE | {
        "n": {"low": 2, "high": 8, "step": 2},
        "kind": {"choices": [None, True, 1, "a"]},
    }
    study = opened_study(tmp_path / "a.db", space)
    for number in range(8):
        trial = study.next_trial()
        assert trial.params["n"] in (2, 4, 6, 8)
        assert trial.params["kind"] in (None, True, 1, "a")
        assert 0.001 <= trial.params["training.lr"] <= 1
        trial.report([(1, 2.0), (2, 1.0)])
        trial.complete(float(number))
    assert study.best().number == 0
    assert set(study.importances()) == {"training.lr", "n", "kind"}
    assert "What decides" in page(study)


def test_more_is_better_for_accuracy(tmp_path: Path) -> None:
    study = opened_study(tmp_path / "a.db", metric="accuracy")
    for value in (0.1, 0.3, 0.2):
        study.next_trial().complete(value)
    assert study.best().number == 1
