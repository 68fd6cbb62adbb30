"""A profile of some steps: written where it can be, and in no one's way."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from nima.monitoring.profiling import LAST_STEP, STEPS_MEASURED, Profile


def work(profile: Profile, num_steps: int) -> None:
    for _ in range(num_steps):
        torch.ones(8, 8) @ torch.ones(8, 8)
        profile.step()


def test_a_trace_and_a_table_of_the_measured_steps_are_written(tmp_path: Path) -> None:
    said: list[str] = []
    with Profile(tmp_path / "profile", said.append) as profile:
        work(profile, LAST_STEP + 20)
    trace = json.loads(gzip.decompress((tmp_path / "profile/trace.json.gz").read_bytes()))
    products = [event for event in trace["traceEvents"] if event.get("name") == "aten::matmul"]
    assert len(products) == STEPS_MEASURED
    assert "aten::matmul" in (tmp_path / "profile/operators.txt").read_text()
    assert said == [f"profile: {tmp_path / 'profile'} (trace.json.gz, operators.txt)"]


def test_a_run_that_ends_while_it_is_measured_has_a_profile_and_a_shorter_one_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    with Profile(tmp_path / "profile", said.append) as profile:
        work(profile, LAST_STEP - 2)
    with Profile(tmp_path / "none", said.append) as profile:
        work(profile, 2)
    assert (tmp_path / "profile/trace.json.gz").is_file()
    assert not (tmp_path / "none").exists()
    assert said[1:] == ["no profile: the run had 2 steps, and measuring begins later"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    with Profile(tmp_path / "file" / "profile", said.append) as profile:
        work(profile, LAST_STEP)
    assert said == [f"{tmp_path / 'file' / 'profile'}: no profile is written: Not a directory"]


def test_without_a_folder_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Profile(None, print) as profile:
        work(profile, LAST_STEP)
        assert profile.num_steps == 0
    assert capsys.readouterr().out == ""
