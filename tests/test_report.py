"""The report's page, from real projects and in a real browser."""

import json
import re
from pathlib import Path

import pytest
from conftest import Project
from pages_in_chromium import opened

from nima.reports.report import Story, origin
from nima.repository.revisions import Revision
from nima.results_commands import report
from nima.workspace.errors import UserError


@pytest.fixture(scope="module")
def runs(tried_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with an experiment that has shorter samples."""
    return tried_project.copy_to(tmp_path_factory.mktemp("report") / "project")


def story(project: Project, name: str = "HEAD") -> Story:
    return Story(Revision.find(project.path, name))


def test_the_page_tells_a_revision_to_somebody_who_was_not_there(
    runs: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.path)
    page = tmp_path / "report.html"
    report(["HEAD"], html=page)
    text = page.read_text(encoding="utf-8")
    assert "http:" not in text.replace("http://www.w3.org", "")
    for scheme in ("light", "dark"):
        with opened(page, scheme=scheme) as tab:
            assert tab.locator("svg.chart").count() == 2 + 4 + 1, "data, training, quality"
            assert tab.locator("svg.chart polyline").count() == 5
            assert tab.locator("svg.chart rect").count() >= 6
            for chart in tab.locator("svg.chart").all():
                assert chart.bounding_box()["width"] > 200
            paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 31)"}[scheme]
            headings = tab.locator("h2").all_inner_texts()
            shown = tab.inner_text("body")
    asked = ["trained on", "trained", "well it does", "writes", "cost", "make it again"]
    assert len(headings) == len(asked)
    assert all(word in heading for word, heading in zip(asked, headings, strict=True))
    assert "data/raw/notes" in shown
    assert "bits per byte of xz -9" in shown
    assert re.search(r"model: [\d,]+ parameters, 2 layers, 32 wide, 64 tokens of context", shown)
    assert re.search(r"bits per byte: \d+% less than xz -9 needs", shown)
    assert "The server" in shown
    assert "make repro" in shown


def test_several_revisions_are_compared_then_told_one_by_one(
    runs: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.path)
    report(["HEAD", "brief"], html=tmp_path / "report.html")
    with opened(tmp_path / "report.html") as tab:
        shown = tab.inner_text("body")
        assert tab.locator("section").count() == 2
        assert tab.locator("svg.chart").count() == 2 + 2 * 7
    assert "generate.max_new_tokens\t12\t5" in shown
    assert "noise is unknown" in shown


def test_text_of_a_sample_is_never_html(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = project.path / "data/samples/samples.jsonl"
    record = json.loads(place.read_text(encoding="utf-8").split("\n")[0])
    hostile = {"text": "<script>document.title='x'</script>", "prompt": "<img src=x onerror=alert(1)>"}
    place.unlink()
    place.write_text(json.dumps(record | hostile) + "\n", encoding="utf-8")
    monkeypatch.chdir(project.path)
    report([], html=tmp_path / "report.html")
    with opened(tmp_path / "report.html") as tab:
        assert tab.title() == "Report on workspace"
        assert hostile["text"] in tab.inner_text("body")
        assert tab.locator("img").count() == 0


def test_commands_name_the_commit_and_pull_an_experiment_first(runs: Project) -> None:
    head, brief = story(runs), story(runs, "brief")
    assert f"git checkout {head.revision.commit}" in head.commands
    assert "exp pull" not in head.commands
    lines = brief.commands.splitlines()
    pulled = next(number for number, line in enumerate(lines) if line.startswith("dvc exp pull origin brief"))
    assert lines.index(f"git checkout {brief.revision.commit}") > pulled
    assert "Not committed" in story(runs, "workspace").commands


def test_a_password_in_the_remotes_address_is_not_shown(project: Project) -> None:
    project.run("git", "remote", "add", "origin", "https://me:secret@example.com:8443/team/nima.git")
    revision = Revision.find(project.path, "HEAD")
    assert origin(revision) == "https://example.com:8443/team/nima.git"
    assert "secret" not in story(project).commands


def test_a_revision_without_results_says_so(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = project.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    monkeypatch.chdir(project.path)
    report([first], html=tmp_path / "report.html")
    with opened(tmp_path / "report.html") as tab:
        shown = tab.inner_text("body")
    for words in (
        "No curves are there.",
        "It was not evaluated.",
        "No samples are there.",
        "metrics/train.json",
    ):
        assert words in shown


def test_the_card_has_licences_and_test_figures(
    runs: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.path)
    report(["HEAD"], html=tmp_path / "report.html", card=tmp_path / "README.md")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| notes | data/raw/notes | not declared |" in card
    assert "On the test part" in card
    left = (runs.path / "models/model/README.md").read_text(encoding="utf-8")
    assert left.startswith("---\n")
    assert "On the validation part" in left
    first = runs.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    with pytest.raises(UserError, match=r"^--card: [0-9a-f]+: needs metrics/train\.json"):
        report([first], html=tmp_path / "report.html", card=tmp_path / "README.md")


def test_a_page_that_cannot_be_written_is_named(runs: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.path)
    with pytest.raises(UserError, match=r"^--html no/page\.html: cannot be written: No such file"):
        report(["HEAD"], html=Path("no/page.html"))
