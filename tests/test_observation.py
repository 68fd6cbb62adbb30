"""What a training run tells, in a real pipeline: it changes no output, and a person finds it afterwards."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, kill_group
from tracker_readers import READERS

STEPS = 60
# As DVC starts it, without the seconds that DVC takes.
STAGE = ("python", "-m", "stages.train")


def untrained(project: Project) -> Project:
    """Everything up to `split` is done and training is not."""
    lock = project.read("dvc.lock")
    project.run("rm", "-rf", "models/model", "models/last", "plots/train", "metrics/train.json")
    (project.path / "dvc.lock").write_text(lock[: lock.index("\n  train:\n") + 1])
    project.run("rm", "-rf", ".dvc/cache/runs", ".nima")
    return project


def records(project: Project) -> list[dict[str, Any]]:
    paths = sorted((project.path / ".nima/records").glob("*.json"))
    return [json.loads(path.read_text("utf-8"), parse_constant=pytest.fail) for path in paths]


def log_parts(project: Project) -> list[list[dict[str, Any]]]:
    """The lines of each process's log file, oldest first."""
    paths = sorted((project.path / ".nima/logs").glob("*.jsonl"))
    return [[json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in paths]


def run_until_step(project: Project, step: int, number: int) -> None:
    process = project.start(*STAGE)
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(rf"step {step}/", line):
            kill_group(process, number)
            break
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def watched(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """Training killed, interrupted and finished, with all ears open; and what the last part printed."""
    project = untrained(finished_project.copy_to(tmp_path_factory.mktemp("watched") / "project"))
    project.env |= {
        "NIMA_TRACKERS": "tensorboard",
        "NIMA_HISTOGRAMS": "3",
        "NIMA_LOG_LEVEL": "debug",
        "NIMA_MONITOR_SECONDS": "0.2",
        "NIMA_TAGS": "a tag",
        "NIMA_PROFILE": "1",
        "SECRET_TOKEN": "never-to-be-seen",
    }
    run_until_step(project, 12, signal.SIGKILL)
    run_until_step(project, 31, signal.SIGTERM)
    return project, project.dvc("repro", "train").stderr


def test_outputs_are_the_same_to_the_byte_whoever_listens(
    watched: tuple[Project, str], finished_project: Project
) -> None:
    for folders in (("models", "plots/train"), ("metrics",)):
        assert watched[0].files(*folders) == finished_project.files(*folders)
    assert watched[0].read("dvc.lock").split("\n  train:\n")[1] in finished_project.read("dvc.lock")


def test_an_interrupted_run_has_one_record_with_all_that_worked_on_it(watched: tuple[Project, str]) -> None:
    project, _ = watched
    (record,) = records(project)
    assert record["status"] == "finished"
    assert [session["outcome"] for session in record["sessions"]] == ["killed", "interrupted", "finished"]
    assert "stopped by SIGTERM" in record["sessions"][1]["reason"]
    assert record["sessions"][2]["first_step"] >= 31
    assert record["metrics"] == json.loads(project.read("metrics/train.json"))
    assert record["params"]["training"]["max_steps"] == STEPS
    assert record["model"]["parameters"]["total"] == record["metrics"]["parameters"]
    assert {"code", "data/splits", "data/tokens", "models/tokenizer", "sha256"} == set(record["inputs"])
    assert record["environment"]["NIMA_TRACKERS"] == "tensorboard"
    assert record["git"]["commit"] == project.run("git", "rev-parse", "HEAD").stdout.strip()
    assert record["tags"] == ["custom-nano", "muon", "bf16", "notes", "a tag"]
    assert re.fullmatch(r"custom-nano-notes-\d{8}-\d{6}", record["name"])
    assert any(name.endswith("model.safetensors") for name in record["outputs"])
    assert "never-to-be-seen" not in json.dumps(record)


def test_the_tracker_has_each_point_once_and_the_clocks_figures_beside_them(
    watched: tuple[Project, str],
) -> None:
    project, _ = watched
    points, run = READERS["tensorboard"](project.path / ".nima/trackers/tensorboard")
    assert (
        run["names"]
        == [records(project)[0]["name"]]
        == [records(project)[0]["trackers"]["tensorboard"]["id"]]
    )
    losses = [(step, value) for name, step, value in points if name == "train/loss"]
    tsv = project.read("plots/train/metrics/train/loss.tsv").splitlines()[1:]
    expected = [(int(step), float(value)) for step, value in (line.split("\t") for line in tsv)]
    assert [step for step, _ in losses] == [step for step, _ in expected] == list(range(2, STEPS + 1, 2))
    assert [value for _, value in losses] == pytest.approx([value for _, value in expected])
    names = {name for name, *_ in points}
    assert {"speed/tokens_per_second", "speed/flops_per_second", "final/best/value", "timing/mfu"} <= names
    assert any(name.startswith("system/") for name in names)
    assert any(name.startswith("gradients/") for name, *_ in run["histograms"])
    assert run["params"]["training.lr"].number_value > 0


def test_the_clocks_figures_are_in_the_timing_file_alone(watched: tuple[Project, str]) -> None:
    project, _ = watched
    timing = json.loads(project.read("metrics/timing.json"))["train"]
    for name in (
        *("training_seconds", "tokens_per_second", "steps_per_second", "step_seconds_median"),
        *("forecast_seconds", "forecast_error", "flops_per_second", "peak_flops_per_second", "mfu"),
        *("process_cpu_percent_mean", "process_memory_bytes_max", "memory_percent_max", "disk_percent_max"),
    ):
        assert isinstance(timing[name], int | float), name
    assert 0 < timing["mfu"] < 1
    assert "second" not in project.read("metrics/train.json")


def test_the_log_tells_the_story(watched: tuple[Project, str]) -> None:
    parts_of_the_log = log_parts(watched[0])
    lines = [line for part in parts_of_the_log for line in part]
    messages = [line["message"] for line in lines]
    assert [messages.count(message) for message in ("run", "summary", "ended")] == [3, 1, 1]
    assert {"forecast", "load", "point", "step"} <= set(messages)
    assert {line["stage"] for line in lines} == {"train"}
    (ended,) = [line for line in lines if line["message"] == "ended"]
    assert (ended["level"], ended["error"]) == ("error", "Interrupted")
    (validated,) = [line for line in lines if line["message"].startswith("step 45: validation loss")]
    assert validated["step"] == 45
    parts = [[line["step"] for line in part if "train/loss" in line] for part in parts_of_the_log]
    assert all(part == list(range(part[0], part[-1] + 1, 2)) for part in parts)
    assert [parts[0][0], parts[-1][-1]] == [2, STEPS], "no history is told twice"
    assert parts[1][0] <= parts[0][-1] + 2
    assert "never-to-be-seen" not in json.dumps(lines)


def test_each_part_that_was_long_enough_has_a_profile(watched: tuple[Project, str]) -> None:
    tables = list((watched[0].path / ".nima/profiles").glob("*/operators.txt"))
    assert len(tables) == 3
    assert all("aten::" in table.read_text() for table in tables)


def test_later_stages_give_their_figures_and_texts_to_the_run(watched: tuple[Project, str]) -> None:
    project, _ = watched
    for stage in ("evaluate", "generate_samples"):
        project.run("python", "-m", f"stages.{stage}")
    points, run = READERS["tensorboard"](project.path / ".nima/trackers/tensorboard")
    assert run["names"] == [records(project)[0]["name"]]
    assert run["texts"]["samples"] == project.read("data/samples/samples.md")
    values = {name: value for name, step, value in points if step == STEPS}
    assert values["evaluate/test/loss"] == pytest.approx(
        json.loads(project.read("metrics/evaluate.json"))["test"]["loss"]
    )


def test_the_run_ends_with_a_summary(watched: tuple[Project, str]) -> None:
    project, printed = watched
    summary = printed[printed.index(records(project)[0]["name"] + "\n") :]
    assert "  updates          60 of 60\n" in summary
    assert re.search(r"  best +step \d+: validation loss \d\.\d{4}\n", summary)
    assert re.search(
        r"  speed +\d\.\d{3} TFLOP/s, \d+% of what matrix products reach here \(MFU\)\n", summary
    )
    assert re.search(r"  record +\.nima/records/.*\.json\n", summary)
    assert re.search(r"  log +\.nima/logs/.*\.jsonl\n", summary)


def test_a_temporary_run_leaves_its_record_in_the_main_workspace_and_git_clean(project: Project) -> None:
    before = project.run("git", "status", "--porcelain").stdout
    project.run("rm", "-rf", ".nima")
    changes = ("-S", "training.lr=0.003", "-S", "training.max_steps=8")
    project.dvc("exp", "run", "--temp", "-n", "aside", *changes, "train")
    (record,) = records(project)
    assert record["status"] == "finished"
    assert record["sessions"][0]["experiment"] == "aside"
    assert record["sessions"][0]["temporary"] is True
    assert record["name"].startswith("custom-nano-notes-aside-")
    assert record["params"]["training"]["lr"] == 0.003
    assert project.run("git", "status", "--porcelain").stdout == before
    assert Path(record["log"]).is_file()


def test_a_broken_tracker_changes_neither_the_result_nor_the_exit_code(
    project: Project, finished_project: Project
) -> None:
    untrained(project)
    project.env |= {
        "NIMA_TRACKERS": "wandb,mlflow",
        "MLFLOW_TRACKING_URI": "ftp://nowhere",
        "HOME": "/nowhere",
    }
    done = project.run(*STAGE)
    for name in ("wandb", "mlflow"):
        assert len(re.findall(rf"^{name}: .*switched off, training goes on", done.stderr, re.M)) == 1
    assert project.files("models", "plots/train") == finished_project.files("models", "plots/train")
    assert records(project)[0]["trackers"] == {}


def test_a_run_that_fails_says_why_in_its_record(project: Project) -> None:
    project.run("rm", "-rf", ".nima")
    project.set_params({"training": {"lr": 1e30, "optimizer": "adamw", "max_steps": 6}})
    done = project.run(*STAGE, check=False)
    assert done.returncode != 0
    (record,) = records(project)
    assert record["status"] == "failed"
    assert "Lower training.lr" in record["sessions"][0]["reason"]
