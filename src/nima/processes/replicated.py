"""Several processes, each with a replica of the model: DDP, as Accelerate sets it up."""

import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nima.network.decoder import Decoder
from nima.network.targets import IGNORED
from nima.network.varlen import Documents
from nima.processes import LossSum, Objective, Processes, Value, undivided
from nima.workspace.params import TrainingParams

# A process may wait this long for another: the first one saves while the others wait.
PATIENCE = timedelta(hours=1)


class Joined(Processes):
    """One of several, each with a replica of the model: DDP, as Accelerate sets it up."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        # Numbers of the host travel beside the gradients, so that no GPU has to be waited for.
        self.host = dist.new_group(backend="gloo", timeout=PATIENCE)

    def share(self, model: Decoder, objective: Objective, settings: TrainingParams) -> LossSum:  # noqa: ARG002
        with warnings.catch_warnings():  # Accelerate asks DDP for `broadcast_buffers` by its former name
            warnings.simplefilter("ignore", FutureWarning)
            self.replica = self.accelerator.prepare_model(Loss(model))
        warm_up(self.replica, model)
        self.replica.module.objective = objective
        return self.replica

    def sum_gradients(self, *, now: bool) -> None:
        self.replica.require_backward_grad_sync = now  # what DDP's own no_sync() sets

    def weighted(self, loss: Tensor) -> Tensor:
        return loss * self.count  # the mean over processes is taken of the gradients

    def clip(self, model: nn.Module, max_norm: float) -> float:
        norm = super().clip(model, max_norm)
        return self.sums(norm if self.is_first else 0.0)[0]  # unlike machines may round it differently

    def agree_on_overflow(self, scaler: torch.amp.GradScaler) -> None:
        if self.has_all or not scaler.is_enabled():
            return  # gradients are the same everywhere
        for state in scaler._per_optimizer_states.values():
            for found in state["found_inf_per_device"].values():
                dist.all_reduce(undivided(found), op=dist.ReduceOp.MAX)

    def sums(self, *values: Any) -> tuple[Any, ...]:
        mine = torch.tensor(values, dtype=torch.float64)
        everyones = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(everyones, mine, group=self.host)
        totals = torch.stack(everyones).sum(dim=0).tolist()
        return tuple(type(value)(total) for value, total in zip(values, totals, strict=True))

    def any(self, claim: bool) -> bool:
        return self.sums(int(claim)) != (0,)

    def gather(self, value: Value) -> list[Value]:
        everyones: list[Any] = [None] * self.count
        dist.all_gather_object(everyones, value, group=self.host)
        return everyones

    def from_first(self, value: Value) -> Value:
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.host)
        return told[0]

    def wait(self) -> None:
        self.any(False)

    def parts_of(self, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        parameters = dict(model.named_parameters())
        kinds = self.from_first([(name, value.shape, value.dtype) for name, value in tensors.items()])
        parts = {}
        for name, shape, dtype in kinds:
            value = tensors[name].contiguous() if self.is_first else torch.empty(shape, dtype=dtype)
            dist.broadcast(value, src=0, group=self.host)
            parts[name] = self.part_of(value, parameters[name.rpartition("/")[2]])
        return parts

    def part_of(self, value: Tensor, parameter: Tensor) -> Tensor:  # noqa: ARG002
        """This process's part of a whole tensor that belongs to the parameter."""
        return value

    def spread(self, function: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> list[Tensor]:
        """Each process computes as many in a row; results travel in bfloat16, which Muon's are already."""
        each = -(-len(matrices) // self.count)
        mine = matrices[each * self.rank : each * (self.rank + 1)]
        shape = (each, *matrices[0].shape)
        found = torch.zeros(shape, dtype=torch.bfloat16, device=matrices[0].device)
        if mine:
            found[: len(mine)] = function(torch.stack(mine))
        everyones = found.new_empty((self.count * each, *shape[1:]))
        # As plain bytes: not every backend knows the type.
        dist.all_gather_single(everyones.view(torch.uint8), found.view(torch.uint8))
        return list(everyones[: len(matrices)].to(matrices[0].dtype))


class Loss(nn.Module):
    """A model whose call is its loss: DDP and FSDP2 do their part around a call."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model
        self.objective: Objective = type(model).loss_sum

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Documents | None) -> Tensor:
        return self.objective(self.model, ids_BT, targets_BT, documents_BT)


def warm_up(loss_sum: LossSum, model: nn.Module) -> None:
    """One pass over nothing.

    DDP lays the gradients out for the way in the order in which they came at first, and with three processes
    or more the layout decides the order of sums: it must be there before the first update, as that may be
    any update of a run that goes on. FSDP2 finds out what belongs together.
    """
    device = next(model.parameters()).device
    ids = torch.zeros((1, 2), dtype=torch.int64, device=device)
    for _ in range(2):
        loss_sum(ids, torch.full_like(ids, IGNORED), None).backward()
        model.zero_grad(set_to_none=True)
