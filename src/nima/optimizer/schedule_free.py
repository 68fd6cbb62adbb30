"""AdamW that needs no falling learning rate, because it keeps an average of its weights."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nima.optimizer.eager import Eager


class ScheduleFreeAdamW(Eager):
    """Defazio et al. 2024, The Road Less Scheduled, https://arxiv.org/abs/2405.15682.

    Three sequences: z is stepped, x is the average of all z so far, and gradients are taken at
    y = (1 - beta1) z + beta1 x, which takes the place of momentum. The parameters are y, the state holds z,
    and x, the weights to judge and to keep, follows from both (`averages`). A step's weight in the average is
    the square of the largest learning rate so far, so that a warm-up counts little.
    """

    def __init__(self, params: Iterable[Any], betas: tuple[float, float], eps: float, lr: float = 1e-3):
        if not 0 < betas[0] < 1:
            raise ValueError(f"beta1 must be above 0 and below 1, found {betas[0]}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                self.count(parameter, group["lr"])
            if parameters:
                self.update(parameters, group)

    def count(self, parameter: Tensor, lr: float) -> None:
        """One more step in the parameter's numbers."""
        if not (state := self.state[parameter]):
            state |= {"step": 0, "largest_lr": 0.0, "weight_sum": 0.0}
            state |= {"z": parameter.detach().clone(), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        state["largest_lr"] = max(state["largest_lr"], lr)
        state["weight_sum"] += state["largest_lr"] ** 2

    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        stepped, squares = ([state[entry] for state in states] for entry in ("z", "exp_avg_sq"))
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_div_(sizes, (1 - beta2 ** states[0]["step"]) ** 0.5)
        torch._foreach_add_(sizes, group["eps"])
        updates = list(torch._foreach_div(gradients, list(sizes)))
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        share = states[0]["largest_lr"] ** 2 / states[0]["weight_sum"]
        # y moves to the average that has the new z in it, without x being made.
        torch._foreach_lerp_(parameters, stepped, share)
        torch._foreach_add_(parameters, updates, alpha=lr * (beta1 * (1 - share) - 1))
        torch._foreach_add_(stepped, updates, alpha=-lr)

    def averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter that was stepped, which must hold y, with its x."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if state := self.state.get(parameter):
                    yield parameter, torch.lerp(parameter.detach(), state["z"], 1 - 1 / group["betas"][0])
