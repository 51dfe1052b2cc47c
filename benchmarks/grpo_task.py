"""What both sides of the GRPO benchmark compute with. Imports nothing of tinychat."""

from __future__ import annotations

from typing import Any

import numpy as np
from rl_task import Task  # beside this file

LR, BETA, CLIP, MAX_GRAD_NORM = 1e-6, 0.05, 0.2, 1.0


def rewarded(prompts: list[str], replies: list[str], **_named: Any) -> list[float]:
    """Share of a reply's words with an even number: something that costs nothing and tells replies apart."""
    words = [[int(word[1:]) for word in reply.split() if word[1:].isdigit()] for reply in replies]
    return [sum(number % 2 == 0 for number in own) / max(1, len(own)) for own in words]


def noisy(task: Task, logprobs: np.ndarray) -> list[np.ndarray]:
    """Two more sets of log-probabilities, as if of the policy that sampled and of a reference: with ratios on both
    sides of the clipping bounds."""
    random = np.random.Generator(np.random.PCG64(task.seed))
    return [(logprobs + spread * random.standard_normal(logprobs.shape)).astype(np.float32) for spread in (0.2, 0.5)]
