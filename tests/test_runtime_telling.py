"""The settings of what a training run tells."""

import os
from pathlib import Path

import pytest

from nima.workspace import runtime
from nima.workspace.errors import UserError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith(("DVC_", "NIMA_"))]:
        monkeypatch.delenv(key)


def test_without_settings_nothing_leaves_the_machine(tmp_path: Path) -> None:
    telling = runtime.load(tmp_path).telling
    assert (telling.trackers, telling.tags, telling.run_name, telling.histograms) == ((), (), None, None)
    assert (telling.track_model, telling.log_level, telling.log_file) == (False, "info", None)
    assert (telling.monitor_seconds, telling.profile) == (5.0, False)


def test_settings_come_from_the_environment_and_from_dotenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "NIMA_TRACKERS=tensorboard",
        "NIMA_TAGS=a, b c ,",
        "NIMA_LOG_FILE=out/run.jsonl",
        "WANDB_PROJECT=p",
    ]
    (tmp_path / ".env").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("NIMA_TRACKERS", "mlflow, wandb,mlflow")
    monkeypatch.setenv("NIMA_HISTOGRAMS", "10")
    monkeypatch.setenv("NIMA_TRACK_MODEL", "1")
    monkeypatch.setenv("NIMA_PROFILE", "1")
    monkeypatch.setenv("NIMA_MONITOR_SECONDS", "0.5")
    found = runtime.load(tmp_path)
    assert found.telling.trackers == ("mlflow", "wandb")
    assert found.telling.tags == ("a", "b c")
    assert found.telling.log_file == tmp_path.resolve() / "out/run.jsonl"
    assert (found.telling.histograms, found.telling.track_model, found.telling.monitor_seconds) == (
        10,
        True,
        0.5,
    )
    assert found.telling.profile
    assert found.settings["WANDB_PROJECT"] == "p"


def test_records_and_logs_lie_in_the_main_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "workspace"))
    found = runtime.load(tmp_path / "copy")
    assert found.workspace == (tmp_path / "workspace").resolve()
    assert found.records == found.workspace / ".nima/records"
    assert found.logs == found.workspace / ".nima/logs"


def test_secrets_are_not_shown_with_the_runtime(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WANDB_API_KEY=abcdef0123456789\n", encoding="utf-8")
    found = runtime.load(tmp_path)
    assert found.settings["WANDB_API_KEY"] == "abcdef0123456789"
    assert "abcdef0123456789" not in repr(found)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("NIMA_LOG_LEVEL", "loud", "expected debug, info, warning or error, found 'loud'"),
        ("NIMA_PROFILE", "on", "expected 0 or 1, found 'on'"),
        ("NIMA_TRACK_MODEL", "yes", "expected 0 or 1, found 'yes'"),
        ("NIMA_HISTOGRAMS", "0", "expected a whole number of at least 1, found '0'"),
        ("NIMA_MONITOR_SECONDS", "-1", "expected seconds, 0 or more, found '-1'"),
        ("NIMA_MONITOR_SECONDS", "nan", "expected seconds, 0 or more, found 'nan'"),
        ("NIMA_MONITOR_SECONDS", "often", "expected seconds, 0 or more, found 'often'"),
        ("NIMA_TRACKERS", "neptune", "expected any of tensorboard, wandb, comet, mlflow, found 'neptune'"),
    ],
)
def test_a_bad_setting_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(UserError) as caught:
        runtime.load(tmp_path)
    assert str(caught.value) == f"{key}: {problem}"
