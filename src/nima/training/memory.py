"""Memory that gives out while a run goes on: half the micro-batch, and the same piece of work again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from nima.workspace.errors import UserError

Value = TypeVar("Value")
# What torch's allocator for the CPU says, in a RuntimeError.
CPU_REFUSAL = "can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and CPU_REFUSAL in str(error)
    )


@dataclass
class MicroBatch:
    """How many tokens go through the network at once. The global batch stays what it is."""

    tokens: int
    block_tokens: int
    halvings: list[dict[str, Any]]
    """Each {"step", "micro_batch_tokens"}, the last one counts: the run's record of them, added to here."""
    say: Callable[[str], None]
    alone: bool = True
    """Whether no other process waits for this one's gradients."""

    def __post_init__(self) -> None:
        if self.halvings:
            self.tokens = self.halvings[-1]["micro_batch_tokens"]

    def fitting(self, step: int, work: Callable[[int], Value]) -> Value:
        """What `work` gives for a micro-batch of so many tokens, of the largest that fits.

        `work` is done again from its beginning. Raises `UserError` when not even one block fits.
        """
        while True:
            try:
                return work(self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Here the error is gone, and with it the tensors of the frames that it came through.
            self.halve(step, reason)

    def halve(self, step: int, reason: str) -> None:
        rows = self.tokens // self.block_tokens
        if rows <= 1:
            raise UserError(
                f"step {step}: out of memory with a micro-batch of one block (training.block_tokens "
                f"{self.block_tokens}): {reason}. Set run.activation_checkpointing to true, or make "
                "training.block_tokens or the model smaller"
            )
        before, self.tokens = self.tokens, rows // 2 * self.block_tokens
        self.halvings.append({"step": step, "micro_batch_tokens": self.tokens})
        if not self.alone:
            raise UserError(
                f"step {step}: out of memory with {before} tokens at once: {reason}. Set "
                f"training.micro_batch_tokens to {self.tokens}, or take more processes"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(
            f"step {step}: out of memory with {before} tokens at once ({reason}); on with {self.tokens}: "
            "the result changes by rounding only, and metrics/train.json tells"
        )


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
