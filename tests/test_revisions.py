"""What revisions hold, read from a real project without touching its workspace."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project

from nima.repository.revisions import Revision, commit_of, flat, project_root
from nima.workspace.errors import UserError


@pytest.fixture(scope="module")
def runs(tried_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which an experiment with shorter samples ran, and whose workspace moved on since."""
    project = tried_project.copy_to(tmp_path_factory.mktemp("revisions") / "project")
    project.set_params({"generate": {"seed": 99}})
    return project


def test_a_commit_gives_its_params_metrics_curves_and_samples(runs: Project) -> None:
    head = Revision.find(runs.path, "HEAD")
    assert head.params["training.lr"] == 0.01
    assert head.params["prepare.sources[notes].path"] == "data/raw/notes"
    assert head.metrics["evaluate.test.loss"] > 0
    assert head.metrics["timing.train.seconds"] > 0
    assert [step for step, _ in head.curve("validation/loss")] == [15, 30, 45, 60]
    assert {sample["prompt"] for sample in head.samples} == {"The server", "To restart"}
    assert head.absent == []
    assert head.label == f"HEAD ({head.commit[:7]})"


def test_an_experiment_is_found_by_its_name_and_read_beside_the_workspace(runs: Project) -> None:
    before = runs.files("metrics", "plots", "data/samples"), runs.read("params.yaml")
    brief, workspace = (Revision.find(runs.path, name) for name in ("brief", "workspace"))
    assert brief.params["generate.max_new_tokens"] == 5
    assert max(sample["num_tokens"] for sample in brief.samples) <= 5
    assert workspace.params["generate.max_new_tokens"] == 12
    assert workspace.params["generate.seed"] == 99
    assert brief.params["generate.seed"] == 7
    assert brief.curve("validation/loss") == workspace.curve("validation/loss")
    assert (runs.files("metrics", "plots", "data/samples"), runs.read("params.yaml")) == before


def test_an_unknown_name_gets_the_nearest_known(runs: Project) -> None:
    with pytest.raises(UserError, match=r"^breif: no commit.*did you mean 'brief'\?$"):
        commit_of(runs.path, "breif")
    with pytest.raises(UserError, match=r"^--all: no commit"):
        commit_of(runs.path, "--all")


def test_an_experiment_name_that_two_commits_bear_asks_for_the_commit(project: Project) -> None:
    head = project.run("git", "rev-parse", "HEAD").stdout.strip()
    for baseline in ("a" * 40, "b" * 40):
        project.run("git", "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/twin", head)
    with pytest.raises(UserError, match=f"several experiments .*{head[:7]}"):
        commit_of(project.path, "twin")


def test_what_neither_git_nor_the_cache_holds_is_listed(project: Project, tmp_path: Path) -> None:
    project.run("git", "clone", "-q", str(project.path), str(tmp_path / "clone"))
    head = Revision.find(tmp_path / "clone", "HEAD")
    assert head.metrics["evaluate.test.loss"] > 0, "what Git tracks is there"
    assert head.curve("validation/loss") == []
    assert head.samples == []
    assert "metrics/train.json" in head.absent
    assert "data/samples/samples.jsonl" in head.absent


def test_no_git_and_no_project_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no project here or above it"):
        project_root(tmp_path)
    with pytest.raises(UserError, match="not a git repository"):
        commit_of(tmp_path, "HEAD")


def test_the_root_is_found_from_a_folder_below(project: Project) -> None:
    assert project_root(project.path / "src" / "nima") == project.path.resolve()


def test_a_revision_with_broken_params_is_named(project: Project) -> None:
    (project.path / "params.yaml").write_text("training: [")
    with pytest.raises(UserError, match=r"^workspace: params\.yaml there is not valid YAML$"):
        _ = Revision.find(project.path, "workspace").params


def test_list_members_are_keyed_by_name_or_position() -> None:
    tree = {"sources": [{"name": "a", "weight": 1.0}, {"weight": 2.0}], "plain": [1, 2], "none": {}}
    assert dict(flat(tree)) == {
        "sources[a].name": "a",
        "sources[a].weight": 1.0,
        "sources[1].weight": 2.0,
        "plain": [1, 2],
        "none": {},
    }


def loss_curve(revision: Revision) -> object:
    return revision.curve("validation/loss")


@pytest.mark.parametrize(
    ("path", "content", "read"),
    [
        ("metrics/evaluate.json", "{", lambda revision: revision.metrics),
        ("metrics/evaluate.json", "[1]", lambda revision: revision.metrics),
        ("data/samples/samples.jsonl", '{"a": 1}\nnonsense\n', lambda revision: revision.samples),
        (
            "plots/train/metrics/validation/loss.tsv",
            "step\tloss\n1\tx\n",
            loss_curve,
        ),
        (
            "plots/train/metrics/validation/loss.tsv",
            "step\tother\n1\t2\n",
            loss_curve,
        ),
    ],
)
def test_a_broken_file_is_named_with_its_revision(
    path: str, content: str, read: Callable[[Revision], object], project: Project
) -> None:
    (project.path / path).unlink()
    (project.path / path).write_text(content)
    with pytest.raises(UserError, match=f"^workspace: {path}: .*; run the stage"):
        read(Revision.find(project.path, "workspace"))


def test_values_that_are_no_numbers_leave_a_gap_in_a_curve(project: Project) -> None:
    path = project.path / "plots/train/metrics/validation/loss.tsv"
    path.unlink()
    path.write_text("step\tloss\n1\t2.5\n2\tnan\n3\tinf\n4\t1.5\n")
    assert Revision.find(project.path, "workspace").curve("validation/loss") == [(1.0, 2.5), (4.0, 1.5)]
