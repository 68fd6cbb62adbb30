"""Optimizers without torch's compiler, which those of torch load at their first call.

That takes two seconds of every start, for the sake of graphs that go through an optimizer. Here none does:
`nima.training.compilation` translates layers alone.
"""

import torch


class Eager(torch.optim.Optimizer):
    """Its methods as torch wrote them, without what torch wraps around them."""

    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    load_state_dict = torch.optim.Optimizer.load_state_dict.__wrapped__  # type: ignore[attr-defined]
    state_dict = torch.optim.Optimizer.state_dict.__wrapped__  # type: ignore[attr-defined]
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]


class Adam(Eager, torch.optim.Adam):
    step = torch.no_grad()(torch.optim.Adam.step.__wrapped__)  # type: ignore[attr-defined]


class AdamW(Eager, torch.optim.AdamW):
    step = torch.no_grad()(torch.optim.AdamW.step.__wrapped__)  # type: ignore[attr-defined]


class SGD(Eager, torch.optim.SGD):
    step = torch.no_grad()(torch.optim.SGD.step.__wrapped__)  # type: ignore[attr-defined]
