"""Records of runs that Git alone can give, and experiments that are kept when DVC's references are gone."""

import json
import os
from pathlib import Path

import pytest
from conftest import Project
from tiny_project import create_tiny_project
from typer.testing import CliRunner

from nima.cli import application
from nima.experiments.experiment_archive import keep, record
from nima.workspace.errors import UserError

FIGURES = {"loss": 0.03, "bits_per_byte": 0.06, "accuracy": 0.5}


@pytest.fixture(scope="module")
def with_experiment(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with an experiment that ran in a copy, and with a figure of the clock."""
    project = create_tiny_project(tmp_path_factory.mktemp("tiny") / "project")
    (project.path / "metrics/timing.json").write_text('{"train": {"seconds": 1.5}}', encoding="utf-8")
    (project.path / "metrics/environment.json").write_text('{"train": {"torch": "2"}}', encoding="utf-8")
    project.commit("What the stage leaves beside its outputs")
    project.dvc("exp", "run", "--temp", "-n", "mine", "-S", "training.lr=0.03", "-m", "A message")
    return project


@pytest.fixture
def project(with_experiment: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = with_experiment.copy_to(tmp_path / "project")
    for key in [key for key in os.environ if key.startswith(("DVC_", "GIT_", "NIMA_"))]:
        monkeypatch.delenv(key)
    for key, value in project.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PATH", os.defpath)  # no DVC there
    return project


def test_a_record_has_params_hashes_metrics_times_and_versions(project: Project) -> None:
    found = record(project.path, "mine")
    assert (found["name"], found["message"]) == ("mine", "A message")
    assert found["changed"] == {"training.lr": 0.03}
    assert found["params"]["training"]["lr"] == 0.03
    assert found["metrics"] == {"evaluate": {"test": FIGURES}}
    assert found["seconds_and_speed"] == {"train": {"seconds": 1.5}}
    assert found["environment"] == {"train": {"torch": "2"}}
    train = found["stages"]["train"]
    assert train["command"] == "python train.py"
    assert train["read"].keys() == {"train.py", "data"}
    assert train["written"].keys() == {"model.bin", "metrics/evaluate.json"}
    assert all(len(md5) >= 32 for md5 in [*train["read"].values(), *train["written"].values()])
    assert found["parent"] == project.run("git", "rev-parse", "HEAD").stdout.strip()


def test_the_first_commit_has_a_record_and_one_without_results_an_empty_one(project: Project) -> None:
    first = project.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    assert (record(project.path, first)["parent"], record(project.path, first)["changed"]) == (None, {})
    project.run("git", "rm", "-rq", "--cached", "dvc.lock", "metrics")
    (project.path / "params.yaml").write_text("training: [", encoding="utf-8")
    project.run("git", "commit", "-qam", "Broken")
    found = record(project.path, "HEAD")
    assert (found["stages"], found["metrics"], found["params"]) == ({}, {}, {})


def test_a_kept_experiment_is_in_a_clone_after_dvc_has_dropped_it(project: Project, tmp_path: Path) -> None:
    before = record(project.path, "mine")
    assert keep(project.path, "mine", None) == "mine"
    message = project.run("git", "tag", "-l", "--format=%(contents)", "mine").stdout
    assert message.startswith("Experiment mine\n\ntraining.lr: 0.03\ntest.loss: 0.03\n")
    project.dvc("exp", "remove", "mine")
    project.run("git", "gc", "-q", "--prune=now")
    project.run("git", "clone", "-q", str(project.path), str(tmp_path / "clone"))
    assert record(tmp_path / "clone", "mine") == before
    clone = Project(tmp_path / "clone")
    assert clone.run("git", "show", "mine:metrics/timing.json").stdout == '{"train": {"seconds": 1.5}}'


@pytest.mark.parametrize(
    ("name", "tag", "problem"),
    [
        ("HEAD", None, "HEAD: no experiment; a commit on a branch is kept anyway: git tag NAME HEAD"),
        ("workspace", None, "workspace: no experiment; "),
        ("mien", None, "mien: no commit, branch, tag or experiment has this name; did you mean 'mine'?"),
        ("mine", "a..b", "--tag a..b: Git takes no such name: "),
        ("mine", "-d", "--tag -d: Git takes no such name: "),
        ("mine", "taken", "--tag taken: there is such a tag already: choose another, or git tag -d taken"),
    ],
)
def test_what_cannot_be_kept_is_one_line(project: Project, name: str, tag: str | None, problem: str) -> None:
    project.run("git", "tag", "taken")
    with pytest.raises(UserError) as caught:
        keep(project.path, name, tag)
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)
    assert project.run("git", "tag").stdout == "taken\n"


def test_without_an_identity_no_tag_is_made(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_COMMITTER_EMAIL")
    with pytest.raises(UserError, match="Git doesn't know who you are: "):
        keep(project.path, "mine", None)


def test_the_workspace_has_no_record(project: Project) -> None:
    with pytest.raises(UserError, match="workspace: records are of commits"):
        record(project.path, "workspace")


def test_the_commands_print_or_write(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project.path / "data")
    runner, place = CliRunner(), tmp_path / "record.json"
    printed = runner.invoke(application(), ["exp", "record", "mine"]).output
    assert json.loads(printed) == record(project.path, "mine")
    assert runner.invoke(application(), ["exp", "record", "mine", "--json", str(place)]).output == ""
    assert place.read_text(encoding="utf-8") == printed
    said = runner.invoke(application(), ["exp", "keep", "mine", "--tag", "good"]).output
    assert said.startswith("kept as good; to share it: git push origin good, ")
