"""A recorded run is run again in a clean clone: equal, different, or not to be verified, and the reasons."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import typer
from conftest import Project
from typer.testing import CliRunner

from nima import experiment_commands
from nima.verification.verification import Verdict, as_json, markdown, verify
from nima.workspace.errors import UserError

# DRIFT stands for whatever makes another machine compute something else.
TRAIN = """
import json, os, pathlib
import numpy as np
import pyarrow as pa, pyarrow.parquet as pq
from safetensors.numpy import save_file

drift = float(os.environ.get("DRIFT", "0"))
words = pathlib.Path("data/words.txt").read_text().split()
if os.environ.get("BROKEN"):
    raise SystemExit("out of memory")
for place in ("metrics", "models/model", "plots"):
    pathlib.Path(place).mkdir(parents=True, exist_ok=True)
weights = {"weight": np.arange(4, dtype="f4") + np.float32(drift), "bias": np.zeros(2, "f4")}
save_file(weights, "models/model/model.safetensors")
pathlib.Path("models/model/config.json").write_text('{"width": 4}')
metrics = {"test": {"loss": 2.5 + drift, "accuracy": 0.5}, "words": len(words)}
pathlib.Path("metrics/train.json").write_text(json.dumps(metrics))
rows = [{"word": word, "score": drift if word == "b" else 0.0} for word in words]
pq.write_table(pa.Table.from_pylist(rows), "rows.parquet")
pathlib.Path("plots/loss.tsv").write_text(f"step\\tloss\\n1\\t3.0\\n2\\t{2.5 + drift}\\n")

facts = {"torch": os.environ.get("TORCH", "2.13.0"), "gpus": [], "threads": os.environ.get("NIMA_THREADS")}
pathlib.Path("metrics/environment.json").write_text(json.dumps({"train": facts}))
"""
PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p data && tr ' ' '\\n' < raw.txt > data/words.txt
    deps: [raw.txt]
    outs: [data/words.txt]
  train:
    cmd: python train.py
    deps: [train.py, data/words.txt]
    params: [lr]
    outs: [models/model, rows.parquet, plots]
    metrics: [metrics/train.json: {cache: false}]
"""
OUTPUTS = ["data/words.txt", "metrics/train.json", "models/model", "plots", "rows.parquet"]


def create(project: Project, folder: str = ".") -> None:
    place = project.path / folder
    place.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "train.py": TRAIN,
        "dvc.yaml": PIPELINE,
        "params.yaml": "lr: 0.1\n",
        "raw.txt": "a b c\n",
        ".gitignore": ".nima/\n.env\n",
    }.items():
        (place / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("recorded") / "project")
    create(project)
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    project.dvc("config", "core.analytics", "false")
    project.dvc("repro", "-q")
    project.commit("A recorded run")
    return project


@pytest.fixture
def project(recorded: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: None) -> Project:
    project = recorded.copy_to(tmp_path / "project")
    for key in [key for key in os.environ if key.startswith(("DVC_", "GIT_", "NIMA_"))]:
        monkeypatch.delenv(key)
    for key, value in project.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PATH", os.defpath)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(project.path)
    return project


def run(project: Project, revision: str = "HEAD", stage: str | None = None) -> Verdict:
    return verify(project.path, revision, stage, keep=False)


def unequal(verdict: Verdict) -> list[str]:
    return sorted(output.path for output in verdict.outputs if not output.is_equal)


def told(verdict: Verdict, path: str) -> str:
    """What is said of an output that differs."""
    (output,) = (output for output in verdict.outputs if output.path == path)
    return "; ".join([*([output.note] if output.note else []), *(found.text for found in output.differences)])


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (status.st_mode, status.st_size, status.st_mtime_ns if stat.S_ISREG(status.st_mode) else 0)
        for path in sorted(folder.rglob("*"))
        for status in [path.lstat()]
    }


def test_a_run_that_comes_out_again_is_equal_and_the_workspace_is_not_touched(
    project: Project, tmp_path: Path
) -> None:
    (project.path / ".nima/packages/kit-1").mkdir(parents=True)
    (project.path / ".nima/packages/kit-1/kit.whl").write_text("kit", encoding="utf-8")
    before = everything(project.path)
    verdict = run(project)
    assert verdict.is_equal
    assert sorted(output.path for output in verdict.outputs) == OUTPUTS
    assert (verdict.inputs, verdict.versions, verdict.notes) == ([], [], [])
    assert everything(project.path) == before
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "HEAD (" in markdown(verdict).splitlines()[0]
    assert markdown(verdict).splitlines()[0].endswith("5 of 5 outputs are equal")


def test_what_differs_is_said_by_its_kind_and_amount(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFT", "0.25")
    verdict = run(project)
    assert unequal(verdict) == OUTPUTS[1:]
    assert told(verdict, "metrics/train.json") == "test.loss 2.5 → 2.75 (+0.25)"
    assert told(verdict, "models/model") == "1 of 2 tensors differ, by 0.25 at most (weight)"
    assert told(verdict, "rows.parquet") == "1 of 3 rows differ"
    assert told(verdict, "plots") == "1 of 3 lines differ"
    content = json.loads(as_json(verdict))
    assert content["equal"] is False
    model = next(output for output in content["outputs"] if output["path"] == "models/model")
    assert model["differences"][0]["file"] == "model.safetensors"
    assert model["differences"][0]["figures"]["largest_difference"] == 0.25
    metrics = next(output for output in content["outputs"] if output["path"] == "metrics/train.json")
    assert metrics["differences"][0]["figures"]["keys"]["test.loss"]["difference"] == 0.25
    assert "- model.safetensors: 1 of 2 tensors differ, by 0.25 at most (weight)\n" in markdown(verdict)


def test_a_lock_that_was_tampered_with_is_found(project: Project) -> None:
    lock = project.read("dvc.lock").splitlines()
    for number, line in enumerate(lock):
        if line.strip() in ("- path: metrics/train.json", "- path: rows.parquet"):
            lock[number + 2] = "      md5: 0123456789abcdef0123456789abcdef"
    (project.path / "dvc.lock").write_text("\n".join(lock) + "\n", encoding="utf-8")
    project.commit("Another lock")
    verdict = run(project)
    assert unequal(verdict) == ["metrics/train.json", "rows.parquet"]
    assert told(verdict, "metrics/train.json") == "as the commit has it: only dvc.lock is another"
    assert told(verdict, "rows.parquet").startswith("the recorded content is in no cache")


def test_an_experiment_is_verified_by_its_name(project: Project) -> None:
    project.dvc("exp", "run", "--temp", "-n", "other", "-S", "lr=0.2")
    verdict = run(project, "other")
    assert verdict.is_equal
    assert verdict.commit != project.run("git", "rev-parse", "HEAD").stdout.strip()
    assert markdown(verdict).startswith(f"# other ({verdict.commit[:7]}): 5 of 5")


def test_a_single_stage_takes_its_recorded_inputs_and_never_the_outputs(project: Project) -> None:
    lock = project.read("dvc.lock")
    words = lock.split("path: data/words.txt\n      hash: md5\n      md5: ")[1][:32]
    cache = project.path / ".dvc/cache/files/md5"
    for path in [
        path for path in cache.rglob("*") if path.is_file() and path.parent.name + path.name != words
    ]:
        path.unlink()
    verdict = run(project, stage="train")
    assert verdict.is_equal
    assert [output.path for output in verdict.outputs] == [
        "metrics/train.json",
        "models/model",
        "plots",
        "rows.parquet",
    ]
    assert "Running stage" not in markdown(verdict)


def test_inputs_come_from_the_remote_when_the_cache_has_them_not(project: Project, tmp_path: Path) -> None:
    project.dvc("remote", "add", "-d", "storage", "../storage")
    project.dvc("push")
    project.commit("A remote beside the project")
    shutil.rmtree(project.path / ".dvc/cache")
    assert run(project, stage="train").is_equal
    assert not (project.path / ".dvc/cache").exists()


def test_what_differs_is_looked_up_in_the_remote(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.dvc("remote", "add", "--local", "-d", "storage", "../storage")
    project.dvc("push")
    shutil.rmtree(project.path / ".dvc/cache")
    monkeypatch.setenv("DRIFT", "0.25")
    verdict = run(project)
    assert told(verdict, "models/model") == "1 of 2 tensors differ, by 0.25 at most (weight)"
    assert told(verdict, "rows.parquet") == "1 of 3 rows differ"


def test_data_that_is_nowhere_is_named_before_anything_runs(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project.path / ".dvc/cache")
    with pytest.raises(UserError) as caught:
        run(project, stage="train")
    lines = str(caught.value).splitlines()
    assert lines[0] == "data/words.txt: neither in DVC's cache nor fetched from its remote"
    assert lines[1].startswith("no remote is set: ")
    assert "Running stage" not in capfd.readouterr().err
    assert run(project).is_equal, "the whole pipeline needs none of it"


def test_a_damaged_input_is_not_taken_for_a_recorded_one(project: Project) -> None:
    for path in (project.path / ".dvc/cache/files/md5").rglob("*"):
        if path.is_file() and path.read_bytes() == b"a\nb\nc\n":
            path.chmod(0o644)
            path.write_text("a\nb\nd\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"damaged, its MD5 is [0-9a-f]{32}: remove it"):
        run(project, stage="train")


def test_data_in_a_dvc_file_is_an_input(project: Project) -> None:
    project.run("git", "rm", "-q", "--cached", "raw.txt")
    project.dvc("add", "raw.txt")
    project.dvc("repro", "-q")
    project.commit("The raw text in DVC")
    assert run(project).is_equal
    assert run(project, stage="prepare").is_equal
    shutil.rmtree(project.path / ".dvc/cache")
    with pytest.raises(UserError, match=r"^raw.txt: neither in DVC's cache "):
        run(project)


def test_what_is_not_committed_is_not_verified_and_that_is_said(project: Project) -> None:
    (project.path / "raw.txt").write_text("a b c d\n", encoding="utf-8")
    verdict = run(project)
    assert verdict.is_equal
    assert verdict.notes == [
        "1 file is changed and not committed: the commit was verified, not the workspace"
    ]


def test_a_commit_with_other_inputs_than_the_recorded_run_says_so(project: Project) -> None:
    (project.path / "raw.txt").write_text("a b c d\n", encoding="utf-8")
    (project.path / "params.yaml").write_text("lr: 0.2\n", encoding="utf-8")
    project.commit("Changed, but not run")
    verdict = run(project)
    assert verdict.inputs == ["raw.txt", "params.yaml: lr"]
    assert "data/words.txt" in unequal(verdict)
    assert told(verdict, "data/words.txt") == "0 of 3 lines differ, 3 → 4 lines"


def test_other_versions_and_settings_than_the_records_are_told(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH", "2.14.0")
    (project.path / ".env").write_text("NIMA_THREADS=3\n", encoding="utf-8")
    monkeypatch.delenv("NIMA_THREADS")
    verdict = run(project)
    assert [change.text for change in verdict.versions] == [
        "torch: 2.13.0 recorded, 2.14.0 now (train)",
        "threads: 1 recorded, 3 now (train)",
    ]
    assert "- torch: 2.13.0 recorded, 2.14.0 now (train)\n" in markdown(verdict)
    assert json.loads(as_json(verdict))["versions"][0] == {
        "name": "torch",
        "recorded": "2.13.0",
        "now": "2.14.0",
        "stages": ["train"],
    }
    project.run("git", "rm", "-q", "metrics/environment.json")
    project.commit("Without versions")
    verdict = run(project)
    assert verdict.versions == []
    assert verdict.notes[0].startswith("metrics/environment.json: the commit has nothing on train, so ")


def test_packages_are_taken_from_the_workspace_and_new_ones_stay_out_of_it(project: Project) -> None:
    packages = project.path / ".nima/packages/kit-1"
    packages.mkdir(parents=True)
    (packages / "kit.whl").write_text("kit", encoding="utf-8")
    text = (
        project.read("dvc.yaml")
        .replace("< raw.txt >", "< $NIMA_CACHE/kit-1/kit.whl >")
        .replace("cmd: mkdir -p data", "cmd: mkdir -p data $NIMA_CACHE/new && touch $NIMA_CACHE/new/file")
    )
    (project.path / "dvc.yaml").write_text(text, encoding="utf-8")
    project.run("env", f"NIMA_CACHE={packages.parent}", "dvc", "repro", "-q")
    project.commit("From a package")
    shutil.rmtree(packages.parent / "new")
    assert run(project).is_equal
    assert sorted(path.name for path in packages.parent.iterdir()) == ["kit-1"]


def test_a_project_below_the_top_of_its_repository(project: Project) -> None:
    place = project.path / "below"
    create(project, "below")
    below = Project(place)
    below.dvc("init", "-q", "--subdir")
    below.dvc("repro", "-q")
    project.commit("A project in a folder")
    assert run(below).is_equal


def test_a_cache_and_a_remote_elsewhere_are_found_as_the_workspace_finds_them(
    project: Project, tmp_path: Path
) -> None:
    shutil.move(project.path / ".dvc/cache", tmp_path / "cache")
    project.dvc("cache", "dir", "--local", str(tmp_path / "cache"))
    before = everything(tmp_path / "cache")
    assert run(project, stage="train").is_equal
    assert everything(tmp_path / "cache") == before


def test_a_shallow_clone_and_a_detached_head_can_be_verified(project: Project, tmp_path: Path) -> None:
    (project.path / "aside.txt").write_text("x\n", encoding="utf-8")
    project.commit("Something else")
    url = f"file://{project.path}"
    project.run("git", "clone", "-q", "--depth", "1", url, str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.run("git", "checkout", "-q", "--detach")
    assert run(clone).is_equal
    with pytest.raises(UserError, match="git fetch --unshallow"):
        run(clone, "HEAD~1")


# ----------------------------------------------------------------------------------------- not to be verified


def test_a_stage_that_fails_can_t_be_verified(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(
        UserError, match=r"^dvc repro failed in the clean clone: failed to reproduce 'train': [^\n]+$"
    ):
        run(project)


def test_an_unknown_revision_or_stage_is_one_line(project: Project) -> None:
    with pytest.raises(UserError, match=r"^nothing-like-it: [^\n]+$"):
        run(project, "nothing-like-it")
    with pytest.raises(UserError, match=r"^HEAD: dvc.lock records no run of trian; did you mean 'train'\?$"):
        run(project, stage="trian")


def test_a_commit_without_a_lock_records_nothing(project: Project) -> None:
    project.run("git", "rm", "-q", "--cached", "dvc.lock")
    project.run("git", "commit", "-qm", "No lock")
    with pytest.raises(UserError, match=r"^no dvc.lock in that commit, "):
        run(project)


def test_without_git_there_is_nothing_to_verify(project: Project) -> None:
    shutil.rmtree(project.path / ".git")
    with pytest.raises(UserError, match=r": not in Git, [^\n]+$"):
        run(project)


# ----------------------------------------------------------------------------------------- the command


def command(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(experiment_commands.verify)
    done = CliRunner().invoke(app, arguments)
    if isinstance(done.exception, UserError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.stdout if done.exit_code < 2 else done.stderr


def test_the_command_exits_with_0_1_and_2(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = project.path / "data"
    monkeypatch.chdir(place)
    code, output = command("--json", str(tmp_path / "verdict.json"))
    assert (code, output.splitlines()[-1][:9]) == (0, "| train |")
    assert json.loads((tmp_path / "verdict.json").read_text())["equal"] is True
    monkeypatch.setenv("DRIFT", "0.25")
    code, output = command("HEAD", "--stage", "train", "--keep")
    assert code == 1
    assert "## metrics/train.json" in output
    (kept,) = (tmp_path / "tmp").iterdir()
    assert (kept / "clone/models/model/model.safetensors").is_file()
    assert command("nothing-like-it")[0] == 2
    monkeypatch.setattr("nima.verification.verification.verify", lambda *_, **__: 1 / 0)
    code, output = command()
    assert code == 2, "a bug is no difference"
    assert "ZeroDivisionError" in output
