"""The size of a micro-batch that params leave open: how it is found, and where it is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from tiny_models import tiny_config

from nima.processes import ALONE
from nima.training import micro_batch
from nima.training.memory_trials import Trial, Trials, Work
from nima.training.micro_batch import RECORD, chosen, divisors, fastest, search, settled
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.params import Params, TrainingParams, params_file

CPU = torch.device("cpu")
FIXED, PER_ROW = 100, 10


class Machine:
    """Trials that need FIXED + PER_ROW bytes a row, on a machine that gives out beyond `capacity`."""

    def __init__(self, capacity: float = float("inf"), speeds: dict[int, float] | None = None) -> None:
        self.capacity, self.speeds = capacity, speeds or {}
        self.tried: list[int] = []

    def __call__(self, rows: int) -> Trial | None:
        self.tried.append(rows)
        needed = FIXED + PER_ROW * rows
        return Trial(rows, needed, self.speeds.get(rows, float(rows))) if needed <= self.capacity else None


def rows_of(trials: list[Trial]) -> list[int]:
    return [trial.rows for trial in trials]


def test_sizes_are_the_divisors_of_the_batch() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(7) == [1, 7]


@pytest.mark.parametrize("rows", [16, 48, 60, 7, 1, 97])
@pytest.mark.parametrize("limit", [110, 125, 150, 290, 10_000])
def test_the_search_ends_at_the_largest_size_that_fits(rows: int, limit: int) -> None:
    machine = Machine()
    found = search(divisors(rows), machine, limit, until_slower=False)
    assert found[-1].rows == max(size for size in divisors(rows) if FIXED + PER_ROW * size <= limit)
    assert all(trial.num_bytes <= limit for trial in found)


def test_what_the_trials_so_far_foresee_not_to_fit_is_not_tried() -> None:
    machine = Machine()
    search(divisors(64), machine, 200, until_slower=False)
    assert machine.tried == [1, 2, 4, 8]


@pytest.mark.parametrize("capacity", [110, 130, 199, 300])
def test_a_size_at_which_memory_gives_out_only_bounds_the_search(capacity: int) -> None:
    machine = Machine(capacity)
    found = search(divisors(48), machine, 10_000, until_slower=False)
    assert found[-1].rows == max(size for size in divisors(48) if FIXED + PER_ROW * size <= capacity)


def test_nothing_is_found_when_one_row_does_not_fit() -> None:
    assert search(divisors(8), Machine(capacity=50), 10_000, until_slower=False) == []
    assert search(divisors(8), Machine(), 50, until_slower=False) == []


def test_on_a_cpu_the_fastest_is_taken_and_larger_ones_are_left_untried() -> None:
    speeds = {1: 50.0, 2: 90.0, 4: 100.0, 8: 101.0, 16: 99.0, 32: 98.0}
    machine = Machine(speeds=speeds)
    found = search(divisors(64), machine, 10_000, until_slower=True)
    assert rows_of(found) == [1, 2, 4, 8, 16]
    assert fastest(found).rows == 4, "a percent more is no reason for twice the memory"


# ------------------------------------------------------------------------------------------- real trials


def training(**changes: Any) -> TrainingParams:
    settings: dict[str, Any] = {"seed": 0, "max_steps": 1, "lr": 0.01, "precision": "fp32"}
    settings |= {"block_tokens": 64, "batch_tokens": 1024, "micro_batch_tokens": "auto"}
    return TrainingParams(**settings | changes)


def work(**changes: Any) -> Work:
    config = tiny_config(width=64, context_tokens=64, mlp_width=256, num_layers=4)
    found = Work(config, training(), CPU, threads=1, recomputes=False)
    return replace(found, **changes)


def test_a_trial_does_the_worst_of_a_run_in_a_process_of_its_own_and_larger_ones_need_more() -> None:
    with Trials(work()) as trials:
        assert trials.limit_bytes > 10_000_000
        process = trials.process.pid
        small, large = trials(1), trials(64)
        assert small is not None
        assert large is not None
        assert 0 < small.num_bytes < large.num_bytes - 5_000_000
        assert small.tokens_per_second > 0
        assert trials.process.pid == process
        trials(2)  # after a larger one only a new process can tell what it needs
        assert trials.process.pid != process


def test_a_trial_that_the_kernel_ends_is_one_that_does_not_fit() -> None:
    with Trials(work()) as trials:
        assert trials.limit_bytes
        trials.process.kill()
        assert trials(1) is None
        assert trials(1) is not None, "the next one has a process again"


def test_a_failure_that_is_not_about_memory_is_not_taken_for_it() -> None:
    broken = replace(work().config, num_heads=3)
    with Trials(work(config=broken)) as trials, pytest.raises(RuntimeError, match="a trial of 1 rows failed"):
        trials(1)


def test_a_model_that_does_not_fit_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trials, "limit_bytes", 1000)
    with pytest.raises(UserError, match=r"^training\.micro_batch_tokens: not one block of 64 tokens fits"):
        chosen(work())


# ----------------------------------------------------------------------------------------------- records


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    params = params_file.load(ROOT / "params.yaml")
    monkeypatch.setattr(micro_batch.Tokenizer, "load", lambda path: type("Words", (), {"vocab_size": 64})())
    update = {"micro_batch_tokens": "auto"}
    return params.model_copy(update={"training": params.training.model_copy(update=update)})


def settle(params: Params) -> Params:
    return settled(params, runtime.load(Path.cwd()), CPU, ALONE)


def test_what_was_found_is_recorded_and_not_searched_again(
    project: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    monkeypatch.setattr(micro_batch, "chosen", lambda work: searched.append(work) or 1024)
    assert settle(project).training.micro_batch_tokens == 1024
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["micro_batch_tokens"] == 1024
    assert record["chosen_for"]["device"] == "cpu"
    RECORD.unlink()
    assert settle(project).training.micro_batch_tokens == 1024, "known in .nima"
    assert RECORD.is_file(), "what Git tracks says what was computed with"
    assert len(searched) == 1
    other = project.training.model_copy(update={"precision": "fp32"})
    settle(project.model_copy(update={"training": other}))
    assert len(searched) == 2, "another question has another answer"


def test_a_commit_repeated_elsewhere_takes_what_the_commit_says(
    project: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter((512, 2048))
    monkeypatch.setattr(micro_batch, "chosen", lambda work: next(answers))
    settle(project)
    commit = RECORD.read_bytes()
    for kept in Path(".nima/micro_batch").iterdir():  # the other machine found something else before
        kept.write_text(kept.read_text(encoding="utf-8").replace("512", "2048"), encoding="utf-8")
    RECORD.write_bytes(commit)
    assert settle(project).training.micro_batch_tokens == 512


@pytest.mark.parametrize("content", ["", "{", "[]", '{"chosen_for": 1}', '{"micro_batch_tokens": 4}'])
def test_a_damaged_record_is_as_none(project: Params, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(micro_batch, "chosen", lambda work: 256)
    RECORD.parent.mkdir()
    RECORD.write_text(content, encoding="utf-8")
    assert settle(project).training.micro_batch_tokens == 256


def test_a_number_in_params_is_left_alone_and_recorded_nowhere(project: Params) -> None:
    given = project.training.model_copy(update={"micro_batch_tokens": 256})
    assert settle(project.model_copy(update={"training": given})).training.micro_batch_tokens == 256
    assert not RECORD.exists()


@pytest.mark.parametrize("value", [0, -1, 1.5, "automatic", True, None])
def test_anything_but_a_whole_number_or_auto_is_refused_in_one_line(tmp_path: Path, value: Any) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    written = json.dumps(value)
    path.write_text(text.replace("micro_batch_tokens: 4096", f"micro_batch_tokens: {written}"), "utf-8")
    with pytest.raises(UserError) as raised:
        params_file.load(path)
    [line] = str(raised.value).splitlines()
    assert "training.micro_batch_tokens: expected a whole number greater than 0, or auto, found" in line


def test_a_run_with_a_size_that_was_found_is_that_of_one_with_the_number_written(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found = request.getfixturevalue("finished_project").copy_to(tmp_path / "found")
    found.set_params({"training": {"micro_batch_tokens": "auto"}})
    told = found.dvc("repro", "train")
    tokens = json.loads(found.read("metrics/micro_batch.json"))["micro_batch_tokens"]
    assert f"train: micro_batch_tokens: {tokens}, of " in told.stderr + told.stdout
    assert json.loads(found.read("metrics/train.json"))["micro_batch_tokens"] == tokens
    written = request.getfixturevalue("finished_project").copy_to(tmp_path / "written")
    written.set_params({"training": {"micro_batch_tokens": tokens}})
    written.dvc("repro", "train")
    assert found.files("models/model", "models/last", "plots/train") == written.files(
        "models/model", "models/last", "plots/train"
    )
    found.commit("With a size that was found")
    elsewhere = found.copy_to(tmp_path / "elsewhere")
    shutil.rmtree(elsewhere.path / ".nima")
    told = elsewhere.dvc("repro", "-f", "-s", "train")
    assert "micro_batch_tokens" not in told.stderr + told.stdout, "the commit says it: nothing is searched"
    assert elsewhere.files("models/model") == found.files("models/model")
