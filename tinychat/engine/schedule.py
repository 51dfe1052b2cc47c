"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from tinychat.schema import Schedule


def lr_factor(
    step: int,
    max_steps: int,
    schedule: Schedule,
    warmup_steps: int,
    decay_fraction: float,
    min_lr_ratio: float,
) -> float:
    """Learning rate of 0-based optimizer step `step` / peak.

    Rises in a line over `warmup_steps` (the first step already moves), then: constant stays; linear and cosine fall to
    min_lr_ratio at the end; wsd (warm-up, stable, decay; Hu et al. 2024, MiniCPM) stays and falls in a line over the
    last `decay_fraction` of all steps.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule is Schedule.constant:
        return 1.0
    if schedule is Schedule.wsd:
        decay_steps = round(decay_fraction * max_steps)
        begin = max(warmup_steps, max_steps - decay_steps)
    else:
        begin = warmup_steps
    # The first decaying step is already below the peak, the last one still above the floor: none is wasted.
    progress = max(0.0, (step + 1 - begin) / (max_steps + 1 - begin))
    if schedule is Schedule.cosine:
        return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
    return 1 - (1 - min_lr_ratio) * progress
