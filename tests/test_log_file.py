"""The log file: lines of JSON that say when, where and what, and that never stand in a run's way."""

import json
import logging
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nima.monitoring.log_file import logging_to, note


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text("utf-8").splitlines()]


def test_each_line_has_time_level_stage_step_message_and_what_belongs_to_it(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    with logging_to(path, "info", "train"):
        note("point", step=3, **{"train/loss": 0.5})
        note("a warning", "warning", place="ä\nb")
        logging.getLogger("nima.anything").error("from elsewhere %d", 7)
    first, second, third = lines_in(path)
    assert list(first) == ["time", "level", "stage", "step", "message", "train/loss"]
    written = datetime.fromisoformat(first.pop("time"))
    assert datetime.now(UTC) - written < timedelta(minutes=1)
    assert first == {"level": "info", "stage": "train", "step": 3, "message": "point", "train/loss": 0.5}
    assert (second["level"], second["message"], second["place"]) == ("warning", "a warning", "ä\nb")
    assert (third["level"], third["step"], third["message"]) == ("error", None, "from elsewhere 7")


@pytest.mark.parametrize(
    ("level", "messages"),
    [("debug", ["a", "b", "c"]), ("info", ["b", "c"]), ("warning", ["c"]), ("error", [])],
)
def test_the_level_leaves_out_what_is_below_it(tmp_path: Path, level: str, messages: list[str]) -> None:
    with logging_to(tmp_path / "log", level, "train"):
        for message, its_level in (("a", "debug"), ("b", "info"), ("c", "warning")):
            note(message, its_level)
    assert [line["message"] for line in lines_in(tmp_path / "log")] == messages


def test_numbers_that_json_lacks_and_names_that_are_taken_do_no_harm(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", "info", "train"):
        note(
            "point",
            loss=math.nan,
            nested={"norm": [math.inf, 1.0]},
            time="elsewhen",
            stage="none",
            path=Path("x"),
        )
    (line,) = lines_in(tmp_path / "log")
    assert (line["loss"], line["nested"], line["path"]) == ("nan", {"norm": ["inf", 1.0]}, "x")
    assert line["time"] != "elsewhen"
    assert line["stage"] == "train"


def test_what_ends_a_run_is_in_its_log_and_goes_on_its_way(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"), logging_to(tmp_path / "log", "error", "train"):
        raise ValueError("too small")
    (line,) = lines_in(tmp_path / "log")
    assert (line["message"], line["error"], line["reason"]) == ("ended", "ValueError", "too small")


def test_a_second_run_appends_and_nothing_is_written_between_runs(tmp_path: Path) -> None:
    for message in ("one", "two"):
        with logging_to(tmp_path / "log", "info", "train"):
            note(message)
        note("between")
    assert [line["message"] for line in lines_in(tmp_path / "log")] == ["one", "two"]


def test_a_full_disk_is_said_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(Path("/dev/full"), "info", "train"):
        for _ in range(5):
            note("point", step=1)
    said = capsys.readouterr().err
    assert said.count("/dev/full: the log is incomplete") == 1
    assert "No space left on device" in said
    assert "Traceback" not in said


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with logging_to(tmp_path / "file" / "log", "info", "train"):
        note("point")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'file' / 'log'}: no log is written: ")
