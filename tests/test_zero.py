"""DeepSpeed divides a run among processes, and it stays the run that it was.

All scenarios run one after the other in the same two processes, which are started once.
"""

import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_processes import CLOSE, Share, assert_close, forked, last_only, params_of, runtime_of, state_in
from test_training import BLOCK, STEPS, Killed, StopAt

from nima.network.tensors import read_tensors
from nima.processes import ALONE, Processes, joining
from nima.processes.joining import KINDS, joined, num_processes
from nima.workspace.errors import Interrupted, UserError
from nima.workspace.runtime import compute_deterministically

# Weights of runs whose matrix products round.
LOOSE, NEAR = {"rtol": 5e-2, "atol": 5e-2}, {"rtol": 1e-2, "atol": 1e-4}
STAGES = ("zero1", "zero2", "zero3")
ADAMW = {"optimizer": "adamw", "weight_decay": 0.1}
OF_ALL = ("adamw", "micro", "fp16")
RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd"},
    "tied": {"tied": True},
    "packed": {"batching": "packed", "mask_documents": True},
    "micro": {"micro_batch_tokens": BLOCK},
    "uneven": {"batch_tokens": 9 * BLOCK, "micro_batch_tokens": 3 * BLOCK},
    "unclipped": {"max_grad_norm": None},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "overflow": 3},
}
RECIPES_OF = {
    "zero1": (*OF_ALL, "sgd"),
    "zero2": (*OF_ALL, "uneven", "bf16"),
    "zero3": (*OF_ALL, "tied", "packed", "unclipped"),
}
RECOVERY = {"max_recoveries": 1, "lr_ratio": 0.5}
NOT_FINITE: dict[str, dict[str, Any]] = {
    "skipped": {"overflow": 3, "non_finite": "skip"},
    "turned_back": {"overflow": 5, "non_finite": "roll_back", "recovery": RECOVERY},
}


# ------------------------------------------------------------------------- scenarios, in each process


def whole_runs(folder: Path, processes: Processes) -> None:
    for name in RECIPES_OF[folder.parent.name]:
        share = Share(folder / name, processes, **ADAMW | RECIPES[name], save_every_steps=STEPS)
        share.leave(share.go())


def repeated(folder: Path, processes: Processes) -> None:
    share = Share(folder / "run", processes, dropout=0.1, **ADAMW)
    share.leave(share.go())


def recomputed(folder: Path, processes: Processes) -> None:
    share = Share(folder / "run", processes, dropout=0.1, recomputes=True, **ADAMW)
    share.leave(share.go())


def interrupted(folder: Path, processes: Processes) -> None:
    """Killed, then stopped by a signal to one of them, then left to end."""
    for stop in (StopAt(poll=15, killed=True), last_only(processes, 9), StopAt()):
        share = Share(folder / "run", processes, dropout=0.1, **ADAMW)
        with suppress(Killed, Interrupted):
            share.leave(share.go(stop))


def continued(folder: Path, processes: Processes) -> None:
    """What one process began."""
    share = Share(folder / "run", processes, **ADAMW)
    share.leave(share.go())


def skipped(folder: Path, processes: Processes) -> None:
    """An update whose gradient is not finite is left out, and the rest goes on."""
    share = Share(folder / "run", processes, **ADAMW | NOT_FINITE["skipped"])
    share.leave(share.go())


def turned_back(folder: Path, processes: Processes) -> None:
    """To the best weights and their moments, after an update that was not finite."""
    share = Share(folder / "run", processes, **ADAMW | NOT_FINITE["turned_back"])
    share.leave(share.go())


EXACT = (whole_runs, repeated, interrupted, continued)
SCENARIOS = {"zero1": EXACT, "zero2": (*EXACT, skipped), "zero3": (*EXACT, recomputed, skipped, turned_back)}


def play(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    compute_deterministically()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with joined(runtime_of(rank, 2, STAGES[0]), torch.device("cpu")) as first:
        for stage in STAGES:
            processes = KINDS[stage](first.accelerator)  # DeepSpeed joins processes only once
            for scenario in SCENARIOS[stage]:
                scenario(folder / stage / scenario.__name__, processes)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    for stage in STAGES:  # what the scenario `continued` goes on with
        with pytest.raises(Interrupted):
            Share(folder / stage / "continued" / "run", ALONE, **ADAMW).go(StopAt(poll=12))
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(forked, (play, (folder, store.port), 2), nprocs=1)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_compute_what_one_does(played: Path, tmp_path: Path, recipe: str) -> None:
    torch.set_num_threads(1)
    alone = Share(tmp_path / "run", ALONE, **ADAMW | RECIPES[recipe])
    expected = alone.go()
    for stage in (stage for stage in STAGES if recipe in RECIPES_OF[stage]):
        folder = played / stage / "whole_runs" / recipe
        state, _ = state_in(folder)
        exact = alone.settings.precision == "fp32"
        assert_close(state["rows"][:1], expected.state.rows[:1], rtol=1e-6 if exact else 1e-2, atol=1e-7)
        assert_close(state["rows"], expected.state.rows, **(CLOSE if exact else {"rtol": 2e-2, "atol": 4e-2}))
        assert (state["step"], state["processes"]) == (alone.settings.max_steps, 2)
        assert state["scaler"] == expected.state.scaler
        assert state["skipped_updates"] == expected.state.skipped_updates == (1 if recipe == "fp16" else 0)
        last = read_tensors(folder / "last.safetensors")
        assert last.keys() == expected.last_weights.keys()
        for name, value in expected.last_weights.items():
            torch.testing.assert_close(last[name], value, **(NEAR if exact else LOOSE))


@pytest.mark.parametrize("stage", STAGES)
def test_both_processes_know_the_same(played: Path, stage: str) -> None:
    for recipe in RECIPES_OF[stage]:
        first, second = (state_in(played / stage / "whole_runs" / recipe, rank)[0] for rank in (0, 1))
        assert repr(first["rows"]) == repr(second["rows"])
        assert first["scaler"] == second["scaler"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_twice_interrupted_ends_in_the_bytes_of_a_whole_one(played: Path, stage: str) -> None:
    whole, broken = (played / stage / name / "run" for name in ("repeated", "interrupted"))
    for name in ("last.safetensors", "best.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert repr(state_in(broken)[0]) == repr(state_in(whole)[0])
    assert any(line.startswith("continuing after step") for line in state_in(broken)[1])


def test_layers_that_are_computed_again_are_gathered_again(played: Path) -> None:
    whole, again = (played / "zero3" / name / "run/last.safetensors" for name in ("repeated", "recomputed"))
    assert again.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_are_those_of_any_other_run(played: Path, tmp_path: Path, stage: str) -> None:
    """Whole weights and moments by name: one process goes on with what two began, and two with what one."""
    torch.set_num_threads(1)
    alone = Share(tmp_path / "run", ALONE, **ADAMW)
    expected = alone.go()
    folder = played / stage / "whole_runs" / "adamw"
    for name in ("model.safetensors", "optimizer.safetensors"):
        found, own = (read_tensors(max(place.glob("step-*")) / name) for place in (folder, tmp_path / "run"))
        assert found.keys() == own.keys()
        for key, value in own.items():
            torch.testing.assert_close(found[key], value, **NEAR)
    longer = Share(folder, ALONE, max_steps=expected.state.step + 1, **ADAMW)
    assert longer.go().state.step == expected.state.step + 1
    assert any("begun with 2 processes of 1 threads each" in line for line in longer.lines)
    state, lines = state_in(played / stage / "continued" / "run")
    assert_close(state["rows"], expected.state.rows, **CLOSE)
    assert any(re.match(r"begun with \d threads, continued with 2 processes", line) for line in lines)


@pytest.mark.parametrize(
    ("stage", "scenario"), [("zero2", "skipped"), ("zero3", "skipped"), ("zero3", "turned_back")]
)
def test_an_update_that_is_not_finite_leaves_nothing_behind(
    played: Path, tmp_path: Path, stage: str, scenario: str
) -> None:
    torch.set_num_threads(1)
    expected = Share(tmp_path / "run", ALONE, **ADAMW | NOT_FINITE[scenario]).go()
    state, _ = state_in(played / stage / scenario / "run")
    assert state["non_finite_updates"] == expected.state.non_finite_updates == 1
    assert_close(state["rows"], expected.state.rows, **CLOSE)


# ------------------------------------------------------------------------------ what cannot be divided so


def problem(sharding: str, **changes: Any) -> str:
    runtime = replace(runtime_of(0, 1, sharding), place=None, processes=2)
    with pytest.raises(UserError) as caught:
        num_processes(params_of(**changes), runtime)
    return str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_rules_that_need_whole_matrices_are_refused_with_what_takes_them(stage: str) -> None:
    assert problem(stage, optimizer="muon") == (
        f"NIMA_SHARDING: {stage} cannot divide training.optimizer muon; set ddp or fsdp, or one of "
        "adamw, adam, sgd"
    )
    assert "set ddp, or one of" in problem(stage, optimizer="adamw_8bit")


def test_layers_that_are_compiled_cannot_be_gathered_by_hooks() -> None:
    assert problem("zero3", optimizer="adamw", compile=True).endswith("or fsdp or zero2")


def test_without_the_package_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "is_installed", lambda package: False)
    assert problem("zero2", optimizer="adamw") == (
        "NIMA_SHARDING: zero2 needs the extra deepspeed: pip install 'nima-lm[deepspeed]'"
    )
