"""The processes that train one model together: who they are, what they tell each other, how they share it.

`Processes` itself is one process alone, for which every question has its plain answer, so that the loop
reads the same for any number. Accelerate joins several and replicates the model in each (DDP); torch's
`fully_shard` divides it among them (FSDP2), on any device, where Accelerate's own call needs a GPU.

Sums over processes are taken in the order of their ranks and come out the same on all of them: whatever
follows from a sum is decided alike everywhere, without asking again.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nima.decoder import Decoder
from nima.errors import UserError
from nima.params import Params
from nima.runtime import Runtime, usable_gpus
from nima.targets import IGNORED

Value = TypeVar("Value")
Objective = Callable[[Decoder, Tensor, Tensor, Tensor | None], Tensor]
LossSum = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# A process may wait this long for another: the first one saves while the others wait.
PATIENCE = timedelta(hours=1)
# Gradients travel in pieces of this size while the rest is still being computed.
BUCKET_MEGABYTES = 25
# Rules of update that work on parts of parameters as they do on whole ones.
DIVISIBLE = ("muon", "adamw", "adam", "sgd", "schedule_free")


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

    def share(self, model: Decoder, objective: Objective) -> LossSum:
        """Make `model` one with the other processes' (call before its optimizer is made).

        Returns its loss, whose backward pass sums the gradients over the processes.
        """
        return partial(objective, model)

    def sum_gradients(self, *, now: bool) -> None:
        """Whether the next backward pass sums over processes; the ones before the last need not."""

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss such that the gradients, as the processes combine them, are the sum of all."""
        return loss

    def clip(self, model: nn.Module, max_norm: float) -> float:
        """Clip the gradient's global norm; returns what it was."""
        norm: Any = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        return float(whole(norm))

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


class Joined(Processes):
    """One of several, each with a replica of the model: DDP, as Accelerate sets it up."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        # Numbers of the host travel beside the gradients, so that no GPU has to be waited for.
        self.host = dist.new_group(backend="gloo", timeout=PATIENCE)

    def share(self, model: Decoder, objective: Objective) -> LossSum:
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

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
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


class Sharded(Joined):
    """One of several, each with a part of every parameter, gradient and moment: FSDP2.

    Parameters stay in float32 and are summed so: autocast alone decides on precision, as in one process.
    """

    has_all = False

    def share(self, model: Decoder, objective: Objective) -> LossSum:
        from torch.distributed.fsdp import fully_shard

        for parameter in model.parameters():
            dist.broadcast(parameter.detach(), src=0)
        mesh = dist.init_device_mesh(model.cos.device.type, (self.count,))
        self.divided: Any = Loss(model)
        for part in (*model.layers, self.divided):
            fully_shard(part, mesh=mesh)
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo takes no means
        warm_up(self.divided, model)
        self.divided.objective = objective
        return self.divided

    def sum_gradients(self, *, now: bool) -> None:
        self.divided.set_requires_gradient_sync(now)

    def weighted(self, loss: Tensor) -> Tensor:
        return loss

    def agree_on_overflow(self, scaler: torch.amp.GradScaler) -> None:
        states = scaler._per_optimizer_states if scaler.is_enabled() else {}
        for state in states.values():
            for found in state["found_inf_per_device"].values():
                dist.all_reduce(whole(found), op=dist.ReduceOp.MAX)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        undivided = ((name, whole(value)) for name, value in tensors.items())
        return {name: value.cpu() for name, value in undivided if self.is_first}

    def part_of(self, value: Tensor, parameter: Any) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        if value.shape != parameter.shape:
            return value
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    def spread(self, function: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> list[Tensor]:
        found = super().spread(function, [whole(matrix) for matrix in matrices])
        return [self.part_of(value, matrix) for value, matrix in zip(found, matrices, strict=True)]

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """The layers gather themselves when they are called; what stands around them is gathered here."""
        self.divided.unshard()
        try:
            yield
        finally:
            self.divided.reshard()


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


KINDS = {"ddp": Joined, "fsdp": Sharded}


@contextmanager
def joined(runtime: Runtime, device: torch.device) -> Iterator[Processes]:
    """This process among those that were started with it. Raises `UserError` when they don't meet."""
    if runtime.place is None or runtime.place.num_ranks == 1:
        yield ALONE
        return
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    # Accelerate would else set the threads itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(runtime.threads))
    layout = DistributedDataParallelKwargs(
        bucket_cap_mb=BUCKET_MEGABYTES, gradient_as_bucket_view=True, broadcast_buffers=False
    )
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu", kwargs_handlers=[layout, InitProcessGroupKwargs(timeout=PATIENCE)]
        )
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"MASTER_ADDR: process {runtime.place.rank} finds no others: {reason}") from None
    try:
        yield KINDS[runtime.sharding](accelerator)
    finally:
        accelerator.end_training()
        accelerator.state._reset_state(reset_partial_state=True)


def num_processes(params: Params, runtime: Runtime) -> int:
    """How many processes train. Raises `UserError` when a batch, or the machine, cannot be divided so."""
    training, place = params.training, runtime.place
    rows, gpus = training.batch_tokens // training.block_tokens, usable_gpus(runtime)
    count = place.num_ranks if place else runtime.processes or min(gpus, rows)
    if count > rows:
        raise UserError(
            f"NIMA_PROCESSES: {count} processes cannot share a batch of {rows} rows (training.batch_tokens "
            f"{training.batch_tokens} / block_tokens {training.block_tokens}); set at most {rows}"
        )
    if count > 1 and runtime.sharding == "fsdp" and training.optimizer not in DIVISIBLE:
        raise UserError(
            f"NIMA_SHARDING: fsdp cannot divide training.optimizer {training.optimizer}; set ddp, or one of "
            f"{', '.join(DIVISIBLE)}"
        )
    if place is None and count > gpus and runtime.device == "cuda":
        raise UserError(
            f"NIMA_PROCESSES: {count} processes need a GPU each, found {gpus}; set fewer, or NIMA_DEVICE=cpu"
        )
    return count
