"""Several processes, each with a part of every parameter: FSDP2, on any device.

Accelerate's own call would need a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from nima.network.decoder import Decoder
from nima.processes import LossSum, Objective, undivided
from nima.processes.replicated import Joined, Loss, warm_up
from nima.workspace.params import TrainingParams


class Sharded(Joined):
    """One of several, each with a part of every parameter, gradient and moment: FSDP2.

    Parameters stay in float32 and are summed so: autocast alone decides on precision, as in one process.
    """

    has_all = False

    def share(self, model: Decoder, objective: Objective, settings: TrainingParams) -> LossSum:  # noqa: ARG002
        from torch.distributed.fsdp import fully_shard

        for parameter in model.parameters():
            dist.broadcast(parameter.detach(), src=0)
        mesh = dist.init_device_mesh(model.cos.device.type, (self.count,))
        self.sharded: Any = Loss(model)
        for part in (*model.layers, self.sharded):
            fully_shard(part, mesh=mesh)
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo takes no means
        warm_up(self.sharded, model)
        self.sharded.objective = objective
        return self.sharded

    def sum_gradients(self, *, now: bool) -> None:
        self.sharded.set_requires_gradient_sync(now)

    def weighted(self, loss: Tensor) -> Tensor:
        return loss

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        wholes = ((name, undivided(value)) for name, value in tensors.items())
        return {name: value.cpu() for name, value in wholes if self.is_first}

    def part_of(self, value: Tensor, parameter: Any) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        if value.shape != parameter.shape:
            return value
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    def spread(self, function: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> list[Tensor]:
        found = super().spread(function, [undivided(matrix) for matrix in matrices])
        return [self.part_of(value, matrix) for value, matrix in zip(found, matrices, strict=True)]

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """The layers gather themselves when they are called; what stands around them is gathered here."""
        self.sharded.unshard()
        try:
            yield
        finally:
            self.sharded.reshard()
