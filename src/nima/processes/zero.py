"""Several processes, each with a part of the training state: ZeRO, as DeepSpeed has it.

Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054: moments are divided, then gradients too, then
parameters too (stages 1, 2, 3). DeepSpeed joins the parameters of a group into one flat tensor and cuts it
among the processes, so that only rules which treat each number alone can update the pieces.

Parameters stay in float32 and autocast alone decides on precision, as in one process: checkpoints then are
those of any other run. DeepSpeed's own mixed precision and loss scaling stay off.
"""

import logging
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nima.network.decoder import Decoder, Layer, autocast
from nima.network.varlen import Documents
from nima.optimizer import Optimizer, as_entry, as_tensor
from nima.processes import LossSum, Objective
from nima.processes.replicated import Joined, Loss
from nima.workspace.params import TrainingParams

# Gradients and parameters travel in pieces of at most so many numbers.
BUCKET_NUMBERS = 50_000_000
# With stage 3 every process keeps parameters of up to so many rows of the network's width: the gains.
KEPT_ROWS = 10


class Zero(Joined):
    """One of several under DeepSpeed."""

    has_all = False
    stage = 0

    def __init__(self, accelerator: Any) -> None:
        super().__init__(accelerator)
        self.deepspeed = imported(accelerator.device)

    def share(self, model: Decoder, objective: Objective, settings: TrainingParams) -> LossSum:
        for parameter in model.parameters():
            dist.broadcast(parameter.detach(), src=0)
        self.loss = AutocastLoss(model, objective, settings.precision)
        self.configuration = configuration(self.stage, self.count, model, settings)
        if self.stage == 3:  # layers use the weights of what is in them without calling it
            self.deepspeed.utils.set_z3_leaf_modules(model, [Layer])
            self.deepspeed.zero.register_external_parameter(self.loss, model.head.weight)
        return self.loss_sum

    def divided(self, optimizer: Any) -> Any:
        """DeepSpeed takes model and optimizer together."""
        shapes = {name: parameter.shape for name, parameter in self.loss.model.named_parameters()}
        [rule] = optimizer.optimizers
        self.engine, *_ = self.deepspeed.initialize(
            model=self.loss, optimizer=rule, config=self.configuration
        )
        self.optimizer = ZeroOptimizer(optimizer, shapes, self)
        return self.optimizer

    def loss_sum(self, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Documents | None) -> Tensor:
        with torch.autocast(ids_BT.device.type, enabled=False):
            return self.engine(ids_BT, targets_BT, documents_BT)

    def sum_gradients(self, *, now: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(now)

    def clip(self, model: nn.Module, max_norm: float) -> float:  # noqa: ARG002
        """The norm; to clip is part of DeepSpeed's step."""
        norms = torch.stack(torch._foreach_norm(self.optimizer.gradients()))
        return math.sqrt(self.sums(float(norms.double().square().sum()))[0])

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        found = {}
        for name, parameter in model.named_parameters():
            with self.deepspeed.zero.GatheredParameters([parameter]):
                if self.is_first:
                    found[name] = parameter.detach().to("cpu", copy=True)
        return found

    @torch.no_grad()
    def set_weights(self, model: nn.Module, parts: dict[str, Tensor]) -> None:
        for name, parameter in model.named_parameters():
            with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(parts[name])
        self.engine.optimizer.refresh_fp32_params()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """As with FSDP2; the embedding would else be given back once it was called."""
        parameters: Any = self.loss.model.named_parameters()
        outside = [parameter for name, parameter in parameters if not name.startswith("layers.")]
        with self.deepspeed.zero.GatheredParameters(outside):
            for parameter in outside if self.stage == 3 else ():
                parameter.ds_active_sub_modules.add("scoring")
            try:
                yield
            finally:
                for parameter in outside if self.stage == 3 else ():
                    parameter.ds_active_sub_modules.discard("scoring")


class Zero1(Zero):
    stage = 1


class Zero2(Zero):
    stage = 2


class Zero3(Zero):
    stage = 3


def imported(device: torch.device) -> Any:
    """DeepSpeed, quiet, and without compiling anything."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.utils

    # On a CPU it would first compile an operation of its own for minutes; gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It calls torch by names that have become old.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


def configuration(stage: int, count: int, model: Decoder, settings: TrainingParams) -> dict[str, Any]:
    """What DeepSpeed is told. The loop divides by the batch's tokens, and says which pass is the last."""
    rows = settings.batch_tokens // settings.block_tokens
    bucket = min(BUCKET_NUMBERS, 2 * model.num_parameters())
    return {
        "train_micro_batch_size_per_gpu": -(-rows // count),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": KEPT_ROWS * model.config.width,
        },
    }


class AutocastLoss(Loss):
    """A loss that sees to its precision itself: DeepSpeed ends what holds around its call."""

    def __init__(self, model: Decoder, objective: Objective, precision: str) -> None:
        super().__init__(model)
        self.objective, self.precision = objective, precision

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Documents | None) -> Tensor:
        with autocast(ids_BT.device, self.precision):
            return super().forward(ids_BT, targets_BT, documents_BT)


@dataclass(frozen=True)
class Piece:
    """This process's part of a parameter: `count` numbers from `start` on, in `flat` from `offset` on."""

    flat: Tensor
    offset: int
    start: int
    count: int

    def of(self, flat: Tensor) -> Tensor:
        return flat[self.offset : self.offset + self.count]


class ZeroOptimizer(Optimizer):
    """One rule, on this process's pieces; its state travels whole."""

    def __init__(self, whole: Optimizer, shapes: dict[str, torch.Size], processes: Zero) -> None:
        """Takes over from `whole`, whose parameters DeepSpeed has cut into pieces."""
        vars(self).update(vars(whole))
        [self.rule] = whole.optimizers
        self.optimizers = [Pieces(self)]  # type: ignore[list-item]
        self.shapes, self.processes, self.engine = shapes, processes, processes.engine
        self.parameters: dict[str, Any] = dict(processes.loss.model.named_parameters())
        self.pieces = {name: self.piece_of(name) for name in self.parameters}

    def piece_of(self, name: str) -> Piece | None:
        zero, parameter = self.engine.optimizer, self.parameters[name]
        if self.processes.stage == 3:
            group, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            start = min(length * self.processes.rank, parameter.ds_numel)
            count = min(length, parameter.ds_numel - start)  # the last ones are filled up
            return Piece(zero.fp32_partitioned_groups_flat[group], offset, start, count)
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        start, here = mapping.lp_fragment_address.start, mapping.hp_fragment_address
        return Piece(flat, here.start, start, here.numel)

    def gradients(self) -> list[Tensor]:
        """This process's part of the gradient, summed over the processes; none after a step."""
        groups = self.engine.optimizer.averaged_gradients.values()
        return [gradient for group in groups if group is not None for gradient in group]

    def zero_grad(self) -> None:
        """What no update was made from is thrown away by DeepSpeed itself, if it is not finite."""
        if gradients := self.gradients():
            torch._foreach_mul_(gradients, math.nan)
            self.engine.step()

    def tensors(self) -> dict[str, Tensor]:
        """Whole, in the first process; the others take part and get nothing."""
        found = {}
        for name, piece in self.pieces.items():
            for entry, value in self.state_of(piece).items():
                tensor = as_tensor(value, is_shared=False)
                whole = tensor if tensor.ndim == 0 else self.gathered(name, piece, tensor)
                if self.processes.is_first:
                    found[f"{entry}/{name}"] = whole.cpu()
        return found

    def state_of(self, piece: Piece | None) -> dict[str, Any]:
        """The entries of a piece's flat tensor; every process has the same ones, of its own part."""
        states = self.rule.state
        state = states[piece.flat] if piece and piece.flat in states else next(iter(states.values()), {})
        return {entry: value for entry, value in state.items() if value is not None}

    def gathered(self, name: str, piece: Piece | None, flat: Tensor) -> Tensor:
        shape = self.shapes[name]
        whole = torch.zeros(shape.numel(), dtype=flat.dtype, device=flat.device)
        if piece:
            whole[piece.start : piece.start + piece.count] = piece.of(flat)
        # As whole numbers, so that not even the sign of a zero is lost.
        dist.all_reduce(whole.view(torch.int32))
        return whole.view(shape)

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        by_name: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            entry, _, name = key.partition("/")
            by_name[name][entry] = value
        self.rule.state.clear()
        for name, piece in self.pieces.items():
            if piece:
                self.load_piece(piece, by_name[name])

    def load_piece(self, piece: Piece, entries: dict[str, Tensor]) -> None:
        state = self.rule.state[piece.flat]
        for entry, whole in entries.items():
            if whole.ndim == 0:
                state[entry] = as_entry(whole, piece.flat.device)
            else:
                state.setdefault(entry, torch.zeros_like(piece.flat))
                piece.of(state[entry]).copy_(whole.flatten()[piece.start : piece.start + piece.count])


class Pieces:
    """DeepSpeed's step, and the gradients before it, as a gradient scaler asks an optimizer for them."""

    def __init__(self, optimizer: ZeroOptimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(map(having, self.optimizer.gradients()))}]

    def step(self) -> None:
        self.optimizer.engine.step()


def having(gradient: Tensor) -> Tensor:
    """Something with this very gradient."""
    parameter = gradient.detach()
    parameter.grad = gradient
    return parameter
