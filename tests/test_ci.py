"""The story of a pushed change: a Git repository, an S3 server, developers A and B, and CI between them."""

import json
import re
from http.server import ThreadingHTTPServer
from pathlib import Path

from conftest import Project
from forge_server import forge
from s3_server import S3Server
from team import Team, change_note, history, push_commit, run_ci, stages_run

pytest_plugins = ("team_fixtures",)
STAGES = ["prepare", "tokenize", "split", "train", "evaluate", "generate_samples"]


def test_a_pushed_raw_file_is_run_by_ci_and_reaches_others_without_training(
    finished_project: Project, server: S3Server, tmp_path: Path
) -> None:
    team = Team(tmp_path, server, "story")
    a = team.project(finished_project.copy_to(tmp_path / "a" / "project").path)
    team.share(a.path)
    note = a.path / "data/raw/notes/note-00.md"
    note.write_text(note.read_text() + "\nTo reset the beacon, hold its button until it is healthy.\n")
    push_commit(a, "The beacon's note")

    ci = team.clone("ci", "--depth", "1")
    ci.run("git", "checkout", "-q", "--detach")
    assert stages_run(run_ci(ci)) == STAGES
    assert history(ci)[0].endswith(": " + ", ".join(STAGES))
    assert ci.outputs() != a.outputs()

    b = team.developer("b")
    assert history(b)[:2] == history(ci)[:2] == [history(ci)[0], "The beacon's note"]
    assert "Running" not in b.dvc("repro").stdout
    assert b.run("git", "status", "--porcelain").stdout == ""
    assert b.outputs() == ci.outputs()

    # A raw file that gives the same documents concerns the stage that reads it, and no other.
    b_note = b.path / "data/raw/notes/note-01.md"
    b_note.write_text(b_note.read_text().replace("\n\n", "\n \n", 1))
    push_commit(b, "A space that cleaning takes away")
    ci.run("git", "fetch", "-q")
    ci.run("git", "checkout", "-q", "origin/main")
    assert stages_run(run_ci(ci)) == ["prepare"]


def on_github(project: Project, api: ThreadingHTTPServer, event: dict, **more: str) -> None:
    path = project.path.parent / "event.json"
    path.write_text(json.dumps(event))
    project.env |= {
        "GITHUB_REPOSITORY": "team/nima",
        "GITHUB_SERVER_URL": "https://github.example",
        "GITHUB_API_URL": f"http://127.0.0.1:{api.server_address[1]}",
        "GITHUB_EVENT_PATH": str(path),
        "GITHUB_RUN_ID": "77",
        "GITHUB_TOKEN": "ghs_0123456789",
        "GITHUB_STEP_SUMMARY": str(project.path.parent / "summary.md"),
    } | more


def test_a_learning_rate_runs_training_and_what_follows_and_the_pull_request_hears_of_it(team: Team) -> None:
    a = team.clone("a")
    base = a.run("git", "rev-parse", "HEAD").stdout.strip()
    a.run("git", "checkout", "-qb", "faster")
    a.set_params({"training": {"lr": 0.02}})
    a.commit("Train faster")
    a.run("git", "push", "-qu", "origin", "faster")

    ci = team.clone("ci", "--branch", "faster")
    with forge() as api:
        event = {"pull_request": {"number": 12, "base": {"sha": base}}}
        on_github(ci, api, event, GITHUB_HEAD_REF="faster", AWS_SESSION_TOKEN="", AWS_PROFILE="")
        assert stages_run(run_ci(ci)) == ["train", "generate_samples"]
    assert history(ci)[1] == "Train faster"
    assert team.head("faster") == ci.run("git", "rev-parse", "HEAD").stdout.strip()

    ((path, headers, body),) = api.posts
    assert path == "/repos/team/nima/issues/12/comments"
    assert headers["Authorization"] == "Bearer ghs_0123456789"
    text = body["body"]
    assert text == ci.read(".nima/ci/comment.md") == (ci.path.parent / "summary.md").read_text()
    assert "Ran: **train, generate_samples**." in text
    assert "| training.lr | 0.01 | 0.02 |" in text
    assert re.search(r"\| train.validation.loss \| less is better \|.* \| worse, noise unknown \|", text)
    assert text.count("  line [") == 2, "loss before and now"
    assert "says 0.01" in text
    assert "says 0.02" in text
    assert "| train | 0.5 s | 2 MB |" in text
    assert "https://github.example/team/nima/actions/runs/77" in text
    assert "<svg" in ci.read(".nima/ci/comparison.html")
    assert ci.run("git", "status", "--porcelain").stdout == ""


def test_data_under_dvc_is_run_and_a_change_taken_back_is_not_trained_again(folder_team: Team) -> None:
    """With the data in a folder: nothing here depends on a server."""
    team = folder_team
    a = team.developer("a")
    change_note(a, "A note that CI has never seen.\n")
    a.dvc("push", "-q")
    push_commit(a, "Another note")
    first = team.clone("first")
    assert stages_run(run_ci(first)) == ["prepare", "train", "generate_samples"]
    assert "A NOTE THAT CI HAS NEVER SEEN" in first.read("models/model/weights")
    # CI on its own commit: an end, not a loop.
    commits = history(first)
    assert stages_run(run_ci(first)) == []
    assert history(first) == commits

    a.run("git", "pull", "-q", "--rebase")
    change_note(a, "Note 0.\n")
    push_commit(a, "The first note again")
    # This clone has nothing but the remote, and that knows what these documents give.
    second = team.clone("second")
    assert stages_run(run_ci(second)) == ["prepare", "generate_samples"]
    assert "From the run cache: train." in second.read(".nima/ci/comment.md")
    assert "NEVER SEEN" not in second.read("models/model/weights")
