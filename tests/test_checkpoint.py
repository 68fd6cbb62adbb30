"""Saved state: whole or not at all, never another run's, never two trainers in one folder."""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nima.checkpoint import run_folder as module
from nima.checkpoint.files import description_of, sha256_of
from nima.checkpoint.finished_runs import drop_stored
from nima.checkpoint.run_folder import RunFolder, open_run, run_fingerprint
from nima.checkpoint.state import Checkpoint, load, own_sha256
from nima.workspace.errors import CheckpointError, UserError

PARTS = {"training": {"lr": 0.1}}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with open_run(tmp_path / "run", PARTS, keep=2) as folder:
        yield folder


def checkpoint(step: int, num_values: int = 6, **state: Any) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(num_values, generator=generator)
    return Checkpoint(
        step=step,
        model={"a": weight, "b": torch.randn(2, 3, generator=generator).bfloat16()},
        optimizer={"step/a": torch.tensor(float(step)), "momentum/a": weight * 2},
        state={"rows": [{"step": step, "loss": 0.1 + step}], "step": step} | state,
    )


def vouch_for(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that somebody changed."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] |= description_of(folder / name)
    del manifest["sha256"]
    manifest["sha256"] = own_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def steps_in(folder: RunFolder) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.path.glob("step-*"))


def newest(folder: RunFolder) -> tuple[int | None, list[str]]:
    warnings: list[str] = []
    found = folder.load_newest(warnings.append)
    return (None if found is None else found.step), warnings


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.step == expected.step
    assert found.state == expected.state
    for ours, theirs in ((found.model, expected.model), (found.optimizer, expected.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name])


# ------------------------------------------------------------------------------------------ round trip


def test_a_checkpoint_comes_back_to_the_bit(run: RunFolder) -> None:
    value = 0.1 + 0.2
    saved = checkpoint(3, best=None, nats=value, inf=float("inf"), rows=[{"step": 1, "x": 1e-300}])
    run.save(saved)
    found = run.load_newest(pytest.fail)
    assert found is not None
    assert_same(found, saved)


def test_equal_state_is_saved_as_equal_bytes(run: RunFolder) -> None:
    def saved() -> dict[str, str]:
        run.save(checkpoint(3))
        return {path.name: sha256_of(path) for path in run.step_path(3).iterdir()}

    assert saved() == saved()


def test_a_run_without_checkpoints_begins(run: RunFolder) -> None:
    assert newest(run) == (None, [])


def test_state_before_the_first_update_can_be_saved(run: RunFolder) -> None:
    run.save(Checkpoint(0, {"a": torch.ones(2)}, {}, {"step": 0}))
    found = run.load_newest(pytest.fail)
    assert found is not None
    assert (found.step, found.optimizer) == (0, {})


def test_the_newest_checkpoints_are_kept_and_older_ones_dropped(run: RunFolder) -> None:
    for step in (1, 2, 9, 10, 11):
        run.save(checkpoint(step))
    assert steps_in(run) == [10, 11]
    assert newest(run) == (11, [])


def test_saving_a_step_again_replaces_it(run: RunFolder) -> None:
    run.save(checkpoint(4, note="first"))
    run.save(checkpoint(4, note="second"))
    found = run.load_newest(pytest.fail)
    assert found is not None
    assert found.state["note"] == "second"
    assert sorted(path.name for path in run.path.iterdir()) == ["lock", "names", "run.json", "step-00000004"]


def test_the_fingerprint_names_everything_that_decides_a_result() -> None:
    parts = {"training": {"lr": 0.1, "seed": 1}, "inputs": "ab"}
    same = {"inputs": "ab", "training": {"seed": 1, "lr": 0.1}}
    assert run_fingerprint(parts) == run_fingerprint(same)
    assert run_fingerprint(parts) != run_fingerprint(parts | {"inputs": "ac"})
    assert run_fingerprint(parts) != run_fingerprint({"training": {"lr": 0.2, "seed": 1}, "inputs": "ab"})


# --------------------------------------------------------------------------------------------- damage

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(FILES), place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_flipped_byte_falls_back_to_the_checkpoint_before(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, flip: int
) -> None:
    with open_run(tmp_path_factory.mktemp("run"), PARTS, keep=2) as run:
        for step in (1, 2):
            run.save(checkpoint(step))
        file = run.step_path(2) / name
        content = bytearray(file.read_bytes())
        content[place % len(content)] ^= flip
        file.write_bytes(content)
        step, warnings = newest(run)
        if name == "manifest.json" and not warnings:  # white space between its words
            assert_same(load(run.step_path(2)), checkpoint(2))
        else:
            assert step == 1
            assert len(warnings) == 1
            assert str(run.step_path(2)) in warnings[0]
            assert "falling back to the one before" in warnings[0]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [0, 1, -1])
def test_a_truncated_file_falls_back(run: RunFolder, name: str, size: int) -> None:
    for step in (1, 2):
        run.save(checkpoint(step))
    file = run.step_path(2) / name
    content = file.read_bytes()
    file.write_bytes(content[:size])
    if name == "manifest.json" and size == -1:  # only its last line end is gone
        assert newest(run) == (2, [])
    else:
        assert newest(run)[0] == 1


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_falls_back(run: RunFolder, name: str) -> None:
    for step in (1, 2):
        run.save(checkpoint(step))
    (run.step_path(2) / name).unlink()
    step, [warning] = newest(run)
    assert step == 1
    assert name in warning


def test_a_manifest_that_lists_nothing_vouches_for_nothing(run: RunFolder) -> None:
    run.save(checkpoint(1))
    manifest = run.step_path(1) / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps(content | {"files": {}}), encoding="utf-8")
    assert newest(run)[0] is None


def test_with_every_checkpoint_broken_a_run_begins_anew_and_says_so(run: RunFolder) -> None:
    for step in (1, 2):
        run.save(checkpoint(step))
        (run.step_path(step) / "state.json").write_text("{}", encoding="utf-8")
    step, warnings = newest(run)
    assert step is None
    assert len(warnings) == 2


def test_a_broken_checkpoint_never_pushes_a_whole_one_out(run: RunFolder) -> None:
    for step in (10, 20, 30):
        run.save(checkpoint(step))
    (run.step_path(30) / "model.safetensors").write_bytes(b"")
    assert newest(run)[0] == 20
    run.save(checkpoint(25))
    assert steps_in(run) == [20, 25]
    assert newest(run) == (25, [])


class Harmful:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(run: RunFolder, tmp_path: Path) -> None:
    for step in (1, 2):
        run.save(checkpoint(step))
    folder, target = run.step_path(2), tmp_path / "executed"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Harmful(target)))
    vouch_for(folder, "model.safetensors")
    step, [warning] = newest(run)
    assert step == 1
    assert "not written by Nima" in warning
    assert not target.exists()


def test_a_run_killed_while_saving_leaves_nothing_that_counts(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", PARTS, keep=2) as run:
        run.save(checkpoint(1))
        shutil.copytree(run.step_path(1), run.path / "partial-step-00000002")
        (run.path / "partial-best-00000002.safetensors").write_bytes(b"half")
        assert newest(run) == (1, [])
    with open_run(tmp_path / "run", PARTS, keep=2) as run:
        assert list(run.path.glob("partial-*")) == []
        assert newest(run) == (1, [])


# --------------------------------------------------------------------------------------- best weights


def test_best_weights_come_back_to_the_bit(run: RunFolder) -> None:
    record = run.save_best(5, checkpoint(5).model)
    assert torch.equal(run.load_best(record)["a"], checkpoint(5).model["a"])


def test_only_best_weights_that_a_kept_checkpoint_names_are_kept(run: RunFolder) -> None:
    best = None
    for step in range(1, 7):
        if step in (1, 3, 4):
            best = run.save_best(step, checkpoint(step).model)
        run.save(checkpoint(step, best=best))
    assert [path.name for path in run.path.glob("best-*")] == ["best-00000004.safetensors"]
    run.save(checkpoint(7, best=run.save_best(7, checkpoint(7).model)))
    names = sorted(path.name for path in run.path.glob("best-*"))
    assert names == [
        "best-00000004.safetensors",
        "best-00000007.safetensors",
    ]  # step 6 still names the former


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_checkpoint_whose_best_weights_are_damaged_is_not_whole(run: RunFolder, damage: str) -> None:
    run.save(checkpoint(1))
    record = run.save_best(2, checkpoint(2).model)
    run.save(checkpoint(2, best=record))
    file = run.path / record["file"]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    step, [warning] = newest(run)
    assert step == 1
    assert f"{file}: missing or damaged" in warning


# ----------------------------------------------------------------------------------------------- lock

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {source!r})
from nima.checkpoint.run_folder import open_run
with open_run(Path({path!r}), {{}}, keep=2):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_trainer_is_told_who_runs_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = HOLDER.format(source=str(Path(module.__file__).parent.parent.parent), path=str(path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            with (
                pytest.raises(UserError, match=rf"another trainer \(pid {holder.pid}\)"),
                open_run(path, {}, 2),
            ):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=10)
        with open_run(path, {}, keep=2):
            assert (path / "lock").read_text(encoding="utf-8") == str(os.getpid())


def test_a_run_can_be_opened_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with open_run(tmp_path / "run", PARTS, keep=2) as run:
            assert json.loads((run.path / "run.json").read_text(encoding="utf-8")) == PARTS


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("x", encoding="utf-8")
    with (
        pytest.raises(UserError, match=r"^[^\n]*cannot be written: [^\n]+$"),
        open_run(tmp_path / "checkpoints/run", {}, 2),
    ):
        pass


# ------------------------------------------------------------------------------------------- finished


def finished(path: Path, model: bytes) -> None:
    """A run that ended and exported a model file with that content."""
    with open_run(path, PARTS, keep=2) as run:
        run.save(checkpoint(1))
        exported = path.parent / "model.safetensors"
        exported.write_bytes(model)
        run.finish(exported)
        exported.unlink()


def test_only_finished_runs_whose_model_is_stored_are_dropped(tmp_path: Path) -> None:
    finished(tmp_path / "ours", b"aa")
    finished(tmp_path / "theirs", b"bb")
    with open_run(tmp_path / "unfinished", PARTS, keep=2) as run:
        run.save(checkpoint(1))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/finished.json").write_text("[]", encoding="utf-8")
    drop_stored(tmp_path, hashlib.md5(b"aa").hexdigest().__eq__)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd", "theirs", "unfinished"]
    drop_stored(tmp_path / "nowhere", lambda _: True)


def test_a_finished_run_that_is_taken_up_again_is_not_dropped(tmp_path: Path) -> None:
    finished(tmp_path / "run", b"aa")
    with open_run(tmp_path / "run", PARTS, keep=2) as run:
        drop_stored(tmp_path, lambda _: True)
        assert newest(run) == (1, [])
    drop_stored(tmp_path, lambda _: True)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------- full disk


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of that size; skips where none can be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # tensors may still map its files


BIG = 300_000  # values: 1.2 MB of weights, and as much again of optimizer state


def ask_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the check before writing pass, so that the disk fills up while a file is written."""
    usage = shutil._ntuple_diskusage(10**12, 0, 10**12)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)


@pytest.mark.parametrize("checked_before", [True, False])
def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked_before: bool
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        ballast = disk / "ballast"
        with open_run(disk / "run", PARTS, keep=2) as run:
            run.save(checkpoint(1, BIG))
            ballast.write_bytes(bytes(4_500_000))
            with monkeypatch.context() as lies:
                if not checked_before:
                    ask_no_size(lies)
                with pytest.raises(UserError) as caught:
                    run.save(checkpoint(2, BIG))
                message = str(caught.value)
                assert "no room for the checkpoint of step 2" in message
                assert "step-00000001 is intact; free some room and run again" in message
                assert "\n" not in message
                run.save_best(2, checkpoint(2, 10 * BIG).model)
                with pytest.raises(UserError, match="no room for the best weights, of step 2"):
                    run.wait()
            assert list(run.path.glob("partial-*")) == []
            found = run.load_newest(pytest.fail)
            assert found is not None
            assert_same(found, checkpoint(1, BIG))
        ballast.unlink()
        with open_run(disk / "run", PARTS, keep=2) as run:
            run.save(checkpoint(2, BIG))
            assert newest(run) == (2, [])


def test_a_disk_without_any_room_is_one_line_when_a_run_is_opened(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        (disk / "run").mkdir()
        with contextlib.suppress(OSError), (disk / "ballast").open("wb") as ballast:
            ballast.write(bytes(2_000_000))
        with (
            pytest.raises(UserError, match="run: cannot be written: No space left on device"),
            open_run(disk / "run", PARTS, keep=2),
        ):
            pass


def test_a_nearly_full_disk_is_noticed_before_anything_is_written(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 5_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        UserError, match=r"needs 1,000,064 bytes, 5,000 are free. Free some room and run again"
    ):
        run.save(checkpoint(1))
    assert steps_in(run) == []
    assert list(run.path.glob("partial-*")) == []


def test_damage_names_the_file_and_what_is_wrong(run: RunFolder) -> None:
    run.save(checkpoint(1))
    file = run.step_path(1) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-3])
    with pytest.raises(
        CheckpointError, match=rf"{file}: {len(content) - 3} bytes, {len(content)} were written"
    ):
        load(run.step_path(1))
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its sha256 differs from the manifest's"):
        load(run.step_path(1))
