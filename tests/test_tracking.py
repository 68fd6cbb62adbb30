"""Metrics of one run: files that depend on the numbers alone."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nima.scoring.pictures import draw_bars, draw_curves
from nima.training.tracking import StageLive
from nima.workspace import metrics
from nima.workspace.errors import UserError
from nima.workspace.metrics import write_metrics, write_timing

ROWS: list[dict[str, Any]] = [
    {"step": 2, "train/loss": 4.158883083359672, "train/lr": 0.1, "train/gradient_norm": 1 / 3},
    {"step": 4, "train/loss": 3.1, "train/lr": 0.05, "train/gradient_norm": 2.0},
    {"step": 4, "validation/loss": 3.2, "validation/perplexity": 24.5, "validation/accuracy": 0.1},
    {"step": 6, "train/loss": 2.9, "train/lr": 1e-06, "train/gradient_norm": 1e-30},
    {"step": 6, "validation/loss": 3.0, "validation/perplexity": 20.1, "validation/accuracy": 0.2},
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, outside any run of DVC."""
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVCLIVE_RESUME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }


def logged(rows: list[dict[str, Any]], summary: dict[str, Any] | None = None) -> dict[str, bytes]:
    Path("metrics").mkdir(exist_ok=True)
    live = StageLive("train")
    for row in rows:
        live.log_row(row)
    live.finish(summary or {"parameters": 12})
    return files_in(Path.cwd())


def test_curves_and_metrics_lie_where_dvc_yaml_expects_them() -> None:
    files = logged(ROWS)
    assert set(files) == {
        "metrics/train.json",
        *(f"plots/train/metrics/train/{name}.tsv" for name in ("loss", "lr", "gradient_norm")),
        *(f"plots/train/metrics/validation/{name}.tsv" for name in ("loss", "perplexity", "accuracy")),
    }
    assert files["plots/train/metrics/validation/loss.tsv"] == b"step\tloss\n4\t3.2\n6\t3.0\n"
    metrics = json.loads(files["metrics/train.json"])
    assert metrics["validation"] == {"loss": 3.0, "perplexity": 20.1, "accuracy": 0.2}
    assert (metrics["step"], metrics["parameters"]) == (6, 12)


def test_no_figure_loses_a_digit_on_its_way() -> None:
    lines = logged(ROWS)["plots/train/metrics/train/gradient_norm.tsv"].decode().splitlines()
    assert [float(line.split("\t")[1]) for line in lines[1:]] == [1 / 3, 2.0, 1e-30]


@pytest.mark.parametrize("cut", range(len(ROWS) + 1))
def test_replayed_rows_give_the_files_of_a_run_that_was_never_interrupted(cut: int) -> None:
    whole = logged(ROWS)
    interrupted = StageLive("train")  # logged further than what was saved
    for row in ROWS:
        interrupted.log_row(row)
    resumed = StageLive("train")
    resumed.replay(json.loads(json.dumps(ROWS[:cut])))
    for row in ROWS[cut:]:
        resumed.log_row(row)
    resumed.finish({"parameters": 12})
    assert files_in(Path.cwd()) == whole


def test_a_figure_that_is_no_number_neither_stops_a_run_nor_breaks_its_metrics_file() -> None:
    files = logged([{"step": 1, "train/loss": math.nan, "train/gradient_norm": math.inf}, *ROWS])
    assert "nan" in files["plots/train/metrics/train/loss.tsv"].decode().lower()
    metrics = json.loads(files["metrics/train.json"], parse_constant=pytest.fail)
    assert metrics["train"]["loss"] == 2.9


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def test_in_a_project_neither_dvc_yaml_nor_the_git_index_is_touched() -> None:
    git("init", "--quiet")
    who = ("-c", "user.name=Nima", "-c", "user.email=nima@example.org")
    git(*who, "commit", "--quiet", "--allow-empty", "-m", "Begin")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    yaml = "# ours\nstages:\n  train:\n    cmd: echo   spaced\n"
    Path("dvc.yaml").write_text(yaml, encoding="utf-8")
    logged(ROWS)
    assert Path("dvc.yaml").read_text(encoding="utf-8") == yaml
    assert list(Path.cwd().rglob("dvc.yaml")) == [Path.cwd() / "dvc.yaml"]
    assert git("ls-files") == ""
    assert list(Path.cwd().rglob("*.dvc")) == [Path.cwd() / ".dvc"]


# ------------------------------------------------------------------------------------- metrics and timing


def test_metrics_are_written_as_given_and_never_with_a_figure_that_json_lacks() -> None:
    write_metrics("evaluate", {"b": 1.5, "a": {"é": None}})
    text = Path("metrics/evaluate.json").read_text(encoding="utf-8")
    assert text == '{\n  "b": 1.5,\n  "a": {\n    "é": null\n  }\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_metrics("evaluate", {"a": math.nan})
    assert Path("metrics/evaluate.json").read_text(encoding="utf-8") == text


def test_clock_figures_of_stages_stand_side_by_side() -> None:
    write_timing("train", {"seconds": 12.34567, "tokens_per_second": 1000})
    write_timing("prepare", {"seconds": 1.0})
    write_timing("train", {"seconds": 2.0})
    timing = json.loads(Path("metrics/timing.json").read_text(encoding="utf-8"))
    assert timing == {"prepare": {"seconds": 1.0}, "train": {"seconds": 2.0}}
    assert [path.name for path in Path("metrics").iterdir()] == ["timing.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_timing_file_is_written_anew(content: bytes) -> None:
    Path("metrics").mkdir()
    Path("metrics/timing.json").write_bytes(content)
    write_timing("train", {"seconds": 2.0})
    timing = json.loads(Path("metrics/timing.json").read_text(encoding="utf-8"))
    assert timing == {"train": {"seconds": 2.0}}


def test_timing_that_cannot_be_written_leaves_the_old_file_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    write_timing("prepare", {"seconds": 1.0})
    before = metrics.TIMING.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(UserError, match=r"^metrics: cannot be written: full; "):
        write_timing("train", {"seconds": 2.0})
    assert metrics.TIMING.read_bytes() == before


# ---------------------------------------------------------------------------------------------- pictures


def test_equal_figures_give_equal_pictures() -> None:
    def drawn() -> dict[str, bytes]:
        draw_curves("train", ROWS)
        draw_bars(Path("plots/evaluate/bits.png"), "Bits", "bits per byte", {"model": 1.5, "xz": 2.1})
        return files_in(Path("plots"))

    pictures = drawn()
    assert pictures == drawn()
    names = ["evaluate/bits", "train/learning_rate", "train/loss", "train/perplexity"]
    assert sorted(pictures) == [f"{name}.png" for name in names]
    assert all(content.startswith(b"\x89PNG") and b"Software" not in content for content in pictures.values())


def test_other_figures_give_another_picture() -> None:
    draw_curves("train", ROWS)
    before = files_in(Path("plots"))
    draw_curves("train", [*ROWS, {"step": 8, "train/loss": 1.0}])
    after = files_in(Path("plots"))
    assert [name for name in before if before[name] != after[name]] == ["train/loss.png"]


def test_curves_can_be_drawn_without_points_and_with_figures_that_are_none() -> None:
    draw_curves("train", [{"step": 1, "train/loss": math.nan, "validation/perplexity": math.inf}])
    assert len(files_in(Path("plots"))) == 3
