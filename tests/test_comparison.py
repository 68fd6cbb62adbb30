"""Runs side by side: differences, the noise, and what people see of both."""

import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project
from pages_in_chromium import opened

from nima.reports import comparison_views as views
from nima.reports import repeats
from nima.reports.comparison import Comparison, Side, compared, difference, mean_text
from nima.reports.repeats import known_repeats, missing_seeds, repeat
from nima.repository.revisions import Revision
from nima.results_commands import compare
from nima.workspace.errors import UserError

PYTHON = sys.executable  # the true one: what is killed must be the parent of what it started


@dataclass
class Run:
    """A revision's figures, made up."""

    label: str
    metrics: dict[str, float]
    params: dict[str, Any] = field(default_factory=dict)
    samples: list[dict] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def curve(self, name: str) -> list[tuple[float, float]]:
        return [(10.0, self.metrics["evaluate.test.loss"]), (20.0, 1.0)]


def side(label: str, losses: list[float], **others: Any) -> Side:
    runs = [Run(label, {"evaluate.test.loss": loss}, **others) for loss in losses]
    return Side(runs[0], runs)  # type: ignore[arg-type]


def only_row(first: list[float], second: list[float]) -> tuple[str, str]:
    """Difference and verdict of two sides' losses."""
    result = compared([side("a", first), side("b", second)])
    return views.metric_table(result)[1][0][4], views.metric_table(result)[1][0][5]


def test_welchs_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = [2.31, 2.35, 2.29, 2.40], [2.21, 2.30, 2.12]
    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    found = difference(first, second)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_a_true_difference_is_missed_or_invented_as_often_as_the_interval_says() -> None:
    draw = random.Random(3)
    hits = 0
    for _ in range(400):
        first, second = ([draw.gauss(1.0, sigma) for _ in range(4)] for sigma in (0.1, 0.3))
        found = difference(first, second)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([2.0], [1.9], "better, noise unknown"),
        ([2.0], [2.1, 2.2], "worse, noise unknown"),
        ([2.0, 2.01, 1.99], [1.5, 1.51, 1.49], "better, beyond the noise"),
        ([2.0, 2.01, 1.99], [2.5, 2.51, 2.49], "worse, beyond the noise"),
        ([2.0, 2.2, 1.8], [1.9, 2.1, 1.85], "within the noise"),
        ([2.0], [2.0], "equal"),
        ([2.0, 2.0], [2.0, 2.0], "equal"),
    ],
)
def test_verdicts(first: list[float], second: list[float], verdict: str) -> None:
    assert only_row(first, second)[1] == verdict


def test_more_is_better_where_the_metrics_name_says_so() -> None:
    sides = [
        Side(run, [run])  # type: ignore[arg-type]
        for run in (Run("a", {"evaluate.test.accuracy": 0.5}), Run("b", {"evaluate.test.accuracy": 0.6}))
    ]
    assert compared(sides).metrics[0].verdicts()[1] == "better, noise unknown"


def test_several_runs_show_mean_deviation_and_interval() -> None:
    text, _ = only_row([2.0, 2.2], [1.0, 1.4])
    assert re.fullmatch(r"-0\.9 \[-\d.*, [+-]\d.*\]", text)
    assert mean_text([2.0, 2.2]) == "2.1 ± 0.14"


def test_an_unknown_metric_gets_the_nearest_known() -> None:
    with pytest.raises(
        UserError, match=r"--metric test\.los: no revision has it; did you mean 'test\.loss'\?"
    ):
        compared([side("a", [1.0]), side("b", [2.0])], ["test.los"])
    assert [row.name for row in compared([side("a", [1.0])], ["test.loss"]).metrics] == ["evaluate.test.loss"]


def test_only_params_that_differ_are_listed() -> None:
    sides = [
        side("a", [1.0], params={"training.lr": 0.1, "training.seed": 1, "model.old": None}),
        side("b", [1.0], params={"training.lr": 0.2, "training.seed": 1}),
    ]
    assert compared(sides).params == [("training.lr", ["0.1", "0.2"]), ("model.old", ["null", "—"])]


def test_markdown_cells_hold_any_sample() -> None:
    text = "a | b\n`<script>` **x** \\"
    record = {"prompt": "p|q", "strategy": "greedy", "text": text}
    written = views.markdown(compared([side("a", [1.0], samples=[record]), side("b", [1.0])]))
    assert "| a \\| b<br>\\`&lt;script>\\` \\*\\*x\\*\\* \\\\ | — |" in written
    tables = [line for line in written.splitlines() if line.startswith("|")]
    assert all(re.search(r"(?<!\\)\|$", line) for line in tables)


def test_a_long_curve_is_thinned_out_and_keeps_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "curve", lambda self, name: [(float(step), 1.0) for step in range(1, 1001)])
    _, rows = views.curve_table(compared([side("a", [1.0])]), "validation/loss")
    assert len(rows) <= views.MAX_CURVE_ROWS + 1
    assert rows[-1][0] == "1000"


# ---------------------------------------------------------------------------------------- a real project


@pytest.fixture(scope="module")
def runs(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with an experiment of a short training."""
    project = finished_project.copy_to(tmp_path_factory.mktemp("comparison") / "project")
    changes = ("-S", "training.max_steps=8", "-S", "training.validate_every_steps=4")
    project.dvc("exp", "run", "--temp", "-n", "short", *changes)
    return project


@pytest.fixture
def there(runs: Project, monkeypatch: pytest.MonkeyPatch, warm: None) -> Project:
    """The project, with this process in its folder and environment."""
    monkeypatch.chdir(runs.path / "docs")
    for key in [key for key in os.environ if key.startswith(("DVC_", "GIT_", "NIMA_"))]:
        monkeypatch.delenv(key)
    for key, value in runs.env.items():
        monkeypatch.setenv(key, value)
    return runs


def comparison_of(project: Project, *names: str) -> Comparison:
    found = [Revision.find(project.path, name) for name in names]
    return compared([Side(revision, [revision, *known_repeats(revision).values()]) for revision in found])


def test_one_run_each_is_compared_and_the_noise_is_unknown(
    there: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(["HEAD", "short"], md=tmp_path / "c.md", html=tmp_path / "c.html")
    printed = capsys.readouterr().out
    assert re.search(r"training\.max_steps +60 +8", printed)
    assert re.search(r"evaluate\.test\.loss .* worse, noise unknown", printed)
    assert "One run each: the noise is unknown. --seeds 3" in printed
    assert "\x1b" not in printed
    written = (tmp_path / "c.md").read_text(encoding="utf-8")
    assert "| training.max_steps | 60 | 8 |" in written
    assert re.search(r"\| 60 \| \d\.\d+ \| — \|", written), "the longer curve goes on alone"

    with opened(tmp_path / "c.html") as tab:
        assert tab.locator("svg.chart").count() == 2
        assert tab.locator("svg.chart polyline").count() == 4
        box = tab.locator("svg.chart polyline").first.bounding_box()
        assert box["width"] > 100
        assert "noise is unknown" in tab.inner_text("body")


def test_seeds_are_real_experiments_that_leave_the_workspace_alone(
    there: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = there.outputs(), there.read("params.yaml"), there.run("git", "status", "--porcelain").stdout
    compare(["short", "short"], seeds=2, metric=["test.loss"])
    assert "of 1, training.seed 2" in capsys.readouterr().err
    state = there.outputs(), there.read("params.yaml"), there.run("git", "status", "--porcelain").stdout
    assert state == before
    short = Revision.find(there.path, "short")
    (repeated,) = known_repeats(short).values()
    assert repeated.params["training.seed"] == 2
    assert repeated.params["training.max_steps"] == 8
    assert repeated.metrics["evaluate.test.loss"] != short.metrics["evaluate.test.loss"]
    assert repeated.absent == []
    for stage in ("prepare", "tokenize", "split"):
        assert repeated.timing[stage] == short.timing[stage], "data stages are not run again"
    assert repeated.timing["train"] != short.timing["train"]
    assert repeated.name in there.dvc("exp", "list", "-A", "--name-only").stdout
    assert not list((there.path / ".nima" / "repeats").iterdir())

    # A second time nothing runs, and without --seeds the repeats count too.
    compare(["short", "short"], seeds=2)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert comparison_of(there, "short", "short").noise_is_known
    assert "±" in printed.out


def test_a_killed_comparison_loses_nothing_and_goes_on(
    there: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Revision.find(there.path, "short")
    first = missing_seeds(short, 3)[0]
    command = [PYTHON, "-m", "nima.cli", "compare", "short", "short", "--seeds", "3"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    folder = there.path / ".nima" / "repeats" / short.commit[:12]
    while not list(folder.glob("project/.nima/checkpoints/*/step-*/manifest.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    monkeypatch.setattr(repeats.shutil, "rmtree", lambda folder: None)  # its log is looked at below
    repeat(short, 3, print)
    assert "continuing" in (folder / f"seed-{first}.log").read_text(encoding="utf-8")
    assert set(known_repeats(short)) == {2, 3}


def test_a_repeat_that_fails_names_its_seed_and_its_log(
    there: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Revision.find(there.path, "short")
    monkeypatch.setattr(repeats, "SEED", "training.precision")
    monkeypatch.setattr(Revision, "params", {repeats.SEED: 40})
    found = r"^short with training\.precision 41: dvc exp run failed: .+; all of it: .*/seed-41\.log$"
    with pytest.raises(UserError, match=found):
        repeat(short, 2, print)
    assert list((there.path / ".nima" / "repeats").iterdir()), "what ran is kept, to look at and to continue"


def test_what_cannot_be_repeated_is_refused_before_anything_runs(project: Project) -> None:
    with pytest.raises(UserError, match="the workspace is no commit"):
        missing_seeds(Revision.find(project.path, "workspace"), 2)
    project.run("git", "clone", "-q", "--depth", "1", f"file://{project.path}", str(project.path / "shallow"))
    with pytest.raises(UserError, match="git fetch --unshallow"):
        repeat(Revision.find(project.path / "shallow", "HEAD"), 2, print)
