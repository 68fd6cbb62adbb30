"""Metrics at TensorBoard, Weights & Biases, Comet and MLflow: each row once, and never at training's cost."""

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from tracker_readers import READERS

from nima.trackers import tell_trackers
from nima.trackers import trackers as trackers_module
from nima.trackers.histograms import MAX_VALUES, histogram, histograms_of
from nima.trackers.sender import Memory, in_one_line
from nima.trackers.tracked_run import Ending
from nima.trackers.trackers import Trackers, figures_in, flat
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.inputs import content_of
from nima.workspace.runtime import TRACKERS, Runtime

RECORD: dict[str, Any] = {
    "name": "gpt-tiny-notes-1",
    "tags": ["gpt-tiny", "muon"],
    "params": {
        "training": {"lr": 0.01, "keep": "best", "mixture": {}},
        "prepare": {"sources": [{"name": "notes"}]},
    },
}
ROWS: list[dict[str, Any]] = [
    *({"step": 2 * i, "train/loss": 4.0 / i, "train/lr": 0.1 / i} for i in range(1, 6)),
    {"step": 10, "validation/loss": 1.25, "validation/sources/notes/loss": 1.5},
    *({"step": 2 * i, "train/loss": 4.0 / i, "train/lr": 0.1 / i} for i in range(6, 11)),
]
POINTS = sorted((name, row["step"], value) for row in ROWS for name, value in row.items() if name != "step")
OFFLINE = {"WANDB_MODE": "offline", "COMET_START_ONLINE": "0"}
KEY = "0123456789abcdef0123456789abcdef01234567"
KEYS = {"WANDB_API_KEY": KEY, "COMET_API_KEY": KEY}


def bare(environment: dict[str, str]) -> dict[str, str]:
    """Without whatever the machine's owner has set for trackers, and with a home that holds no keys."""
    foreign = ("DVC_", "NIMA_", "WANDB_", "COMET_", "MLFLOW_")
    return {key: value for key, value in environment.items() if not key.startswith(foreign)}


@contextlib.contextmanager
def bare_home(folders: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for key in set(os.environ) - set(bare(dict(os.environ))):
            patch.delenv(key)
        patch.setenv("HOME", str(folders.mktemp("home")))
        patch.setattr(trackers_module, "WAIT_SECONDS", 240.0)  # on a busy machine trackers come last
        yield


@pytest.fixture(autouse=True)
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with bare_home(tmp_path_factory):
        yield


def runtime_in(folder: Path, names: str, **settings: str) -> Runtime:
    """As `.env` in the folder sets it up."""
    lines = [f"NIMA_TRACKERS={names}", *(f"{key}={value}" for key, value in settings.items())]
    (folder / ".env").write_text("\n".join(lines), encoding="utf-8")
    return runtime.load(folder)


def opened(folder: Path, names: str, said: list[str], **settings: str) -> Trackers:
    found = runtime_in(folder, names, **settings)
    trackers = Trackers(found, printed=found.logs / "run.jsonl", say=said.append)
    trackers.begin(RECORD, folder / "state")
    return trackers


# ------------------------------------------------------------------------------ every tracker, every row once

TRAINER = """
import json, sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from test_trackers import KEYS, OFFLINE, ROWS, opened
trackers = opened(Path({folder!r}), {names!r}, [], **OFFLINE, **KEYS)
for row in ROWS[:7]:
    trackers.log_row(row)
print("logged", flush=True)
time.sleep(300)
"""


@dataclass(frozen=True)
class Tracked:
    folder: Path
    said: list[str]
    runs: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """A run that was killed after 7 rows, and then repeated its history and came to its end."""
    folder = tmp_path_factory.mktemp("tracked")
    names = ",".join(TRACKERS)
    said: list[str] = []
    with bare_home(tmp_path_factory):
        code = TRAINER.format(path=sys.path, folder=str(folder), names=names)
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder, start_new_session=True) as trainer:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"logged\n"
            os.killpg(trainer.pid, signal.SIGKILL)
        trackers = opened(folder, names, said, **OFFLINE, **KEYS)
        for row in json.loads(json.dumps(ROWS)):
            trackers.log_row(row)
        params, model = folder / "params.yaml", folder / "model"
        params.write_text("training: {}\n")
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"weights")
        summary, texts = {"final/loss": 0.5}, {"samples": "# Once\n\nupon a <time>"}
        trackers.end(Ending("finished", len(ROWS), 20, summary, texts, [str(params)], str(model)))
    return Tracked(folder / ".nima/trackers", said, trackers.runs())


@pytest.mark.parametrize("name", TRACKERS)
def test_a_killed_run_goes_on_at_its_tracker_and_each_row_is_there_once(twice: Tracked, name: str) -> None:
    points, _ = READERS[name](twice.folder / name)
    found = sorted(point for point in points if point[0].startswith(("train/", "validation/")))
    assert [(metric, step) for metric, step, _ in found] == [(metric, step) for metric, step, _ in POINTS]
    assert [value for *_, value in found] == pytest.approx([value for *_, value in POINTS], rel=1e-6)
    assert [line for line in twice.said if line.startswith(name)] == [f"{name}: {twice.runs[name]['url']}"]


def test_tensorboard_has_params_texts_and_figures_of_the_end(twice: Tracked) -> None:
    points, run = READERS["tensorboard"](twice.folder / "tensorboard")
    assert run["names"] == ["gpt-tiny-notes-1"] == [twice.runs["tensorboard"]["id"]]
    assert run["params"]["training.lr"].number_value == 0.01
    assert run["params"]["prepare.sources.0.name"].string_value == "notes"
    assert run["texts"] == {"samples": "# Once\n\nupon a <time>"}
    assert ("final/loss", 20, 0.5) in points


def test_weights_and_biases_has_one_run_with_growing_rows(twice: Tracked) -> None:
    _, run = READERS["wandb"](twice.folder / "wandb")
    assert run["ids"] == {twice.runs["wandb"]["id"]}
    assert set(run["names"]) == {"gpt-tiny-notes-1"}
    assert run["tags"] == ["gpt-tiny", "muon"]
    assert run["project"] == "nima"
    assert run["params"]["training.lr"] == 0.01
    assert run["rows"] == list(range(len(ROWS) + 1)), "the last one holds the texts"
    assert run["summary"]["final/loss"] == 0.5
    assert run["artifacts"] == {"run": ["params.yaml"], "model": ["model.safetensors"]}
    assert sorted(run["exits"]) == [0, 3]


def test_comet_has_one_experiment(twice: Tracked) -> None:
    points, run = READERS["comet"](twice.folder / "comet")
    assert run["ids"] == {twice.runs["comet"]["id"]}
    assert (run["project"], run["tags"]) == ("nima", ["gpt-tiny", "muon"])
    assert run["params"]["training.lr"] == 0.01
    assert run["other"]["Name"] == "gpt-tiny-notes-1"
    assert run["other"]["outcome"] == "finished"
    assert ("final/loss", 20, 0.5) in points


def test_mlflow_has_one_run_in_a_local_database(twice: Tracked) -> None:
    points, run = READERS["mlflow"](twice.folder / "mlflow")
    assert (run["names"], run["states"]) == (["gpt-tiny-notes-1"], ["FINISHED"])
    assert run["project"] == "nima"
    assert {"gpt-tiny", "muon"} <= set(run["tags"])
    assert run["params"] == {
        "training.lr": "0.01",
        "training.keep": "best",
        "training.mixture": "{}",
        "prepare.sources.0.name": "notes",
    }
    assert run["files"] == ["model.safetensors", "params.yaml", "samples.md"]
    assert ("final/loss", 20, 0.5) in points


def test_a_step_that_a_tracker_has_is_not_sent_again_not_even_after_a_roll_back(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "state.json", None)
    for row in (
        {"step": 2, "train/loss": 1.0},
        {"step": 2, "validation/loss": 1.0},
        {"step": 4, "train/loss": 1.0},
    ):
        assert memory.lacks(row)
        memory.keep_row(row)
    again = Memory(tmp_path / "state.json", None)
    assert (again.rows, again.steps) == (3, {"train": 4, "validation": 2})
    assert not again.lacks({"step": 4, "train/loss": 2.0})
    assert not again.lacks({"step": 2, "train/loss": 2.0})
    assert again.lacks({"step": 4, "validation/loss": 2.0})


def contents_below(folder: Path) -> Iterator[bytes]:
    for path in filter(Path.is_file, folder.rglob("*")):
        yield path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from map(archive.read, archive.namelist())


def test_keys_are_neither_written_nor_printed(twice: Tracked) -> None:
    assert KEY in (twice.folder.parent.parent / ".env").read_text(), "the trackers had it"
    places = (twice.folder.parent, twice.folder.parent.parent / "state")
    found = [content for place in places for content in contents_below(place)]
    assert len(found) > 10
    assert not [content for content in found if KEY.encode() in content]
    assert KEY not in "".join(twice.said)


# ------------------------------------------------------------------------- a tracker that fails costs nothing

NOBODY = "http://127.0.0.1:9"
NO_RETRIES = ("COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL", "COMET_HTTP_SESSION_RETRY_TOTAL")
BROKEN: dict[str, tuple[str, dict[str, str], str]] = {
    "wandb without a key": ("wandb", {}, "No API key configured"),
    "wandb whose server is down": (
        "wandb",
        {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": NOBODY, "WANDB_INIT_TIMEOUT": "2"},
        "connection refused",
    ),
    "comet without a key": ("comet", {}, "COMET_API_KEY is not set"),
    "comet whose server is down": (
        "comet",
        {"COMET_API_KEY": KEY, "COMET_URL_OVERRIDE": f"{NOBODY}/clientlib/"} | dict.fromkeys(NO_RETRIES, "0"),
        "Max retries exceeded",
    ),
    "mlflow whose server is down": (
        "mlflow",
        {"MLFLOW_TRACKING_URI": "http://me:s3cr3t-word@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        "API request to",
    ),
    "mlflow with a store that is none": ("mlflow", {"MLFLOW_TRACKING_URI": "ftp://x"}, "ftp"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], float, bytes]]:
    """What each broken tracker said, and the longest time that a row took, in seconds. All at once."""
    opened_ones: dict[str, tuple[Trackers, list[str], float, Path]] = {}
    with bare_home(tmp_path_factory):
        for case, (name, settings, _) in BROKEN.items():
            said: list[str] = []
            folder = tmp_path_factory.mktemp("broken")
            trackers = opened(folder, name, said, **settings)
            opened_ones[case] = (
                trackers,
                said,
                max(seconds_of(trackers, row) for row in ROWS),
                folder / ".nima",
            )
        for trackers, *_ in opened_ones.values():
            trackers.end(Ending("finished"))
    return {
        case: (said, longest, b"".join(contents_below(folder)))
        for case, (_, said, longest, folder) in opened_ones.items()
    }


def seconds_of(trackers: Trackers, row: dict[str, Any]) -> float:
    started = time.perf_counter()
    trackers.log_row(row)
    return time.perf_counter() - started


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_tracker_is_one_line_and_the_run_goes_on(
    broken: dict[str, tuple[list[str], float, bytes]], case: str
) -> None:
    name, _, reason = BROKEN[case]
    said, longest, written = broken[case]
    assert len(said) == 1, said
    assert said[0].startswith(f"{name}: ")
    assert reason in said[0]
    assert "switched off, training goes on" in said[0]
    assert "\n" not in said[0]
    assert KEY not in said[0]
    assert "s3cr3t" not in said[0]
    assert b"Traceback" in written, "its log says more"
    assert KEY.encode() not in written
    assert b"s3cr3t" not in written
    assert longest < 1.0


def test_a_folder_that_cannot_be_written_switches_tensorboard_off(tmp_path: Path) -> None:
    (tmp_path / ".nima").mkdir()
    (tmp_path / ".nima/trackers").write_text("a file where a folder should be")
    said: list[str] = []
    trackers = opened(tmp_path, "tensorboard", said)
    trackers.log_row(ROWS[0])
    trackers.end(Ending("finished"))
    assert len(said) == 1
    assert "Not a directory" in said[0]
    assert trackers.runs() == {}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in taken:
            connection.close()


# More than a pipe holds, after a few hundred times.
LONG_ROW = {"step": 1} | {f"train/{number}": 0.1 for number in range(50)}


def test_a_tracker_that_hangs_neither_slows_training_nor_holds_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str
) -> None:
    monkeypatch.setattr(trackers_module, "WAIT_SECONDS", 1.0)
    said: list[str] = []
    trackers = opened(tmp_path, "mlflow", said, MLFLOW_TRACKING_URI=silent_server)
    longest = max(seconds_of(trackers, LONG_ROW) for _ in range(2000))
    process = trackers.couriers["mlflow"].process
    started = time.perf_counter()
    trackers.end(Ending("finished"))
    waited = time.perf_counter() - started
    process.kill()
    process.wait()
    assert longest < 1.0
    assert 1.0 <= waited < 3.0
    assert said == [f"mlflow: not done yet; process {process.pid} goes on sending for a while"]


def test_a_tracker_that_falls_too_far_behind_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str
) -> None:
    monkeypatch.setattr("nima.trackers.courier.MAX_WAITING", 100)
    said: list[str] = []
    trackers = opened(tmp_path, "mlflow", said, MLFLOW_TRACKING_URI=silent_server)
    for _ in range(1000):
        trackers.log_row(LONG_ROW)
    trackers.end(Ending("finished"))
    assert len(said) == 1
    assert said[0].startswith("mlflow: 100 messages behind; switched off")
    assert trackers.couriers["mlflow"].process.poll() is not None


def test_a_tracker_that_cannot_even_start_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".nima").mkdir()
    (tmp_path / ".nima/logs").write_text("a file where a folder should be")
    said: list[str] = []
    trackers = opened(tmp_path, "tensorboard,mlflow", said)
    trackers.log_row(ROWS[0])
    trackers.end(Ending("finished"))
    assert [line.partition("; ")[2] for line in said] == ["switched off, training goes on"] * 2
    assert [line.partition(":")[0] for line in said] == ["tensorboard", "mlflow"]


def test_of_several_processes_only_the_first_has_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert opened(tmp_path, "tensorboard", []).couriers == {}
    monkeypatch.setenv("RANK", "0")
    trackers = opened(tmp_path, "tensorboard", [])
    trackers.end(Ending("finished"))
    assert list(trackers.couriers) == ["tensorboard"]


def test_a_tracker_whose_process_dies_is_one_line(tmp_path: Path) -> None:
    said: list[str] = []
    trackers = opened(tmp_path, "tensorboard", said)
    trackers.couriers["tensorboard"].process.kill()
    for row in ROWS:
        trackers.log_row(row)
    trackers.end(Ending("finished"))
    assert len(said) == 1
    assert said[0].startswith("tensorboard: its process ended with code -9; switched off")


def test_a_sender_whose_trainer_is_gone_and_whose_tracker_hangs_ends_by_itself(
    tmp_path: Path, silent_server: str
) -> None:
    code = "import nima.trackers.sender as sender\nsender.END_SECONDS = 1\nsender.main('mlflow')\n"
    environment = bare(dict(os.environ)) | {"MLFLOW_TRACKING_URI": silent_server, "PYTHONPATH": "src"}
    run = {"name": "n", "tags": [], "params": {}, "folder": str(tmp_path), "process": 1}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(run).encode() + b"\n")
        process.stdin.close()
        assert process.wait(timeout=60) == -signal.SIGALRM


def test_a_missing_extra_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "TRACKERS", dict(TRACKERS) | {"wandb": ("no_such_package",)})
    with pytest.raises(UserError) as caught:
        runtime_in(tmp_path, "tensorboard,wandb")
    assert str(caught.value) == "NIMA_TRACKERS: wandb needs the extra wandb: pip install 'nima-lm[wandb]'"


def test_a_folder_named_like_a_package_does_not_pass_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not runtime.is_installed("no_such_package")
    assert runtime.is_installed("tensorboard")


def test_an_unknown_tracker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^NIMA_TRACKERS: expected any of .*mlflow, found 'neptune'$"):
        runtime_in(tmp_path, "wandb,neptune")


# ------------------------------------------------------------------------------------ cost, histograms, texts


def test_a_row_costs_the_same_late_in_a_run(tmp_path: Path) -> None:
    trackers = opened(tmp_path, "tensorboard", [])
    times = [seconds_of(trackers, ROWS[0] | {"step": step}) for step in range(4000)]
    trackers.end(Ending("interrupted"))
    early, late = statistics.median(times[200:1000]), statistics.median(times[-800:])
    assert late < 3 * early + 20e-6
    assert early < 0.001


def test_histograms_go_to_trackers_at_every_so_many_points(tmp_path: Path) -> None:
    found = runtime_in(tmp_path, "tensorboard", NIMA_HISTOGRAMS="2")
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    trackers = Trackers(
        found,
        printed=found.logs / "run.jsonl",
        say=lambda _: None,
        clock=lambda row: {"speed/tokens_per_second": 5.0} if row["step"] > 2 else {},
        model=model,
    )
    trackers.begin(RECORD)
    for row in ROWS[:5]:
        trackers.log_row(row)
    trackers.end(Ending("finished"))
    points, run = READERS["tensorboard"](tmp_path / ".nima/trackers/tensorboard")
    names = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in ("weight", "bias")}
    assert {name for name, *_ in run["histograms"]} == names
    assert {step for _, step, _ in run["histograms"]} == {6, 10}, "step 2 is history: its weights are gone"
    assert [step for name, step, _ in points if name.startswith("speed/")] == [4, 6, 8, 10]


def test_a_histogram_counts_every_finite_value_of_a_tensor_and_a_sample_of_a_huge_one() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1, 2, 3], [3, 3, torch.nan, torch.inf]]))
    found = histograms_of(model)
    assert set(found) == {"weights/weight"}, "no gradient was computed"
    weights = found["weights/weight"]
    assert (weights.num_values, sum(weights.counts), weights.total, weights.total_squares) == (
        6,
        6,
        12.0,
        32.0,
    )
    assert (weights.edges[0], weights.edges[-1], weights.counts[-1]) == (0.0, 3.0, 3)
    huge = nn.Linear(2 * MAX_VALUES + 2, 1, bias=False)
    assert histograms_of(huge)["weights/weight"].num_values <= MAX_VALUES
    assert histogram(torch.zeros(5).numpy()).counts.count(5) == 1


def test_values_that_hardly_differ_or_differ_vastly_have_a_histogram() -> None:
    for values in ([1.0, 1.0 + 2**-23], [-3e38, 3e38], [0.0, 1e-45]):
        assert sum(histogram(torch.tensor(values).numpy()).counts) == 2


def test_later_stages_add_to_the_run_that_trained_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = opened(tmp_path, "tensorboard", [])
    trackers.log_row(ROWS[0])
    trackers.end(Ending("finished", 1, 2))
    model = tmp_path / "model"
    model.mkdir()
    weights = model / "model.safetensors"
    weights.write_bytes(b"weights")
    found = runtime_in(tmp_path, "tensorboard,mlflow")
    tell_trackers(found, model, metrics={"test": {"loss": 2.5}})
    assert "no tracker here knows the run" in capsys.readouterr().err

    record = RECORD | {"schema": 1, "metrics": {"step": 2}, "num_rows": 1, "trackers": trackers.runs()}
    found.records.mkdir(parents=True)
    content = json.dumps(record | {"outputs": {str(weights): content_of(weights)}})
    (found.records / "20260101-000000-a.json").write_text(content)
    tell_trackers(found, model, metrics={"test": {"loss": 2.5, "name": "x"}}, texts={"samples": "once"})
    points, run = READERS["tensorboard"](tmp_path / ".nima/trackers/tensorboard")
    assert ("test/loss", 2, 2.5) in points
    assert run["texts"] == {"samples": "once"}
    assert run["names"] == [RECORD["name"]]
    assert "mlflow" not in capsys.readouterr().err, "it has no run to add to"
    tell_trackers(runtime_in(tmp_path, ""), model / "nowhere")


def test_params_are_told_under_dotted_keys() -> None:
    tree = {"a": {"b": 1, "c": None}, "d": [{"e": 2}, {"e": [1, 2]}], "f": [], "g": True, "h": {}}
    flattened = dict(flat(tree))
    assert flattened == {
        "a.b": 1,
        "a.c": "None",
        "d.0.e": 2,
        "d.1.e": "[1, 2]",
        "f": "[]",
        "g": True,
        "h": "{}",
    }
    assert dict(figures_in(tree)) == {"a/b": 1.0, "d/0/e": 2.0}


def test_reasons_are_one_short_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh12345678")
    told = in_one_line("cannot\n  reach http://me:word@host/x with abcdefgh12345678 " + "x" * 500)
    assert told.startswith("cannot reach http://***@host/x with *** xx")
    assert len(told) == 200


def test_no_sender_is_left(tmp_path: Path) -> None:
    trackers = opened(tmp_path, "tensorboard", [])
    trackers.end(Ending("finished"))
    process = trackers.couriers["tensorboard"].process
    assert process.returncode == 0
    assert not psutil.pid_exists(process.pid)
