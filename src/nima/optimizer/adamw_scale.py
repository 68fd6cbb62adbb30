"""AdamW whose steps are relative to the size of what they change."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nima.optimizer.eager import Eager

# A parameter of zeros must be able to leave them: Adafactor's epsilon_2.
SMALLEST_SCALE = 1e-3


class AdamWScale(Eager):
    """AdamW with each parameter's step multiplied by the root mean square of the parameter's values.

    The scaling is Adafactor's (Shazeer & Stern 2018, section 8, https://arxiv.org/abs/1804.04235), on
    AdamW's update, as nanoT5 trains T5 (Nawrot 2023, https://arxiv.org/abs/2309.02373). The learning rate is
    thereby a relative one: 0.01 moves a parameter by about 1 % of its size, whatever the model's width.
    Decay is not scaled.
    """

    def __init__(self, params: Iterable[Any], betas: tuple[float, float], eps: float, lr: float = 1e-3):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not (state := self.state[parameter]):
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
            if parameters:
                self.update(parameters, group)

    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        means, squares = ([state[entry] for state in states] for entry in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        scales = torch._foreach_norm(parameters)
        torch._foreach_mul_(scales, [parameter.numel() ** -0.5 for parameter in parameters])
        torch._foreach_clamp_min_(scales, SMALLEST_SCALE)
        step = states[0]["step"]
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_div_(sizes, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(sizes, group["eps"])
        updates = list(torch._foreach_div(means, list(sizes)))
        torch._foreach_mul_(updates, scales)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] / (1 - beta1**step))
