"""Which parameters are updated by which rule, and the rules.

Matrices inside the layers are orthogonalised by Muon and the embedding, the head and the gains follow AdamW;
or one rule updates them all. Every parameter belongs to exactly one group.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nima.optimizer.adamw_8bit import adamw_8bit
from nima.optimizer.adamw_scale import AdamWScale
from nima.optimizer.eager import SGD, Adam, AdamW
from nima.optimizer.groups import parameter_groups
from nima.optimizer.muon import Muon, Spread, here, orthogonalised
from nima.optimizer.schedule_free import ScheduleFreeAdamW

__all__ = [
    "AdamWScale",
    "Muon",
    "Optimizer",
    "Rates",
    "ScheduleFreeAdamW",
    "orthogonalised",
    "parameter_groups",
    "rates_of",
]

EPSILON = 1e-10
# bitsandbytes' tables of quantisation: one for all parameters, which a file must not name twice.
SHARED = ("qmap1", "qmap2")
Weights = Literal["trained", "averaged"]


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
    nesterov: bool = True


def rates_of(settings: Any) -> Rates:
    """Those that params name in their section `training`."""
    return Rates(**{name: getattr(settings, name) for name in Rates.__dataclass_fields__})


class Optimizer:
    """The groups' optimizers, stepped together; its state travels as named tensors."""

    def __init__(self, model: nn.Module, rates: Rates, spread: Spread = here):
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
        groups: list[dict[str, Any]] = [
            {
                "params": [parameters[name] for name in names[group]],
                "lr": peaks[group],
                "weight_decay": rates.weight_decay if group == "matrices" else 0.0,
            }
            for group in names
            if group not in muon and names[group]
        ]
        self.optimizers.append(rule_of(rates, groups))
        if muon:
            matrices = [parameters[name] for name in names["matrices"]]
            self.optimizers.append(Muon(matrices, rates.lr, rates.momentum, rates.weight_decay, spread))
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in self.groups:
            group["peak_lr"] = group["lr"]
        self.held: Weights = "trained"
        self.set_aside: dict[Tensor, Tensor] = {}

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its peak."""
        for group in self.groups:
            group["lr"] = group["peak_lr"] * factor

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Divide the gradients by the factor that the loss was multiplied by."""
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """One update; with a scaler, only of what it found finite."""
        for optimizer in self.optimizers:
            if scaler:
                scaler.step(optimizer)
            else:
                optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state as `<entry>/<parameter name>` → tensor; plain numbers are 64-bit scalars."""
        return {
            f"{entry}/{self.names[id(parameter)]}": as_tensor(value, is_shared=entry in SHARED)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for entry, value in state.items()
            if value is not None
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
                    optimizer.state[parameter] = {
                        entry: as_entry(value, parameter.device)
                        for entry, value in by_name[self.names[id(parameter)]].items()
                    }

    def trained_weights(self) -> dict[str, Tensor]:
        """The weights that are trained, by name, while the parameters hold others in their place."""
        return {self.names[id(parameter)]: tensor for parameter, tensor in self.set_aside.items()}

    @contextlib.contextmanager
    def weights(self, kind: Weights) -> Iterator[None]:
        """Within it the parameters hold the weights that are trained, or those to judge and to keep.

        The two differ only under a rule that averages; afterwards the parameters are what they were, to
        the bit. May be nested.
        """
        before = self.held
        self.hold(kind)
        try:
            yield
        finally:
            self.hold(before)

    @torch.no_grad()
    def hold(self, kind: Weights) -> None:
        """Like `weights`, for good."""
        if kind == self.held:
            return
        if kind == "averaged":
            for optimizer in self.optimizers:
                if isinstance(optimizer, ScheduleFreeAdamW):
                    for parameter, average in optimizer.averages():
                        self.set_aside[parameter] = parameter.detach().clone()
                        parameter.copy_(average)
        else:
            for parameter, trained in self.set_aside.items():
                parameter.copy_(trained)
            self.set_aside = {}
        self.held = kind


def rule_of(rates: Rates, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The rule for all that Muon does not update."""
    betas = (rates.beta1, rates.beta2)
    match rates.optimizer:
        case "muon" | "adamw":
            return AdamW(groups, betas=betas, eps=EPSILON, fused=True)
        case "adam":
            return Adam(groups, betas=betas, eps=EPSILON, fused=True)
        case "sgd":
            nesterov = rates.nesterov and rates.momentum > 0
            return SGD(groups, momentum=rates.momentum, nesterov=nesterov)
        case "adamw_scale":
            return AdamWScale(groups, betas=betas, eps=EPSILON)
        case "adamw_8bit":
            return adamw_8bit(groups, betas=betas, eps=EPSILON)
        case "schedule_free":
            return ScheduleFreeAdamW(groups, betas=betas, eps=EPSILON)
    raise ValueError(f"no optimizer is called {rates.optimizer}")


def as_tensor(value: Tensor | int | float, *, is_shared: bool) -> Tensor:
    if isinstance(value, Tensor):
        return value.clone() if is_shared else value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def as_entry(value: Tensor, device: torch.device) -> Tensor | int | float:
    """What `as_tensor` was given.

    A copy, because what is loaded from a file is a map of the file. (Fused AdamW counts its steps on the
    parameter's device, as a 32-bit scalar.)
    """
    if value.ndim == 0 and value.dtype in (torch.int64, torch.float64):
        return value.item()
    return value.to(device, copy=True)
