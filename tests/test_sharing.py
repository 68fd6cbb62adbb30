"""Experiments, files, data and versions of the model go from one to another, by the guide's own commands."""

import json
import sys
from pathlib import Path

from conftest import Project
from guides import blocks, follow, with_names
from s3_server import S3Server
from team import Team, history, push_commit

pytest_plugins = ("team_fixtures",)
ADDRESS = "https://git.example.com/acme/nima.git"
TICKETS = "https://git.example.com/acme/tickets.git"
COMMANDS = blocks("sharing.md", "console")


def anywhere(team: Team) -> Project:
    """A folder that is no clone of anything."""
    (team.folder / "elsewhere").mkdir()
    return team.project(team.folder / "elsewhere")


def test_an_experiment_reaches_a_colleague_who_need_not_train(team: Team) -> None:
    names = {ADDRESS: team.url}
    a, b = team.developer("a"), team.clone("b")
    assert "Running stage 'train'" in follow(a, COMMANDS[0], names)
    assert "faster" in follow(b, COMMANDS[1], names)
    assert "lr: 0.02" in b.read("params.yaml")
    assert "Running" not in b.dvc("repro").stdout
    assert b.files("models", "data/samples", "metrics") == a.files("models", "data/samples", "metrics")
    assert b.run("git", "rev-parse", "--verify", "-q", "try-faster").stdout
    b.dvc("exp", "remove", "-q", "-g", "origin", "faster")
    assert "faster" not in b.dvc("exp", "list", "origin").stdout


def test_files_of_any_revision_come_without_a_clone(team: Team) -> None:
    a = team.developer("a")
    a.set_params({"training": {"lr": 0.03}})
    a.dvc("repro", "-q")
    a.dvc("push", "-q")
    push_commit(a, "Train faster")
    reader = anywhere(team)
    names = {ADDRESS: team.url}
    assert f"s3://{team.bucket}/dvc/files/md5/" in follow(reader, COMMANDS[2], names)
    assert reader.read("their-model/weights") == a.read("models/model/weights")
    assert json.loads(reader.read("older-samples/samples.jsonl"))["text"].endswith("0.01")

    (program,) = blocks("sharing.md", "python")
    printed = reader.run(sys.executable, "-c", with_names(program, names)).stdout.splitlines()
    assert printed[0] == "learning rate 0.03"
    assert printed[1] == f"loss {json.loads(a.read('metrics/train.json'))['validation']['loss']}"
    assert printed[2].endswith("0.03")
    assert printed[3].startswith(f"stored at s3://{team.bucket}/dvc/files/md5/")


def test_data_of_another_project_is_a_source_and_can_be_brought_up_to_date(
    team: Team, server: S3Server, tmp_path: Path
) -> None:
    theirs = tickets(Team(tmp_path / "other", server, team.bucket))
    a = team.developer("a")
    names = {TICKETS: f"file://{tmp_path / 'other' / 'origin.git'}"}
    assert "Running stage 'prepare'" in follow(a, COMMANDS[3], names)
    assert "The printer burns." in a.read("data/documents/all.txt")
    assert history(a)[0] == "Their tickets as a source"

    (theirs.path / "data/raw/tickets/2.md").write_text("The printer is well.\n", encoding="utf-8")
    theirs.dvc("add", "-q", "data/raw/tickets")
    theirs.dvc("push", "-q")
    push_commit(theirs, "Another ticket")
    a.dvc("update", "-q", "data/raw/tickets.dvc")
    a.dvc("repro", "-q")
    assert "The printer is well." in a.read("data/documents/all.txt")


def tickets(team: Team) -> Project:
    """A project of others, which has nothing but data."""
    path = team.folder / "founder" / "project"
    (path / "data/raw/tickets").mkdir(parents=True)
    (path / "data/raw/tickets/1.md").write_text("The printer burns.\n", encoding="utf-8")
    project = team.project(path)
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    project.dvc("add", "-q", "data/raw/tickets")
    project.commit("Tickets")
    return team.share(path)


def test_versions_of_data_and_model_are_tags_that_others_get_them_by(team: Team) -> None:
    names = {ADDRESS: team.url}
    a = team.developer("a")
    a.set_params({"training": {"lr": 0.03}})
    a.dvc("repro", "-q")
    a.dvc("push", "-q")
    push_commit(a, "Train faster")
    assert "v1.0.0" in follow(a, COMMANDS[4], names)
    reader = anywhere(team)
    follow(reader, COMMANDS[5], names)
    for folder in ("model-1", "model-production", "newest-model"):
        assert reader.read(f"{folder}/weights") == a.read("models/model/weights")
    assert reader.read("their-documents/all.txt") == a.read("data/documents/all.txt")
