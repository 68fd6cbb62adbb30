"""What a run says, and where it says it."""

import json
from pathlib import Path

import pytest
from forge_server import forge

from nima.ci import __main__ as ci
from nima.ci import comment
from nima.ci.forge import GitHub, GitLab, Laptop, forge_of, without_secrets
from nima.ci.pipeline import Reproduction, StageFailed
from nima.workspace.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# -------------------------------------------------------------------------------------------- the text


def lines_of(chart: str) -> list[list[float]]:
    rows = [line for line in chart.splitlines() if line.startswith("  line ")]
    return [json.loads(row.removeprefix("  line ")) for row in rows]


def test_curves_of_different_length_are_drawn_at_the_same_steps() -> None:
    before = [(10.0, 4.0), (20.0, 2.0), (30.0, 1.0)]
    now = [(10.0, 3.0), (30.0, 2.0), (50.0, 0.0)]
    chart = comment.loss_chart(before, now)
    assert lines_of(chart) == [[4.0, 1.0, 1.0], [3.0, 2.0, 0.0]], "a shorter run keeps its last value"
    assert 'x-axis "step" 10 --> 50' in chart
    assert '"nats per token" 0 --> 4' in chart
    assert chart.endswith("Grey: before, blue: now.")


def test_a_long_curve_is_thinned_and_a_first_one_stands_alone() -> None:
    chart = comment.loss_chart([], [(step, 1 / step) for step in range(1, 1001)])
    (line,) = lines_of(chart)
    assert len(line) == comment.MAX_CURVE_POINTS
    assert (line[0], line[-1]) == (1.0, 0.001)
    assert "Grey" not in chart


@pytest.mark.parametrize("now", [[], [(1.0, 2.0)]])
def test_without_a_curve_there_is_no_chart(now: list) -> None:
    assert comment.loss_chart([(1.0, 3.0), (2.0, 1.0)], now) == ""


def test_an_unchanged_curve_is_not_drawn_and_a_flat_one_has_a_range() -> None:
    flat = [(1.0, 2.0), (2.0, 2.0)]
    assert comment.loss_chart(flat, flat) == ""
    assert '"nats per token" 2 --> 3' in comment.loss_chart([], flat)


def test_the_failing_stage_is_told_with_its_last_lines() -> None:
    done = Reproduction()
    for line in ["Stage 'prepare' is cached", "Running stage 'split':", "fine", "", "Running stage 'train':"]:
        done.note(line)
    for number in range(100):
        done.note(f"line {number} ``` of the log")
    text = comment.failure(StageFailed("failed to reproduce 'train'", done), COMMIT, Laptop({}))
    assert text.startswith("## Nima: no results for 012345678\n\n`failed to reproduce 'train'`\n")
    assert "The stage **train** failed. prepare, split went through, and will not run again." in text
    assert "````text\nline 70 ``` of the log\n" in text, "a fence that the log does not close"
    assert text.endswith("line 99 ``` of the log\n````\n")


def test_a_comment_fits_what_github_takes() -> None:
    text = comment.failure(UserError("x" * 70_000), COMMIT, Laptop({}))
    assert len(text) < 65_536
    assert text.endswith("… cut here\n")


def test_costs_have_units_that_fit() -> None:
    timing = {
        "prepare": {"seconds": 12.34, "peak_memory_bytes": 2_000_000},
        "train": {"seconds": 9000.0, "peak_memory_bytes": 3e9, "tokens_per_second": 12_345.6},
    }
    assert comment.costs(["prepare", "train", "split"], timing)[1] == [
        ["prepare", "12.3 s", "2 MB", ""],
        ["train", "2.5 h", "3,000 MB", "12,346 tokens/s"],
    ]
    assert comment.duration(600) == "10.0 min"


def test_secrets_of_the_environment_are_not_repeated() -> None:
    env = {
        "AWS_SECRET_ACCESS_KEY": "abcd1234efgh",
        "GITHUB_TOKEN": "abcd1234",
        "PIN_KEY": "7",
        "HOME": "/home/me",
    }
    assert (
        without_secrets("abcd1234efgh and abcd1234 in 7 of /home/me", env) == "*** and *** in 7 of /home/me"
    )


# ------------------------------------------------------------------------------------------ the forges


def github(event: dict, folder: Path, **more: str) -> GitHub:
    path = folder / "event.json"
    path.write_text(json.dumps(event))
    known = {
        "GITHUB_REPOSITORY": "team/nima",
        "GITHUB_SERVER_URL": "https://hub",
        "GITHUB_EVENT_PATH": str(path),
    }
    found = forge_of(known | more)
    assert isinstance(found, GitHub)
    return found


def test_a_push_and_a_pull_request_on_github(tmp_path: Path) -> None:
    push = github({"before": COMMIT}, tmp_path, GITHUB_REF_NAME="main", GITHUB_RUN_ID="5")
    assert (push.branch(), push.reference()) == ("main", COMMIT)
    assert push.file_url("abc", "plots/loss.png") == "https://hub/team/nima/blob/abc/plots/loss.png?raw=true"
    assert push.run_url() == "https://hub/team/nima/actions/runs/5"
    request = {"pull_request": {"number": 3, "base": {"sha": COMMIT}}}
    pull = github(request, tmp_path, GITHUB_HEAD_REF="topic", GITHUB_REF_NAME="3/merge")
    assert (pull.branch(), pull.reference()) == ("topic", COMMIT)


def test_a_push_on_github_is_commented_at_the_commit(tmp_path: Path) -> None:
    with forge() as api:
        where = {"GITHUB_API_URL": f"http://127.0.0.1:{api.server_address[1]}"}
        github({"before": COMMIT}, tmp_path, **where).comment("Results", COMMIT)
        assert api.posts == [], "without a token nothing is posted"
        github({"before": COMMIT}, tmp_path, GITHUB_TOKEN="ghs_1", **where).comment("Results", COMMIT)
    ((path, headers, body),) = api.posts
    assert path == f"/repos/team/nima/commits/{COMMIT}/comments"
    assert headers["Authorization"] == "Bearer ghs_1"
    assert body == {"body": "Results"}


@pytest.mark.parametrize(
    ("request_iid", "place", "body"),
    [
        ("8", "merge_requests/8/notes", {"body": "Results"}),
        ("", f"repository/commits/{COMMIT}/comments", {"note": "Results"}),
    ],
)
def test_gitlab_gets_a_note_at_the_merge_request_or_the_commit(
    request_iid: str, place: str, body: dict
) -> None:
    with forge() as api:
        env = {
            "CI_PROJECT_URL": "https://lab/team/nima",
            "CI_API_V4_URL": f"http://127.0.0.1:{api.server_address[1]}/api/v4",
            "CI_PROJECT_ID": "42",
            "CI_MERGE_REQUEST_IID": request_iid,
            "CI_COMMIT_BRANCH": "main",
            "CI_COMMIT_BEFORE_SHA": COMMIT,
            "NIMA_GIT_TOKEN": "glpat_1",
        }
        place_there = forge_of(env)
        assert isinstance(place_there, GitLab)
        assert (place_there.branch(), place_there.reference()) == ("main", COMMIT)
        assert place_there.file_url("abc", "p.png") == "https://lab/team/nima/-/raw/abc/p.png"
        place_there.comment("Results", COMMIT)
    ((path, headers, posted),) = api.posts
    assert path == f"/api/v4/projects/42/{place}"
    assert headers["PRIVATE-TOKEN"] == "glpat_1"
    assert posted == body


def test_a_forge_that_takes_no_comment_costs_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with forge(status=403) as api:
        where = {"GITHUB_API_URL": f"http://127.0.0.1:{api.server_address[1]}", "GITHUB_TOKEN": "ghs_1"}
        ci.tell("Results\n", COMMIT, github({}, tmp_path, **where))
    assert (tmp_path / ".nima/ci/comment.md").read_text() == "Results\n"
    told = capsys.readouterr().err
    assert "ci: no comment: " in told
    assert "403" in told
    assert "may the token write comments?" in told


def test_elsewhere_git_knows_the_branch_and_the_comment_stays_a_file() -> None:
    place = forge_of({"HOME": "/home/me"})
    assert type(place) is Laptop
    assert (place.branch(), place.reference(), place.run_url()) == (None, None, None)
    assert not place.discards_unsaved
    place.comment("Results", COMMIT)
