"""Beginning with the weights of another run, and looking at what is saved."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from test_training import Attempt, StopAt, bits, model_of, settings_of, weights

from nima import saved_runs
from nima.checkpoint import names
from nima.checkpoint.lock import is_held
from nima.checkpoint.run_folder import open_run
from nima.checkpoint.state import Checkpoint
from nima.checkpoint.weights import put_into, resolve, weights_in, weights_sha256
from nima.network import pretrained
from nima.workspace.errors import Interrupted, UserError
from nima.workspace.params import ModelParams, RunParams
from nima.workspace.runtime import Runtime
from nima.workspace.runtime import load as load_runtime
from nima.workspace.signals import StopRequest


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def saved_run(path: Path, step: int = 3, compression: str = "none", **shape: object) -> Path:
    """A run with one checkpoint, whose folder is returned."""
    model = model_of(**shape)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    with open_run(path, {}, keep=2, compression=compression) as run:
        run.save(Checkpoint(step, weights(model), {}, {"step": step}))
    return run.step_path(step)


# ------------------------------------------------------------------------------------------ init_from


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_run_begins_with_the_weights_of_a_checkpoint(tmp_path: Path, compression: str) -> None:
    folder = saved_run(tmp_path / "run", compression=compression)
    model = model_of()
    before = bits(weights(model))
    put_into(model, weights_in(folder), folder)
    assert bits(weights(model)) == bits(weights_in(folder)) != before


@pytest.mark.parametrize("tied", [False, True])
def test_a_run_begins_with_the_weights_of_an_exported_model(tmp_path: Path, tied: bool) -> None:
    model, other = model_of(tied=tied), model_of(tied=tied)
    with torch.no_grad():
        model.norm.gain.fill_(3.0)
    pretrained.save(model, model.state_dict(), tmp_path, end_of_text=0, pad=1)
    put_into(other, weights_in(tmp_path), tmp_path)
    assert bits(weights(other)) == bits(weights(model))


def test_a_checkpoint_of_another_architecture_is_refused_with_the_first_difference(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "run")
    other = model_of()
    other.layers[1].attention.query = torch.nn.Linear(32, 48, bias=False)
    with pytest.raises(UserError) as caught:
        put_into(other, weights_in(folder), folder)
    assert str(caught.value) == (
        f"{folder}: of another architecture: layers.1.attention.query.weight has the shape (32, 32), "
        "in this model (48, 32); change the section model"
    )
    with pytest.raises(UserError, match=r"it has no head.weight, this model has"):
        put_into(model_of(), {k: v for k, v in weights_in(folder).items() if k != "head.weight"}, folder)
    with pytest.raises(UserError, match=r"it has more.gain, this model has not"):
        put_into(model_of(), weights_in(folder) | {"more.gain": torch.ones(1)}, folder)


def test_the_hash_of_what_a_run_began_with_follows_the_weights(tmp_path: Path) -> None:
    one, same = saved_run(tmp_path / "a" / "run"), saved_run(tmp_path / "b" / "run")
    other = saved_run(tmp_path / "c" / "run", dropout=0.0, tied=True)
    assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_weights_is_one_line(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    for ask in (weights_in, weights_sha256):
        with pytest.raises(UserError, match=r"^[^\n]+a checkpoint \(.*\) nor an exported model.*$"):
            ask(folder)


def test_a_damaged_checkpoint_is_no_beginning(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(UserError, match=r"model.safetensors: \d+ bytes, \d+ were written"):
        weights_in(folder)


def test_a_path_is_looked_for_here_then_in_the_main_workspace_and_never_among_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    assert resolve("old/step", tmp_path, ()) == tmp_path / "old/step"
    Path("old/step").mkdir(parents=True)
    assert resolve("old/step", tmp_path, ()) == Path("old/step")
    with pytest.raises(UserError, match=r"^training.init_from: \./models/model: this stage writes there"):
        resolve("./models/model", tmp_path, (Path("models/model"),))


# ----------------------------------------------------------------------------------- signals and clocks


def test_a_signal_is_followed_by_a_saved_state_and_the_time_it_took(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run", stop=StopAt(5))
    with pytest.raises(Interrupted, match=r"step \d is saved, \d\.\d\d s after the signal;") as caught:
        attempt.go()
    assert 0 <= caught.value.figures["signal_to_saved_seconds"] < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_time_counts_from_the_first_signal(number: int) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            stop.saved("it")
    assert caught.value.figures["signal_to_saved_seconds"] >= 0.05


def test_a_clock_that_jumps_neither_saves_nor_holds_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter(range(10**6))
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: (-1) ** next(jumps) * 10**9)
    saved: list[int] = []

    attempt = Attempt(tmp_path / "run", run_settings=RunParams(save_every_seconds=1000.0))
    attempt.go(lambda folder: saved.extend(int(path.name[5:]) for path in folder.checkpoints()))
    assert saved == [7]
    source = Path(saved_runs.__file__).parent
    folders = ("checkpoint/*.py", "training/*.py", "workspace/signals.py")
    timed = [path for pattern in folders for path in source.glob(pattern)]
    assert [path for path in timed if re.search(r"time\.time\(|datetime", path.read_text())] == []


# -------------------------------------------------------------------------------------------- commands


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return load_runtime(tmp_path)


def some_runs(runtime: Runtime) -> Path:
    """Two runs; the last with steps 1 and 2, the second of which is named."""
    saved_run(runtime.checkpoints / "aaaa")
    with open_run(runtime.checkpoints / "bbbb", {"model": {"preset": "custom-nano"}}, keep=3) as run:
        for step in (1, 2, 3):
            run.save(Checkpoint(step, weights(model_of()), {}, {"step": step}, {"loss": 1.0 / step}))
    os.utime(runtime.checkpoints / "aaaa/run.json", (1, 1))
    names.give_name(run.path, "good", "step-00000002")
    return run.path


def test_checkpoints_are_found_by_path_name_and_step(runtime: Runtime) -> None:
    run = some_runs(runtime)
    assert saved_runs.run_named(runtime, None) == run
    assert saved_runs.run_named(runtime, "aa").name == "aaaa"
    assert saved_runs.find(runtime, "good") == saved_runs.find(runtime, "2") == run / "step-00000002"
    assert saved_runs.find(runtime, str(run / "names/good")) == run / "step-00000002"
    with pytest.raises(UserError, match=r"^bad: no folder, name or step of a checkpoint; see"):
        saved_runs.find(runtime, "bad")
    with pytest.raises(UserError, match="no run 'zz'"):
        saved_runs.run_named(runtime, "zz")


def test_a_running_trainer_saves_on_request_and_goes_on(tmp_path: Path, runtime: Runtime) -> None:
    run = runtime.checkpoints / "cccc"
    found: list[Path] = []

    def ask() -> None:
        while not is_held(run):
            time.sleep(0.005)
        found.append(saved_runs.save_as(run, "now", None, wait_seconds=20))

    asking = threading.Thread(target=ask)
    asking.start()
    never = RunParams(save_every_steps=None, save_every_seconds=None)
    settings = settings_of(max_steps=150, validate_every_steps=150)
    result = Attempt(run, settings, run_settings=never).go()
    asking.join()
    assert result.state.step == 150
    assert names.names_in(run) == {"now": found[0].name}
    assert found[0].name < "step-00000150"
    saved = sorted(path.name for path in run.glob("step-*"))
    assert saved == [found[0].name, "step-00000150"]  # once was enough


def test_without_a_trainer_the_newest_or_a_given_one_gets_the_name(runtime: Runtime) -> None:
    run = some_runs(runtime)
    assert saved_runs.save_as(run, "last", None, 1).name == "step-00000003"
    assert saved_runs.save_as(run, "first", 1, 1).name == "step-00000001"
    with pytest.raises(UserError, match=r"step-00000009: no manifest\.json"):
        saved_runs.save_as(run, "other", 9, 1)


def test_pruning_by_hand_leaves_the_newest_and_the_named(runtime: Runtime) -> None:
    run = some_runs(runtime)
    assert [path.name for path in saved_runs.prune(run, 1)] == ["step-00000001"]
    with open_run(run, {}, keep=1), pytest.raises(UserError, match="is running this very run"):
        saved_runs.prune(run, 1)


def test_a_run_goes_back_to_a_checkpoint(runtime: Runtime) -> None:
    run = some_runs(runtime)
    with pytest.raises(UserError, match="good is newer and has a name; release it first"):
        saved_runs.rewind(run / "step-00000001", None)
    assert [path.name for path in saved_runs.rewind(run / "step-00000002", None)] == ["step-00000003"]
    with open_run(run, {}, keep=3) as folder:
        assert getattr(folder.load_newest(pytest.fail), "step", None) == 2


def test_a_checkpoint_outside_its_run_is_for_beginning_another(runtime: Runtime, tmp_path: Path) -> None:
    run = some_runs(runtime)
    (run / "step-00000003").rename(tmp_path / "step-00000003")
    with pytest.raises(UserError, match="not in the folder of its run, bbbb; name it as training"):
        saved_runs.rewind(tmp_path / "step-00000003", None)


def test_a_checkpoint_is_evaluated_with_the_shape_of_its_run(runtime: Runtime, tmp_path: Path) -> None:
    shape = {"width": 32, "num_heads": 2, "num_kv_heads": 1, "mlp": "relu2", "mlp_width": 64}
    shape |= {"context_tokens": 16, "tie_embeddings": False}
    ours, other = ({"preset": "custom-nano", **shape, "num_layers": n} for n in (2, 3))
    folder = saved_run(tmp_path / "run")
    assert bits(weights(saved_runs.model_in(folder, ModelParams(**ours)))) == bits(weights_in(folder))
    with pytest.raises(UserError, match=r"it has no layers\.2\."):
        saved_runs.model_in(folder, ModelParams(**other))
    (folder.parent / "run.json").write_text(json.dumps({"model": ours}))
    assert bits(weights(saved_runs.model_in(folder, ModelParams(**other)))) == bits(weights_in(folder))
