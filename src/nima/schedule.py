"""The learning rate as a pure function of the step."""

import math


def lr_factor(
    step: int,
    total_steps: int,
    *,
    schedule: str,
    warmup_steps: int,
    decay_fraction: float,
    min_lr_ratio: float,
) -> float:
    """What the peak learning rate is multiplied by in update `step` (from 0), of `total_steps`.

    It rises linearly over the warm-up (the first update is not wasted on a rate of 0), stays at 1, and
    falls over the last `decay_fraction` of the run to `min_lr_ratio`, by a line or half a cosine.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    decay_steps = min(round(decay_fraction * total_steps), total_steps - warmup_steps)
    into_decay = step - (total_steps - decay_steps)
    if into_decay < 0 or decay_steps == 0:
        return 1.0
    progress = min(1.0, into_decay / decay_steps)
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return min_lr_ratio + (1 - min_lr_ratio) * fall
