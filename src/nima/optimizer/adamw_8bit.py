"""AdamW with a state of a byte a number: a quarter of AdamW's memory beside the weights."""

from typing import Any

import torch

from nima.workspace.errors import UserError


def adamw_8bit(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Dettmers et al. 2021, https://arxiv.org/abs/2110.02861, as `bitsandbytes` has it, on GPUs and CPUs.

    Moments are quantised in blocks of 256 with a scale each; parameters of less than 4,096 values keep theirs
    in 32 bits. Raises `UserError` without the package.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "training.optimizer: adamw_8bit needs the extra bitsandbytes: pip install 'nima-lm[bitsandbytes]'"
        ) from None
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=betas, eps=eps)
    return optimizer
