"""Memory that gives out while a run goes on: half the micro-batch, the same step, and a word about it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import BLOCK, Attempt, Killed, StopAt, model_of, settings_of, weights
from torch import Tensor

from nima.network.decoder import Decoder
from nima.training.memory import MicroBatch, is_out_of_memory
from nima.workspace.errors import UserError
from nima.workspace.params import RunParams

REFUSALS: dict[str, Callable[[], Exception]] = {
    "a GPU's": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "torch's for the CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Python's": MemoryError,
}
WHOLE = 8  # rows of the batch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Cramped(Decoder):
    """Runs out of memory with more rows than `room` from update `since` on (told by the dropout's seed)."""

    room, since = WHOLE, 1
    refusal: Callable[[], Exception] = REFUSALS["a GPU's"]
    in_evaluation = False

    def hidden(self, ids_BT: Tensor, *arguments: Any, **named: Any) -> Tensor:
        later = torch.initial_seed() >= 1_000_003 + self.since - 1
        if ids_BT.shape[0] > self.room and later and self.training != self.in_evaluation:
            raise type(self).refusal()
        return super().hidden(ids_BT, *arguments, **named)


def cramped(room: int, since: int = 1, **changes: Any) -> Callable[[], Decoder]:
    kind = type("Cramped", (Cramped,), {"room": room, "since": since} | changes)
    return lambda: model_of(kind)


def attempt(path: Path, model: Decoder, **changes: Any) -> Attempt:
    # Muon's direction, in bf16, would make much of a difference in rounding.
    whole = settings_of(micro_batch_tokens=WHOLE * BLOCK, optimizer="sgd")
    return Attempt(path, settings=whole, model=model, **changes)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_step_that_does_not_fit_is_done_again_with_half_at_once(tmp_path: Path, refusal: str) -> None:
    model = cramped(room=2, since=4, refusal=staticmethod(REFUSALS[refusal]))()
    poor, rich = attempt(tmp_path / "poor", model), attempt(tmp_path / "rich", model_of())
    result, expected = poor.go(), rich.go()
    assert result.state.halvings == [
        {"step": 3, "micro_batch_tokens": 4 * BLOCK},
        {"step": 3, "micro_batch_tokens": 2 * BLOCK},
    ]
    said = [line for line in poor.said if "out of memory" in line]
    assert len(said) == 2, "each once"
    assert f"step 3: out of memory with {WHOLE * BLOCK} tokens at once" in said[0]
    for name, weight in weights(rich.model).items():
        torch.testing.assert_close(weights(poor.model)[name], weight, rtol=1e-4, atol=1e-5)
    assert result.state.rows[-1]["step"] == expected.state.rows[-1]["step"]
    assert expected.state.halvings == []


def test_what_was_added_before_memory_gave_out_does_not_count_twice(tmp_path: Path) -> None:
    class Last(Decoder):
        """The second micro-batch of the first step fails once."""

        calls = 0

        def hidden(self, *arguments: Any, **named: Any) -> Tensor:
            Last.calls += self.training
            if self.training and Last.calls == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().hidden(*arguments, **named)

    halves = settings_of(micro_batch_tokens=4 * BLOCK)
    poor = Attempt(tmp_path / "poor", settings=halves, model=model_of(Last))
    rich = Attempt(tmp_path / "rich", settings=settings_of(micro_batch_tokens=2 * BLOCK))
    poor.go(), rich.go()
    for name, weight in weights(rich.model).items():
        assert torch.equal(weights(poor.model)[name], weight), name


def test_validation_that_does_not_fit_is_done_again_too(tmp_path: Path) -> None:
    poor = attempt(tmp_path / "poor", cramped(room=2, in_evaluation=True)())
    rich = attempt(tmp_path / "rich", model_of())
    result, expected = poor.go(), rich.go()
    assert result.state.halvings[-1] == {"step": 3, "micro_batch_tokens": 2 * BLOCK}
    losses = [
        [row["validation/loss"] for row in run.state.rows if "validation/loss" in row]
        for run in (result, expected)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_resumed_run_goes_on_with_what_fits(tmp_path: Path) -> None:
    saved = RunParams(save_every_steps=1, save_every_seconds=None)
    whole = attempt(tmp_path / "whole", cramped(room=2, since=3)(), run_settings=saved)
    expected = whole.go()
    first = attempt(
        tmp_path / "cut",
        cramped(room=2, since=3)(),
        run_settings=saved,
        stop=StopAt(whole.stop.num_polls - 6, killed=True),
    )
    with pytest.raises(Killed):
        first.go()
    second = attempt(tmp_path / "cut", cramped(room=2, since=3)(), run_settings=saved)
    result = second.go()
    assert result.first_step > 3
    assert not [line for line in second.said if "out of memory" in line]
    assert result.state.halvings == expected.state.halvings
    for name, weight in weights(whole.model).items():
        assert torch.equal(weights(second.model)[name], weight), name


def test_one_block_that_does_not_fit_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        attempt(tmp_path / "run", cramped(room=0)()).go()
    [line] = str(raised.value).splitlines()
    assert line.startswith(
        f"step 0: out of memory with a micro-batch of one block (training.block_tokens {BLOCK})"
    )
    assert "run.activation_checkpointing" in line


def test_another_failure_is_not_taken_for_lack_of_memory(tmp_path: Path) -> None:
    broken = cramped(room=0, refusal=staticmethod(lambda: RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        attempt(tmp_path / "run", broken()).go()
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_the_memory_of_the_failed_attempt_is_free_when_the_next_begins() -> None:
    alive: list[Any] = []

    class Held:
        def __del__(self) -> None:
            alive.remove(1)

    def work(tokens: int) -> int:
        if tokens == 8:
            held = Held()
            alive.append(1)
            raise MemoryError(held and "no room")
        assert not alive
        return tokens

    assert MicroBatch(8, 1, [], lambda line: None).fitting(0, work) == 4


def test_with_other_processes_waiting_the_way_out_is_named() -> None:
    def work(tokens: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"step 5: .*Set training\.micro_batch_tokens to 4096"):
        MicroBatch(8192, 256, [], lambda line: None, alone=False).fitting(5, work)


def test_running_out_of_memory_is_recognised() -> None:
    assert all(is_out_of_memory(refusal()) for refusal in REFUSALS.values())
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(raised.value), "as this torch says it"
