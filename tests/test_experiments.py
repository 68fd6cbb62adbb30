"""Experiments as people run them, against real DVC: names, grids, the queue and what kills its workers."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Project
from tiny_project import create_tiny_project

from nima.experiments import experiments
from nima.experiments.experiments import Request, run, wait
from nima.workspace.errors import ParamsError, UserError

pytestmark = pytest.mark.usefixtures("warm")
PYTHON = sys.executable  # the true one


@pytest.fixture(scope="module")
def first_result(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return create_tiny_project(tmp_path_factory.mktemp("tiny") / "project")


@pytest.fixture
def project(first_result: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = first_result.copy_to(tmp_path / "project")
    for key in [key for key in os.environ if key.startswith(("DVC_", "GIT_", "NIMA_"))]:
        monkeypatch.delenv(key)
    for key, value in project.env.items():
        monkeypatch.setenv(key, value)
    # Commands find this environment's programs by themselves.
    monkeypatch.setenv("PATH", os.defpath)
    return project


@pytest.fixture
def no_workers_left(project: Project) -> Iterator[None]:
    yield
    for process in processes_of(project):
        process.kill()


def processes_of(project: Project, word: str = "") -> list[psutil.Process]:
    """What works in the project's folder (workers, DVC, stages) and has this word in its command line."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        place, command = process.info["cwd"], process.info["cmdline"] or []
        is_here = place and process.pid != os.getpid() and Path(place).is_relative_to(project.path)
        if is_here and (not word or word in command):
            found.append(process)
    return found


def request(*settings: str, **fields: object) -> Request:
    given = {"targets": (), "name": None, "message": None, "place": "workspace", "jobs": 1} | fields
    return Request(settings=settings, **given)  # type: ignore[arg-type]


def experiment_names(project: Project) -> list[str]:
    return project.dvc("exp", "list", "--name-only").stdout.split()


def test_a_run_gets_a_readable_name_a_message_and_a_row(project: Project) -> None:
    (outcome,) = run(project.path, request("training.lr=1e-5"))
    assert re.fullmatch(r"gpt-tiny-technical-lr1e-05-[0-9a-f]{4}", outcome.name)
    assert experiment_names(project) == [outcome.name]
    assert "lr: 1e-05" in project.read("params.yaml")
    commit = experiments.commits(project.path)[outcome.name]
    subject = project.run("git", "log", "-1", "--format=%s", commit).stdout
    assert subject == "nima exp run training.lr=1e-5\n"
    assert (outcome.state, outcome.changed) == ("done", {"training.lr": 1e-5})
    assert outcome.metrics == {"test.bits_per_byte": 2e-5, "test.loss": 1e-5, "test.accuracy": 0.5}
    head, _, row = (
        [cell.strip() for cell in line.split("|")] for line in experiments.table([outcome]).split("\n")
    )
    assert head[1:-1] == ["experiment", "state", "training.lr", *outcome.metrics]
    assert row[1:-1] == [outcome.name, "done", "1e-05", "0.0000", "0.0000", "0.5000"]


def test_a_run_that_fails_is_a_failed_row_without_figures(project: Project) -> None:
    (outcome,) = run(project.path, request("training.lr=0.5", place="temp"))
    assert (outcome.state, outcome.metrics) == ("failed", {})
    assert experiment_names(project) == []


def test_metrics_of_a_stage_that_did_not_run_are_not_shown_as_the_experiments(project: Project) -> None:
    text = project.read("dvc.yaml").replace("    metrics: [metrics/evaluate.json: {cache: false}]\n", "")
    (project.path / "score.sh").write_text('cp model.bin metrics/copy.bin\necho \'{"test": {"loss": 1}}\'\n')
    later = (
        "  evaluate:\n    cmd: sh score.sh > metrics/evaluate.json\n    deps: [model.bin]\n"
        "    outs: [metrics/copy.bin]\n    metrics: [metrics/evaluate.json: {cache: false}]\n"
    )
    (project.path / "dvc.yaml").write_text(text + later, encoding="utf-8")
    project.dvc("repro")
    project.commit("Another stage")
    (first,) = run(project.path, request("training.lr=0.03", place="temp"))
    (second,) = run(project.path, request("training.lr=0.04", place="temp", targets=["train"]))
    assert first.metrics == {"test.loss": 1}
    assert second.metrics == {}


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("training.lr=-1", "-S training.lr=-1: training.lr: expected greater than 0, found -1"),
        ("training.lr=fast", "-S training.lr=fast: training.lr: expected number, found 'fast'"),
        ("training.lrr=1", "-S training.lrr=1: unknown key training.lrr; did you mean 'lr'?"),
        (
            "model.num_layer=1",
            "-S model.num_layer=1: unknown key model.num_layer; did you mean 'num_layers'?",
        ),
        ("prepare.sources.0.weight=2", "-S prepare.sources.0.weight=2: prepare.sources is a list: give it "),
        ("training.lr", "-S training.lr: expected KEY=VALUE: "),
        ("training.lr=choice(1,2)", "-S training.lr=choice(1,2): a grid is for the queue: add --queue"),
        ("training.lr=interval(1,2)", "-S training.lr=interval(1,2): expected KEY=VALUE: "),
    ],
)
def test_a_wrong_setting_is_one_line_and_starts_nothing(project: Project, setting: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        run(project.path, request(setting))
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)
    assert experiment_names(project) == []


def test_one_wrong_value_in_a_grid_keeps_all_of_it_out_of_the_queue(project: Project) -> None:
    with pytest.raises(ParamsError) as caught:
        run(project.path, request("training.lr=choice(0.01,-1,0)", "split.seed=3", place="queue"))
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        "-S training.lr=-1 split.seed=3",
        "-S training.lr=0 split.seed=3",
    ]
    assert "Queued" not in project.dvc("queue", "status").stdout


def test_a_key_that_the_schema_knows_needs_no_plus(project: Project) -> None:
    (outcome,) = run(project.path, request("model.num_layers=2", place="temp"))
    assert outcome.changed == {"model.num_layers": 2}
    assert "num_layers" not in project.read("params.yaml")


def test_what_was_edited_by_hand_is_in_the_name(project: Project) -> None:
    project.set_params({"training": {"keep": "last"}})
    (outcome,) = run(project.path, request(place="temp"))
    assert outcome.name.startswith("gpt-tiny-technical-keep-last-")


def test_a_name_that_exists_or_that_git_refuses_stops_before_the_run(project: Project) -> None:
    run(project.path, request("training.lr=0.02", name="mine"))
    for name in ("mine", "a/b", "a..b", "with space"):
        with pytest.raises(UserError, match=f"^-n {re.escape(name)}: [^\n]+$"):
            run(project.path, request("training.lr=0.03", name=name))
    assert experiment_names(project) == ["mine"]


def test_a_file_that_the_copy_would_lack_stops_a_temporary_run_only(project: Project) -> None:
    (project.path / "data/new.md").write_text("New text.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^data/new.md: untracked, but in data, an input of train: "):
        run(project.path, request(place="temp"))
    (outcome,) = run(project.path, request("training.lr=0.03"))
    assert outcome.state == "done"


def kill_both_workers(project: Project, killed: list[int], then: Path) -> None:
    """When two experiments run: the first worker dies with all that it started, the second one alone."""
    folder = project.path / ".dvc/tmp/exps/celery"
    for _ in range(1000):
        if len(processes_of(project, "train.py")) == 2:
            killed += [int((folder / f"dvc-exp-worker-{number}.pid").read_text()) for number in (1, 2)]
            os.killpg(os.getpgid(killed[0]), signal.SIGKILL)
            os.kill(killed[1], signal.SIGKILL)
            break
        time.sleep(0.1)
    then.touch()


@pytest.mark.usefixtures("no_workers_left")
def test_killed_workers_cost_at_most_their_own_experiment(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", PYTHON)
    monkeypatch.setenv("UNTIL", str(tmp_path / "killed"))
    killed: list[int] = []
    killer = threading.Thread(target=kill_both_workers, args=(project, killed, tmp_path / "killed"))
    killer.start()
    rates = "training.lr=choice(0.01,0.02,0.03,0.04,0.5)"
    outcomes = run(project.path, request(rates, name="grid", place="queue", jobs=2))
    killer.join()
    assert len(killed) == 2
    failed = [outcome.name for outcome in outcomes if outcome.state == "failed"]
    assert len(failed) == 2, "the one that was killed with its worker, and the one that fails by itself"
    assert failed[1] == "grid-5"
    printed = capsys.readouterr().err
    assert f"{failed[0]} failed: it was killed, with its worker; the end of what it printed (all: " in printed
    assert "grid-5 failed: exit code 255; " in printed
    assert "0.5 is too much" in printed

    done = {outcome.name: outcome for outcome in outcomes if outcome.state == "done"}
    assert sorted(experiment_names(project)) == sorted(done)
    assert len(done) == 3
    for outcome in done.values():
        assert outcome.metrics["test.loss"] == outcome.changed["training.lr"]
    status = project.dvc("queue", "status").stdout
    assert (status.count("Success"), status.count("Failed"), status.count("Running")) == (3, 2, 0)
    assert not processes_of(project, "train.py")
    assert not list(project.path.glob(".dvc/tmp/exps/tmp*")), "copies of the project are removed"
    assert wait(project.path, 1) == []
