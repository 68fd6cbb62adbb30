"""The processes that train one model together: who they are, what they tell each other, how they share it.

`Processes` itself is one process alone, for which every question has its plain answer, so that the loop
reads the same for any number. Accelerate joins several and replicates the model in each (DDP); torch's
`fully_shard` divides it among them (FSDP2), or DeepSpeed does (ZeRO).

Sums over processes are taken in the order of their ranks and come out the same on all of them: whatever
follows from a sum is decided alike everywhere, without asking again.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nima.network.decoder import Decoder
from nima.network.varlen import Documents
from nima.workspace.params import TrainingParams

Value = TypeVar("Value")
Objective = Callable[[Decoder, Tensor, Tensor, Documents | None], Tensor]
LossSum = Callable[[Tensor, Tensor, Documents | None], Tensor]


class Processes:
    """One process, alone: it has everything and asks nobody."""

    rank = 0
    count = 1
    has_all = True
    """Whether it holds every parameter whole, and so needs no other to save."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports, saves and exports for all."""
        return self.rank == 0

    def share(self, model: Decoder, objective: Objective, settings: TrainingParams) -> LossSum:  # noqa: ARG002
        """Make `model` one with the other processes' (call before its optimizer is made).

        Returns its loss, whose backward pass sums the gradients over the processes.
        """
        return partial(objective, model)

    def divided(self, optimizer: Value) -> Value:
        """The optimizer of what `share` was given, as far as it is this process's to update."""
        return optimizer

    def sum_gradients(self, *, now: bool) -> None:
        """Whether the next backward pass sums over processes; the ones before the last need not."""

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss such that the gradients, as the processes combine them, are the sum of all."""
        return loss

    def clip(self, model: nn.Module, max_norm: float) -> float:
        """Clip the gradient's global norm; returns what it was."""
        norm: Any = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        return float(undivided(norm))

    def agree_on_overflow(self, scaler: torch.amp.GradScaler) -> None:
        """What one process found not finite in its part of the gradient, all have found."""

    def sums(self, *values: Any) -> tuple[Any, ...]:
        """The sum of each number over the processes, whole numbers as such up to 2^53."""
        return values

    def any(self, claim: bool) -> bool:
        """Whether the claim is true in some process."""
        return claim

    def gather(self, value: Value) -> list[Value]:
        """What each process gives, by rank."""
        return [value]

    def from_first(self, value: Value) -> Value:
        """What the first process gives."""
        return value

    def wait(self) -> None:
        """Until all have come here."""

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The parameters by name, undivided, in the first process; a tied head is the embedding."""
        return self.whole({name: parameter.detach() for name, parameter in model.named_parameters()})

    @torch.no_grad()
    def set_weights(self, model: nn.Module, parts: dict[str, Tensor]) -> None:
        """Put parameters back, given as `parts_of` gives them."""
        for name, parameter in model.named_parameters():
            parameter.copy_(parts[name])

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The named tensors undivided, in the first process; for the others perhaps nothing."""
        return tensors

    def parts_of(self, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:  # noqa: ARG002
        """This process's parts of what the first one has: of a parameter, or of its `<entry>/<name>`."""
        return tensors

    def spread(self, function: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> list[Tensor]:
        """`function` of equal matrices (stacked: K, rows, columns), each computed in one process."""
        return list(function(torch.stack(matrices)))

    def scoring(self) -> AbstractContextManager[None]:
        """Inside, parts of the model other than its loss can be called."""
        return nullcontext()


ALONE = Processes()


def undivided(tensor: Any) -> Tensor:
    """All of a tensor of which each process has a part."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
