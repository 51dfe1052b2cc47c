"""The one function that turns a model, tokens and targets into log-probabilities.

Every stage and both sides of RL go through it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100


def token_nll(
    model: Any,
    input_ids: torch.Tensor,
    targets: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Negative log-likelihood of each target.

    Args:
        model: a transformers causal language model, possibly wrapped (DDP, DeepSpeed).
        input_ids: (B, T) int64.
        targets: (B, T) int64; targets[b, t] follows input_ids[b, t]; IGNORED where nothing is asked.
        position_ids: (B, T); given by the caller under left padding.
        attention_mask: (B, T) of 0 and 1.
        temperature: divides the logits.

    Returns:
        (B, T) fp32, in nats; 0 where the target is IGNORED.
    """
    logits = model(
        input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
    ).logits
    flat = F.cross_entropy(
        logits.float().flatten(0, 1) / temperature, targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view_as(targets)
