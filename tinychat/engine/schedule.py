"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from tinychat.config.stages import Schedule, TrainLoop


def warmup_of(loop: TrainLoop) -> int:
    """Steps of the warm-up: those configured, or half of a run that is shorter than them."""
    return loop.warmup_steps if loop.warmup_steps <= loop.max_steps else loop.max_steps // 2


def lr_factor(step: int, loop: TrainLoop) -> float:
    """Learning rate of 0-based optimizer step `step` / peak.

    Rises in a line over the warm-up (the first step already moves), then: constant stays; linear and cosine fall to
    min_lr_ratio at the end; wsd (warm-up, stable, decay; Hu et al. 2024, MiniCPM) stays and falls in a line over the
    last `decay_fraction` of all steps.
    """
    warmup = warmup_of(loop)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if loop.schedule is Schedule.constant:
        return 1.0
    begin = warmup
    if loop.schedule is Schedule.wsd:
        begin = max(begin, loop.max_steps - round(loop.decay_fraction * loop.max_steps))
    # The first decaying step is already below the peak, the last one still above the floor: none is wasted.
    progress = max(0.0, (step + 1 - begin) / (loop.max_steps + 1 - begin))
    falling = (1 + math.cos(math.pi * progress)) / 2 if loop.schedule is Schedule.cosine else 1 - progress
    return loop.min_lr_ratio + (1 - loop.min_lr_ratio) * falling
