"""The learning rate as a pure function of the step."""

import math
from itertools import pairwise


def lr_factor(
    step: int,
    total_steps: int,
    *,
    schedule: str,
    warmup_steps: int,
    decay_fraction: float,
    min_lr_ratio: float,
    decay_shape: str = "linear",
    num_cycles: int = 1,
    cycle_growth: float = 1.0,
) -> float:
    """What the peak learning rate is multiplied by in update `step` (from 0), of `total_steps`.

    It rises linearly over the warm-up (the first update is not wasted on a rate of 0), stays at 1, and
    falls over the last `decay_fraction` of the run to `min_lr_ratio`:

    linear, cosine    by a line, or half a cosine
    wsd               warm-up, stable, decay (Hu et al. 2024, https://arxiv.org/abs/2404.06395): in the shape
                      `decay_shape`, where 1-sqrt is one minus the root of the progress (Hägele et al. 2024,
                      https://arxiv.org/abs/2405.18392)
    cosine_restarts   in `num_cycles` half cosines, each `cycle_growth` times as long as the one before
                      (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983)
    constant, plateau not at all by the step
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule in ("constant", "plateau"):
        return 1.0
    decay_steps = min(round(decay_fraction * total_steps), total_steps - warmup_steps)
    into_decay = step - (total_steps - decay_steps)
    if into_decay < 0 or decay_steps == 0:
        return 1.0
    if schedule == "cosine_restarts":
        progress = progress_of_cycle(into_decay, decay_steps, num_cycles, cycle_growth)
    else:
        progress = min(1.0, into_decay / decay_steps)
    shape = {"wsd": decay_shape, "cosine_restarts": "cosine"}.get(schedule, schedule)
    return min_lr_ratio + (1 - min_lr_ratio) * fall(shape, progress)


def fall(shape: str, progress: float) -> float:
    """From 1 at the beginning of a decay (progress 0) to 0 at its end (1)."""
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - (math.sqrt(progress) if shape == "1-sqrt" else progress)


def progress_of_cycle(step: int, total_steps: int, num_cycles: int, growth: float) -> float:
    """How much of its cycle is over at `step`; cycles begin on whole steps."""
    lengths = [growth**cycle for cycle in range(num_cycles)]
    parts = [sum(lengths[:cycle]) / sum(lengths) for cycle in range(num_cycles + 1)]
    for start, end in pairwise(round(part * total_steps) for part in parts):
        if start <= step < end:
            return (step - start) / (end - start)
    return 1.0


def warmup_steps_of(warmup_steps: int, warmup_fraction: float, total_steps: int) -> int:
    """The warm-up in updates, of which the params give the number or the share."""
    return warmup_steps or round(warmup_fraction * total_steps)
