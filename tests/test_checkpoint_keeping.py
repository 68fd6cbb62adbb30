"""Which checkpoints stay, how they lie on disk, and that saving neither waits nor loses anything."""

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from nima.checkpoint import names
from nima.checkpoint import run_folder as module
from nima.checkpoint.run_folder import RunFolder, open_run
from nima.checkpoint.state import Checkpoint, load
from nima.workspace.errors import CheckpointError, UserError


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def checkpoint(step: int, num_values: int = 6, **metrics: float) -> Checkpoint:
    weight = torch.randn(num_values, generator=torch.Generator().manual_seed(step))
    return Checkpoint(step, {"a": weight}, {"momentum/a": 2 * weight}, {"rows": [], "step": step}, metrics)


def steps_in(run: RunFolder) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in run.checkpoints()]


@contextlib.contextmanager
def opened(path: Path, **how: Any) -> Iterator[RunFolder]:
    with open_run(path / "run", {}, **({"keep": 2} | how)) as run:
        yield run


# -------------------------------------------------------------------------------------------- keeping


@pytest.mark.parametrize(("metric", "kept"), [("loss", [3, 4, 6, 7]), ("accuracy", [1, 2, 6, 7])])
def test_the_best_by_a_metric_stay_beside_the_newest(tmp_path: Path, metric: str, kept: list[int]) -> None:
    with opened(tmp_path, keep_best=2, best_metric=metric) as run:
        for step, value in enumerate([9.0, 8.0, 1.0, 2.0, 5.0, 6.0, 7.0], start=1):
            run.save(checkpoint(step, **{metric: value}))
        assert steps_in(run) == kept


def test_a_checkpoint_is_wanted_that_would_be_among_the_best(tmp_path: Path) -> None:
    with opened(tmp_path, keep_best=1) as run:
        assert run.wants(1, {"loss": 3.0})
        run.save(checkpoint(1, loss=3.0))
        assert not run.wants(1, {"loss": 2.0})  # it is there already
        assert not run.wants(2, {"loss": 3.0})
        assert not run.wants(2, {})
        assert run.wants(2, {"loss": 2.9})
    with opened(tmp_path) as run:
        assert not run.wants(2, {"loss": 0.0})


def test_a_named_checkpoint_outlives_the_others_until_its_name_is_released(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.save(checkpoint(1))
        names.give_name(run.path, "before-decay", "step-00000001")
        for step in (2, 3, 4):
            run.save(checkpoint(step))
        assert steps_in(run) == [1, 3, 4]
        assert load(run.path / "names/before-decay").step == 1
        names.release_name(run.path, "before-decay")
        run.save(checkpoint(5))
        assert steps_in(run) == [4, 5]


def test_a_request_makes_the_next_checkpoint_a_named_one(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert not run.wants(1, {})
        request = names.request_save(run.path, "mine")
        assert run.wants(1, {})
        run.save(checkpoint(1))
        assert not request.exists()
        assert names.names_in(run.path) == {"mine": "step-00000001"}
        assert not run.wants(2, {})


@pytest.mark.parametrize("name", ["", "../up", "a b", "-x", "x" * 101])
def test_what_cannot_be_a_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^checkpoint name .*expected letters"):
        names.request_save(tmp_path, name)


def test_a_name_is_given_once_and_only_to_what_is_there(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.save(checkpoint(1))
        run.save(checkpoint(2))
        names.give_name(run.path, "mine", "step-00000001")
        names.give_name(run.path, "mine", "step-00000001")
        with pytest.raises(UserError, match="already names step-00000001; release"):
            names.give_name(run.path, "mine", "step-00000002")
        with pytest.raises(UserError, match="the name is taken"):
            names.request_save(run.path, "mine")
        with pytest.raises(UserError, match="step-00000009: not found; see `nima checkpoint list`"):
            names.give_name(run.path, "other", "step-00000009")
        with pytest.raises(UserError, match="no checkpoint has this name"):
            names.release_name(run.path, "other")


# ---------------------------------------------------------------------------------------- compression


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zstd"])
def test_a_compressed_run_comes_back_to_the_bit_and_damage_is_found(tmp_path: Path, kind: str) -> None:
    with opened(tmp_path, compression=kind) as run:
        best = run.save_best(1, {"a": torch.arange(5000.0)})
        for step in (1, 2):
            saved = checkpoint(step, 5000)
            run.save(Checkpoint(step, saved.model, saved.optimizer, saved.state | {"best": best}))
        files = {path.name: path.read_bytes() for path in run.step_path(2).iterdir()}
        assert not any(name.endswith((".safetensors", "state.json")) for name in files)
        run.save(Checkpoint(2, saved.model, saved.optimizer, saved.state | {"best": best}))
        assert {path.name: path.read_bytes() for path in run.step_path(2).iterdir()} == files
    with opened(tmp_path) as run:  # another compression, or none, may follow
        found = run.load_newest(pytest.fail)
        assert found is not None
        assert torch.equal(found.model["a"], saved.model["a"])
        assert torch.equal(found.optimizer["momentum/a"], saved.optimizer["momentum/a"])
        assert torch.equal(run.load_best(best)["a"], torch.arange(5000.0))
        damaged = next(run.step_path(2).glob("model*"))
        damaged.write_bytes(damaged.read_bytes()[:-5])
        warnings: list[str] = []
        assert getattr(run.load_newest(warnings.append), "step", None) == 1
        assert str(damaged) in warnings[0]


def test_what_is_no_compressed_file_though_its_hash_agrees_is_one_line(tmp_path: Path) -> None:
    from test_checkpoint import vouch_for

    with opened(tmp_path, compression="zstd") as run:
        run.save(checkpoint(1))
        (run.step_path(1) / "model.safetensors.zst").write_bytes(b"no frame")
        vouch_for(run.step_path(1), "model.safetensors.zst")
        with pytest.raises(CheckpointError, match=r"model.safetensors.zst: not zstd: [^\n]+$"):
            load(run.step_path(1))


def test_a_checkpoint_of_another_run_is_never_taken_for_ours(tmp_path: Path) -> None:
    with open_run(tmp_path / "theirs", {}, keep=2) as theirs:
        theirs.save(checkpoint(7))
    with opened(tmp_path) as run:
        run.save(checkpoint(1))
        (theirs.path / "step-00000007").rename(run.step_path(7))
        warnings: list[str] = []
        assert getattr(run.load_newest(warnings.append), "step", None) == 1
        assert "belongs to another run, theirs" in warnings[0]


# -------------------------------------------------------------------------------------- in background


def test_training_goes_on_while_a_checkpoint_is_written_and_changes_nothing_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    write = module.write

    def held_back(*arguments: Any) -> None:
        assert may_write.wait(10)
        write(*arguments)

    monkeypatch.setattr(module, "write", held_back)
    weight = torch.ones(4)
    state: dict[str, Any] = {"rows": [{"step": 1}], "step": 1}
    with opened(tmp_path) as run:
        run.begin_save(Checkpoint(1, {"a": weight}, {}, state))
        weight.zero_()  # the next update
        state["rows"].append({"step": 2})
        assert steps_in(run) == []
        may_write.set()
        run.wait()
        found = load(run.step_path(1))
        assert torch.equal(found.model["a"], torch.ones(4))
        assert found.state["rows"] == [{"step": 1}]


def test_leaving_a_run_waits_for_what_was_begun(tmp_path: Path) -> None:
    with contextlib.suppress(KeyError), opened(tmp_path) as run:
        run.begin_save(checkpoint(3))
        raise KeyError
    assert steps_in(run) == [3]


def test_a_failure_in_the_background_stops_the_training_at_its_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tmp_path) as run:
        run.save(checkpoint(1))
        with monkeypatch.context() as lies:
            lies.setattr(module, "write_tensors", full)
            run.save_best(2, {"a": torch.ones(3)})
            run.begin_save(Checkpoint(2, {}, {}, {"best": {"file": "best-00000002.safetensors"}}))
            futures.wait(run.writer.jobs.values())
            with pytest.raises(UserError, match="no room for the best weights, of step 2"):
                run.check()
        assert steps_in(run) == [1]  # nothing names weights that are not there
        run.check()
        run.save(checkpoint(3))


# ------------------------------------------------------------------------------------- faults of a disk


class FullDisk:
    """From the n-th change of the file system on, there is no room; counts the changes."""

    def __init__(self, patch: pytest.MonkeyPatch, first: float = float("inf")) -> None:
        self.first, self.num_changes = first, 0
        for owner, name in ((os, "fsync"), (os, "rename"), (os, "mkdir"), (safetensors.torch, "save_file")):
            patch.setattr(owner, name, self.counted(getattr(owner, name)))
        patch.setattr("nima.network.tensors.save_file", self.counted(safetensors.torch.save_file))
        patch.setattr("nima.checkpoint.files.json.dump", self.counted(module.json.dump))

    def counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            self.num_changes += 1
            if self.num_changes >= self.first:
                raise OSError(errno.ENOSPC, "No space left on device")
            return change(*arguments, **named)

        return counting


def save_again(run: RunFolder) -> None:
    """A new checkpoint with best weights, and one that replaces another of its step."""
    best = run.save_best(2, {"a": torch.ones(3)})
    for _ in range(2):
        later = checkpoint(2)
        run.save(Checkpoint(2, later.model, later.optimizer, later.state | {"best": best}))


@pytest.mark.parametrize("kind", ["none", "zstd"])
def test_a_disk_that_is_full_at_any_stage_of_a_save_costs_no_saved_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with monkeypatch.context() as patch, opened(tmp_path / "whole", compression=kind) as run:
        run.save(checkpoint(1))
        disk = FullDisk(patch)
        save_again(run)
        num_changes = disk.num_changes
    assert num_changes > 20
    messages: list[str] = []
    for first in range(1, num_changes + 1, 1 if kind == "none" else 4):
        place = tmp_path / str(first)
        with opened(place, compression=kind) as run:
            run.save(checkpoint(1))
            with monkeypatch.context() as patch:
                FullDisk(patch, first)
                try:
                    save_again(run)
                except UserError as error:
                    messages.append(str(error))
                except OSError:  # while old state is dropped: the stage names the place
                    pass
            left = steps_in(run)
        with opened(place, compression=kind) as run:
            found = run.load_newest(pytest.fail)
            assert found is not None
            assert found.step >= max(left)
            assert not list(run.path.glob("partial-*"))
            assert not list(run.path.glob("replaced-*"))
    told = r"[^\n]*no room for [^\n]*step-0000000\d is intact; free some room[^\n]*"
    assert len(messages) > (15 if kind == "none" else 8)
    assert [message for message in messages if not re.fullmatch(told, message)] == []


def test_a_step_whose_replacement_was_cut_short_is_found_again(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.save(checkpoint(1))
        run.step_path(1).rename(run.path / "replaced-step-00000001")
    with opened(tmp_path) as run:
        assert steps_in(run) == [1]
