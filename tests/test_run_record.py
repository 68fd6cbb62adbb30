"""The plain record of a run: what is in it, what never is, and that it is kept whatever happens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nima.monitoring import run_record
from nima.monitoring.run_record import (
    SCHEMA,
    RunRecord,
    environment,
    git_state,
    input_hashes,
    label_of,
    parameter_counts,
    records_in,
    slug,
    tags_of,
    versions,
    where,
)
from nima.workspace import runtime
from nima.workspace.inputs import contents
from nima.workspace.params import Params, params_file

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(os.environ):
        if key.startswith(("DVC_", "NIMA_", "GIT_")):
            monkeypatch.delenv(key)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "abc"
    folder.mkdir(parents=True)
    return folder


def content(record: RunRecord) -> dict[str, Any]:
    return json.loads(record.path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


# --------------------------------------------------------------------------------------- one run, one record


def test_every_process_of_a_run_is_a_session_of_its_one_record(tmp_path: Path, run_folder: Path) -> None:
    records = tmp_path / "records"
    first = RunRecord.open(records, run_folder, "gpt-tiny-notes")
    first.begin_session(params={"training": {"lr": 0.01}})
    assert content(first)["status"] == "running"

    second = RunRecord.open(records, run_folder, "gpt-tiny-notes")  # the first was killed
    second.begin_session()
    second.end_session("interrupted", {"reason": "stopped by SIGTERM"})
    assert content(second)["status"] == "interrupted"

    third = RunRecord.open(records, run_folder, "gpt-tiny-notes")
    third.begin_session()
    assert (content(third)["status"], content(third)["ended"]) == ("running", None)
    third.end_session("finished", {"last_step": 60}, metrics={"best": {"step": 45}})
    (found,) = records_in(records)
    assert found == content(third)
    assert [session["outcome"] for session in found["sessions"]] == ["killed", "interrupted", "finished"]
    assert found["sessions"][1]["reason"] == "stopped by SIGTERM"
    assert found["sessions"][2]["last_step"] == 60
    assert found["params"] == {"training": {"lr": 0.01}}
    assert found["metrics"] == {"best": {"step": 45}}
    assert (found["schema"], found["status"]) == (SCHEMA, "finished")
    assert found["ended"] >= found["started"]


def test_records_have_names_of_their_own_and_sort_by_time(tmp_path: Path) -> None:
    made = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        record = RunRecord.open(tmp_path / "records", folder, "gpt tiny/Ünïcode: α" + "x" * 200)
        record.begin_session(number=number)
        made.append(record)
    assert len({record.path for record in made}) == 3
    assert [found["number"] for found in records_in(tmp_path / "records")] == [0, 1, 2]
    assert all(record.content["name"].startswith("gpt tiny/Ünïcode: α") for record in made)
    assert RunRecord.open(tmp_path / "records", tmp_path, "label", "my name").content["name"] == "my name"


def test_a_record_that_is_lost_or_damaged_is_begun_anew(tmp_path: Path, run_folder: Path) -> None:
    for damage in (
        Path.unlink,
        lambda path: path.write_text("{"),
        lambda path: path.write_text('{"schema": 99}'),
    ):
        record = RunRecord.open(tmp_path / "records", run_folder, "label")
        record.begin_session()
        damage(record.path)
        again = RunRecord.open(tmp_path / "records", run_folder, "label")
        again.begin_session()
        assert len(content(again)["sessions"]) == 1


def test_a_disk_that_refuses_the_record_stops_nothing(tmp_path: Path, run_folder: Path) -> None:
    (tmp_path / "records").write_text("a file where a folder should be")
    record = RunRecord.open(tmp_path / "records", run_folder, "label")
    record.begin_session()
    record.end_session("finished", {})
    assert records_in(tmp_path / "records") == []
    assert not (run_folder / "record").exists()


def test_a_reader_needs_no_more_than_python(tmp_path: Path, run_folder: Path) -> None:
    record = RunRecord.open(tmp_path / "records", run_folder, "label")
    record.begin_session(versions={}, loss=float("nan"), metrics={"loss": float("inf")})
    command = [sys.executable, "-m", "json.tool", str(record.path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "NaN" not in shown
    assert list(json.loads(shown))[:3] == ["schema", "name", "status"]
    assert list(json.loads(shown)).index("metrics") < list(json.loads(shown)).index("versions")


# ------------------------------------------------------------------------------------------------ its facts


def params() -> Params:
    return params_file.load(ROOT / "params.yaml")


def test_a_run_is_called_by_preset_sources_and_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert label_of(params(), runtime.load(tmp_path)) == "gpt-tiny-aws-cli+guides+1-more"
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-daisy")
    assert label_of(params(), runtime.load(tmp_path)) == "gpt-tiny-aws-cli+guides+1-more-puffy-daisy"
    assert tags_of(params()) == ["gpt-tiny", "muon", "bf16", "aws-cli", "guides", "questions"]


def test_secrets_never_enter_a_record() -> None:
    settings = {
        "NIMA_DEVICE": "cpu",
        "NIMA_HUB_TOKEN": "hf_secret",
        "NIMA_API_KEY": "secret",
        "NIMA_CACHE": "s3://me:word@host/cache",
        "WANDB_API_KEY": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "OMP_NUM_THREADS": "2",
        "HOME": "/home/me",
    }
    assert environment(settings) == {
        "NIMA_CACHE": "s3://***@host/cache",
        "NIMA_DEVICE": "cpu",
        "OMP_NUM_THREADS": "2",
    }


def git(*arguments: str) -> None:
    who = ("-c", "user.name=N", "-c", "user.email=n@example.org")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


def test_the_commit_the_branch_and_what_is_not_committed_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert git_state() is None
    git("init", "-q", "-b", "main")
    assert git_state() is None, "nothing is committed yet"
    (folder / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "One")
    clean = git_state()
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert (clean["branch"], clean["dirty"], clean["changed"]) == ("main", False, [])
    (folder / "a").write_text("2")
    (folder / "b").touch()
    dirty = git_state()
    assert dirty is not None
    assert (dirty["dirty"], dirty["changed"], dirty["num_changed"]) == (True, [" M a", "?? b"], 2)
    monkeypatch.setenv("PATH", "")
    assert git_state() is None, "no git on the machine"


def test_inputs_have_a_hash_for_each_folder_one_for_the_code_and_one_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "data/tokens/a": "1",
        "data/tokens/b": "22",
        "data/splits/c": "3",
        "src/x.py": "4",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    places = [Path("data/tokens"), Path("data/splits"), Path("src/x.py")]
    before = input_hashes(contents(places))
    assert list(before) == ["sha256", "code", "data/splits", "data/tokens"]
    assert (before["data/tokens"]["files"], before["data/tokens"]["bytes"]) == (2, 3)
    Path("data/tokens/a").write_text("9")
    after = input_hashes(contents(places))
    assert [place for place in before if before[place] != after[place]] == ["sha256", "data/tokens"]


def test_versions_are_those_of_the_installed_packages() -> None:
    import numpy as np
    import rich
    import torch

    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["numpy"] == np.__version__
    assert found["torch"] == torch.__version__
    assert "ruamel-yaml" in found
    assert "typing-extensions" in found
    assert rich.__name__ in found


def test_parameters_are_counted_in_total_trained_and_by_layer() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(7, 2), "blocks": nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)])}
    )
    model["embedding"].weight.requires_grad_(False)
    assert parameter_counts(model) == {
        "total": 14 + 9 + 8,
        "trainable": 17,
        "layers": {"embedding": 14, "blocks.0": 9, "blocks.1": 8},
    }


def test_where_a_temporary_run_works_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert where()["temporary"] is False
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert where()["temporary"] is False
    monkeypatch.setenv("DVC_ROOT", str(tmp_path.parent))
    monkeypatch.setenv("DVC_EXP_NAME", "aside")
    assert (where()["temporary"], where()["experiment"]) == (True, "aside")


@pytest.mark.parametrize(
    ("label", "name"), [("a b/c", "a-b-c"), ("", "run"), ("../..", "run"), ("ä+b.c", "ä+b.c")]
)
def test_labels_become_names_of_files(label: str, name: str) -> None:
    assert slug(label) == name


def test_git_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", 30)

    monkeypatch.setattr(run_record.subprocess, "run", too_slow)
    assert git_state() is None
