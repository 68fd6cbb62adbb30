"""Which parameters are updated by which rule, and the rules.

Matrices inside the layers are orthogonalised by Muon; the embedding, the head and the gains follow AdamW.
Every parameter belongs to exactly one group.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients of Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class Rates:
    """Settings of the update rules; learning rates are those at the schedule's peak."""

    optimizer: str
    lr: float
    embedding_lr_ratio: float
    head_lr_ratio: float
    weight_decay: float
    beta1: float
    beta2: float
    momentum: float


def parameter_groups(model: nn.Module) -> dict[str, list[str]]:
    """Names of the model's parameters by group. Raises if a parameter has no group, or two."""
    groups: dict[str, list[str]] = {"matrices": [], "embedding": [], "head": [], "gains": []}
    for name, parameter in model.named_parameters():
        module = name.split(".")[0]
        if parameter.ndim == 1:
            groups["gains"].append(name)
        elif module in ("embedding", "head"):
            groups[module].append(name)
        elif parameter.ndim == 2 and module == "layers":
            groups["matrices"].append(name)
        else:
            raise ValueError(f"no group of the optimizer owns {name}")
    return groups


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by the nearest orthogonal one (Jordan et al. 2024).

    An update has spectral norm about 1, times sqrt(rows / columns) for tall matrices, so that one learning
    rate suits every shape. Matrices of equal shape go through Newton-Schulz in one batch.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self.update(parameters, group)

    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        directions = []
        for parameter in parameters:
            if parameter.grad is None:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} has no gradient")
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(state["momentum"], group["momentum"]))  # Nesterov
        rows, columns = parameters[0].shape
        scale = math.sqrt(max(1, rows / columns))
        for parameter, update in zip(parameters, orthogonalised(torch.stack(directions)), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * scale)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to each of a batch (K, rows, columns), to some 30 %, in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Optimizer:
    """The groups' optimizers, stepped together; its state travels as named tensors."""

    def __init__(self, model: nn.Module, rates: Rates):
        names = parameter_groups(model)
        parameters = dict(model.named_parameters())
        peaks = {
            "matrices": rates.lr,
            "embedding": rates.lr * rates.embedding_lr_ratio,
            "head": rates.lr * rates.head_lr_ratio,
            "gains": rates.lr,
        }
        muon = ["matrices"] if rates.optimizer == "muon" else []
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.optimizers: list[torch.optim.Optimizer] = []
        adamw_groups = [
            {
                "params": [parameters[name] for name in names[group]],
                "lr": peaks[group],
                "weight_decay": rates.weight_decay if group == "matrices" else 0.0,
            }
            for group in names
            if group not in muon and names[group]
        ]
        self.optimizers.append(
            torch.optim.AdamW(adamw_groups, betas=(rates.beta1, rates.beta2), eps=1e-10, fused=True)
        )
        if muon:
            matrices = [parameters[name] for name in names["matrices"]]
            self.optimizers.append(Muon(matrices, rates.lr, rates.momentum, rates.weight_decay))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak_lr"] = group["lr"]

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its peak."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state as `<entry>/<parameter name>` → tensor."""
        return {
            f"{entry}/{self.names[id(parameter)]}": value
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for entry, value in state.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        by_name: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            entry, _, name = key.partition("/")
            by_name[name][entry] = value
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    # A copy, because what is loaded from a file is a map of the file. (Fused AdamW counts its
                    # steps on the parameter's device.)
                    optimizer.state[parameter] = {
                        entry: value.to(parameter.device, copy=True)
                        for entry, value in by_name[self.names[id(parameter)]].items()
                    }
