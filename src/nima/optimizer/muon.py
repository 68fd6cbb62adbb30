"""Muon: momentum made orthogonal, for the matrices inside the layers."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nima.optimizer.eager import Eager

# Quintic Newton-Schulz coefficients of Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


Spread = Callable[[Callable[[Tensor], Tensor], list[Tensor]], list[Tensor]]
"""Applies a function of stacked matrices (K, rows, columns), perhaps in several processes."""


def here(function: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> list[Tensor]:
    return list(function(torch.stack(matrices)))


class Muon(Eager):
    """Momentum whose matrix is replaced by the nearest orthogonal one (Jordan et al. 2024).

    An update has spectral norm about 1, times sqrt(rows / columns) for tall matrices, so that one learning
    rate suits every shape. Matrices of equal shape go through Newton-Schulz in one batch.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, spread: Spread = here
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.spread = spread

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self.update(parameters, group)

    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients, momenta = [], []
        for parameter in parameters:
            if parameter.grad is None:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} has no gradient")
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
            momenta.append(state["momentum"])
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = [gradient.clone() for gradient in gradients]
        torch._foreach_lerp_(directions, momenta, group["momentum"])  # Nesterov
        rows, columns = parameters[0].shape
        scale = math.sqrt(max(1, rows / columns))
        updates = self.spread(orthogonalised, directions)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)


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
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
