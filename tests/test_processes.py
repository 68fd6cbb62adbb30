"""Several processes train as one does: the same data, the same sums, and no interruption shows in it.

All scenarios run one after the other in the same few processes, which are started once; single tests look at
what came out.
"""

import gc
import json
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import (
    BLOCK,
    STEPS,
    Attempt,
    Killed,
    Rows,
    StopAt,
    batches_of,
    bits,
    model_of,
    scorer_of,
    settings_of,
    weights,
)

from nima.checkpoint.run_folder import NoFolder, open_run
from nima.monitoring.progress import TrainingProgress
from nima.network.decoder import Decoder
from nima.network.tensors import read_tensors, write_tensors
from nima.processes import ALONE, Processes
from nima.processes.joining import joined, num_processes
from nima.training.loop import Result, Run, train
from nima.training.tracking import Unlogged
from nima.workspace import runtime
from nima.workspace.errors import Interrupted, NonFiniteError, UserError
from nima.workspace.params import Params, RunParams
from nima.workspace.params.params_file import load
from nima.workspace.runtime import Place, Runtime, compute_deterministically

# Weights and losses of fp32 runs that differ in the order of sums only.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


class Lines(TrainingProgress):
    """Keeps what is said."""

    lines: list[str]

    def say(self, line: str) -> None:
        self.lines.append(line)


class Share:
    """One process's part in a run of the loop, and what it leaves in `folder` for the tests."""

    def __init__(self, folder: Path, processes: Processes, **changes: Any) -> None:
        model_changes = {key: changes.pop(key) for key in ("dropout", "tied", "overflow") if key in changes}
        self.folder, self.processes = folder, processes
        self.recomputes = changes.pop("recomputes", False)
        self.save_every_steps = changes.pop("save_every_steps", 2)
        self.settings = settings_of(**{"log_every_steps": 1} | changes)
        self.model = model_of(**model_changes)
        self.lines: list[str] = []

    def go(self, stop: StopAt | None = None) -> Result:
        stop = StopAt() if stop is None else stop
        first = self.processes.is_first
        progress = Lines(self.settings.max_steps or 1, 1000, quiet=True)
        progress.lines = self.lines
        batches = batches_of(self.settings)
        scorer = replace(scorer_of(self.settings), processes=self.processes)
        settings = RunParams(
            save_every_steps=self.save_every_steps,
            save_every_seconds=None,
            activation_checkpointing=self.recomputes,
        )
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open_run(self.folder, {}, keep=2) if first else nullcontext(NoFolder()) as folder, progress:
            run = Run(folder, Rows() if first else Unlogged(), progress, stop, settings)
            return train(
                self.model,
                batches,
                scorer,
                self.settings,
                self.settings.max_steps or 1,
                run,
                self.processes,
            )

    def leave(self, result: Result) -> None:
        """For tests in another process: the state of each, the weights of the first."""
        rank, place = self.processes.rank, self.folder
        place.mkdir(parents=True, exist_ok=True)
        state = json.dumps([asdict(result.state), self.lines])
        (place / f"rank-{rank}.json").write_text(state, encoding="utf-8")
        if rank == 0:
            write_tensors(place / "last.safetensors", result.last_weights)
            write_tensors(place / "best.safetensors", result.best_weights)


def runtime_of(rank: int, num_ranks: int, sharding: str) -> Runtime:
    return Runtime(
        device="cpu",
        threads=1,
        workers=1,
        engine="local",
        scratch=Path(),
        packages=Path(),
        dvc_cache=Path(),
        workspace=Path(),
        settings={},
        telling=runtime.load(Path()).telling,
        sharding=sharding,
        place=Place(rank, num_ranks, rank, num_ranks),
    )


# ------------------------------------------------------------------------- scenarios, in each process

RECIPES: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd"},
    "schedule_free": {"optimizer": "schedule_free", "schedule": "constant"},
    "tied": {"tied": True},
    "packed": {"batching": "packed", "mask_documents": True},
    "padded": {"batching": "padded"},
    "micro": {"micro_batch_tokens": BLOCK},
    "uneven": {"batch_tokens": 9 * BLOCK, "micro_batch_tokens": 3 * BLOCK},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "max_grad_norm": None, "overflow": 3},
}


def changes_of(recipe: str, *, divided: bool) -> dict[str, Any]:
    """Where parameters are divided, the hook that would blow one's gradient up is not called."""
    changes = RECIPES[recipe]
    return changes | {"overflow": 0} if divided and "overflow" in changes else changes


def whole_runs(folder: Path, processes: Processes) -> None:
    for name in RECIPES:
        changes = changes_of(name, divided=not processes.has_all)
        share = Share(folder / name, processes, **changes, save_every_steps=STEPS)
        share.leave(share.go())


def repeated(folder: Path, processes: Processes) -> None:
    for turn in ("first", "second"):
        share = Share(folder / turn, processes, dropout=0.1)
        share.leave(share.go())


def interrupted(folder: Path, processes: Processes) -> None:
    """Killed, then stopped by a signal that comes to the last process alone, then left to end."""
    for stop in (StopAt(poll=15, killed=True), last_only(processes, 9), StopAt()):
        share = Share(folder / "run", processes, dropout=0.1)
        try:
            share.leave(share.go(stop))
        except Killed:
            continue
        except Interrupted as error:
            saved = sorted(path.name for path in (folder / "run").glob("step-*"))
            (folder / f"stopped-{processes.rank}.json").write_text(json.dumps([str(error), saved]))


def last_only(processes: Processes, poll: int) -> StopAt:
    return StopAt(poll=poll) if processes.rank == processes.count - 1 else StopAt()


def continued(folder: Path, processes: Processes) -> None:
    """What one process began."""
    share = Share(folder / "run", processes)
    share.leave(share.go())


def not_finite(folder: Path, processes: Processes) -> None:
    share = Share(folder / "run", processes, overflow=3)
    try:
        share.go()
    except NonFiniteError as error:
        (folder / f"error-{processes.rank}").write_text(str(error))


SCENARIOS: list[tuple[str, Callable[[Path, Processes], None], int]] = [
    ("ddp", whole_runs, 2),
    ("fsdp", whole_runs, 2),
    ("ddp", repeated, 2),
    ("ddp", interrupted, 2),
    ("fsdp", interrupted, 2),
    ("fsdp", repeated, 2),
    ("ddp", continued, 2),
    ("fsdp", continued, 2),
    ("ddp", not_finite, 2),
    ("ddp", repeated, 3),
    ("ddp", interrupted, 3),
]


def play(rank: int, folder: Path, ports: list[int]) -> None:
    torch.set_num_threads(1)
    compute_deterministically()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    for port, (sharding, scenario, count) in zip(ports, SCENARIOS, strict=True):
        if rank < count:
            os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            os.environ["MASTER_PORT"] = str(port)
            with joined(runtime_of(rank, count, sharding), torch.device("cpu")) as processes:
                scenario(folder / f"{sharding}-{scenario.__name__}-{count}", processes)


def forked(_: int, play: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """In a process that has imported everything and computed nothing: its forks need not import it again."""
    gc.freeze()  # nor look through it for garbage
    torch.multiprocessing.start_processes(play, arguments, nprocs=count, start_method="fork")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    for sharding in ("ddp", "fsdp"):  # what the scenario `continued` goes on with
        share = Share(folder / f"{sharding}-continued-2" / "run", ALONE)
        with pytest.raises(Interrupted):
            share.go(StopAt(poll=12))
    stores = [
        torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in SCENARIOS
    ]
    torch.multiprocessing.spawn(forked, (play, (folder, [store.port for store in stores]), 3), nprocs=1)
    return folder


def state_in(folder: Path, rank: int = 0) -> tuple[dict[str, Any], list[str]]:
    state, lines = json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))
    return state, lines


def assert_close(rows: list[dict[str, Any]], expected: list[dict[str, Any]], **tolerance: float) -> None:
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    found, wanted = ([list(row.values()) for row in part] for part in (rows, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), **tolerance)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_compute_what_one_does(
    played: Path, tmp_path: Path, sharding: str, recipe: str
) -> None:
    torch.set_num_threads(1)
    changes = changes_of(recipe, divided=sharding == "fsdp")
    alone = Share(tmp_path / "run", ALONE, **changes)
    expected = alone.go()
    folder = played / f"{sharding}-whole_runs-2" / recipe
    state, _ = state_in(folder)
    exact = alone.settings.precision == "fp32"
    assert_close(state["rows"][:1], expected.state.rows[:1], rtol=1e-6 if exact else 1e-2, atol=1e-7)
    # Muon multiplies in bfloat16 and carries rounding on.
    loose = {"rtol": 2e-2, "atol": 4e-2}
    assert_close(state["rows"], expected.state.rows, **(CLOSE if recipe == "adamw" else loose))
    assert (state["step"], state["processes"]) == (alone.settings.max_steps, 2)
    assert state["skipped_updates"] == expected.state.skipped_updates == (1 if changes.get("overflow") else 0)
    assert state["scaler"] == expected.state.scaler
    last = read_tensors(folder / "last.safetensors")
    assert last.keys() == expected.last_weights.keys()
    if recipe == "adamw":
        for name, value in expected.last_weights.items():
            torch.testing.assert_close(last[name], value, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_processes_know_the_same(played: Path, recipe: str) -> None:
    for sharding in ("ddp", "fsdp"):
        folder = played / f"{sharding}-whole_runs-2" / recipe
        first, second = (state_in(folder, rank)[0] for rank in (0, 1))
        assert repr(first["rows"]) == repr(second["rows"])
        assert first["scaler"] == second["scaler"]
        assert first["steering"] == second["steering"]


@pytest.mark.parametrize(("sharding", "count"), [("ddp", 2), ("fsdp", 2), ("ddp", 3)])
def test_a_run_repeated_and_one_twice_interrupted_end_in_the_same_bytes(
    played: Path, sharding: str, count: int
) -> None:
    first, second = (played / f"{sharding}-repeated-{count}" / name for name in ("first", "second"))
    broken = played / f"{sharding}-interrupted-{count}" / "run"
    for other in (second, broken):
        for name in ("last.safetensors", "best.safetensors"):
            assert (other / name).read_bytes() == (first / name).read_bytes()
        assert repr(state_in(other)[0]) == repr(state_in(first)[0])
    assert any(line.startswith("continuing after step") for line in state_in(broken)[1])


@pytest.mark.parametrize(("sharding", "count"), [("ddp", 2), ("fsdp", 2), ("ddp", 3)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    played: Path, sharding: str, count: int
) -> None:
    folder = played / f"{sharding}-interrupted-{count}"
    found = [json.loads((folder / f"stopped-{rank}.json").read_text()) for rank in range(count)]
    # Only the one that was asked knows how long it took.
    assert len({message.partition(": ")[2].partition(" is saved")[0] for message, _ in found}) == 1
    assert found[-1][0].startswith("stopped by SIGTERM: the state after step")
    assert found[0][0].startswith("stopped by a signal to another process: the state after step")
    # All see it: nobody leaves before the first has saved.
    assert all(saved == found[0][1] for _, saved in found)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_processes_and_says_so(
    played: Path, tmp_path: Path, sharding: str
) -> None:
    torch.set_num_threads(1)
    expected = Share(tmp_path / "run", ALONE).go()
    state, lines = state_in(played / f"{sharding}-continued-2" / "run")
    assert_close(state["rows"], expected.state.rows, rtol=2e-2, atol=2e-2)
    [said] = [line for line in lines if line.startswith("begun with")]
    assert re.match(r"begun with \d threads, continued with 2 processes of 1 threads each", said)
    assert "only to rounding" in said


def test_one_process_goes_on_with_what_several_began(played: Path, tmp_path: Path) -> None:
    """Nothing in a checkpoint depends on their number: these two are those of one run in either form."""
    torch.set_num_threads(1)
    expected = Share(tmp_path / "run", ALONE).go()
    for sharding in ("ddp", "fsdp"):
        folder = played / f"{sharding}-whole_runs-2" / "muon"
        found = read_tensors(max(folder.glob("step-*")) / "optimizer.safetensors")
        alone = read_tensors(max((tmp_path / "run").glob("step-*")) / "optimizer.safetensors")
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in alone.items()
        }
        longer = Share(folder, ALONE, max_steps=expected.state.step + 1)
        result = longer.go()
        assert any("begun with 2 processes of 1 threads each" in line for line in longer.lines)
        assert result.state.step == expected.state.step + 1


def test_a_gradient_that_is_not_finite_is_told_alike_by_all(played: Path) -> None:
    found = [(played / "ddp-not_finite-2" / f"error-{rank}").read_text() for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0].startswith("update 3: ")


# ------------------------------------------------------------------------------- the loss, however divided


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_blocks", [1, 2, 4])
@pytest.mark.parametrize("batching", ["blocks", "packed", "padded"])
def test_neither_processes_nor_micro_batches_change_the_gradient_beyond_rounding(
    count: int, micro_blocks: int, batching: str
) -> None:
    """The parts of a batch, by process and by micro-batch, summed as processes sum them."""
    settings = settings_of(batching=batching)
    batches, model = batches_of(settings), model_of()
    expected, whole = gradient(model, [batches.batch(0)])
    parts = [
        part
        for rank in range(count)
        for part in batches.batch(0, rank, count).micro_batches(micro_blocks * BLOCK)
    ]
    assert len(parts) % count == 0
    loss, found = gradient(model, parts)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-7)


def gradient(model: Any, parts: list[Any]) -> tuple[float, torch.Tensor]:
    num_trained = sum(part.num_trained_tokens for part in parts)
    model.zero_grad()
    total = 0.0
    for part in parts:
        loss = model.loss_sum(torch.from_numpy(part.ids), torch.from_numpy(part.targets)) / num_trained
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])


def test_one_process_is_not_wrapped_and_needs_no_package(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run")
    with joined(replace(runtime_of(0, 1, "fsdp"), place=None), torch.device("cpu")) as processes:
        assert processes is ALONE
        loss_sum = processes.share(attempt.model, Decoder.loss_sum, attempt.settings)
        assert loss_sum.args == (attempt.model,)
    assert bits(weights(attempt.model)) == bits(weights(model_of()))


# ------------------------------------------------------------------------------------- how many processes


def params_of(**changes: Any) -> Params:
    params = load(Path("params.yaml"))
    training = params.training.model_copy(update=changes)
    return params.model_copy(update={"training": training})


def test_a_batch_cannot_be_divided_among_more_processes_than_it_has_rows() -> None:
    params = params_of(batch_tokens=1024, block_tokens=256)
    runtime = replace(runtime_of(0, 1, "ddp"), place=None, processes=4)
    assert num_processes(params, runtime) == 4
    with pytest.raises(UserError, match=r"^NIMA_PROCESSES: 5 processes cannot share a batch of 4 rows"):
        num_processes(params, replace(runtime, processes=5))
    with pytest.raises(UserError, match=r"^NIMA_PROCESSES: 8 processes cannot share a batch of 4 rows"):
        num_processes(params, replace(runtime, place=Place(0, 8, 0, 8)))


def test_there_is_a_process_for_each_gpu_unless_a_batch_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    runtime = replace(runtime_of(0, 1, "ddp"), place=None, device="auto")
    assert num_processes(params_of(batch_tokens=4096, block_tokens=256), runtime) == 8
    assert num_processes(params_of(batch_tokens=1024, block_tokens=256), runtime) == 4
    assert num_processes(params_of(), replace(runtime, device="cpu")) == 1
    with pytest.raises(UserError, match=r"^NIMA_PROCESSES: 9 processes need a GPU each, found 8"):
        num_processes(
            params_of(batch_tokens=4096, block_tokens=256), replace(runtime, device="cuda", processes=9)
        )
