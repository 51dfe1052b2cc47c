"""Losses of PPO and GRPO.

Each returns its terms one by one, in fp32 and not averaged, and what there is to report as detached SUMS. Both can be
added over micro-batches and ranks and divided once by a global count, so the result does not depend on the split.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.rl.kl import LOG_RATIO_BOUND, kl_estimate, masked_sum, same_shape

Sums = dict[str, Tensor]  # name -> scalar fp32


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    log_ratio_bound: float = LOG_RATIO_BOUND,
) -> tuple[Tensor, Sums]:
    """The clipped surrogate (Schulman et al. 2017, eq. 7) as a loss, with ratio = exp(logprobs - old_logprobs):

        max(-A · ratio, -A · clip(ratio, 1 - clip_low, 1 + clip_high))

    clip_high above clip_low is clip-higher (Yu et al. 2025, DAPO, section 3.1). dual_clip c > 1 bounds the loss by -A·c
    where A < 0: without it a token that has become far more likely, and was bad, outweighs all others (Ye et al. 2020,
    dual-clip PPO).

    Args:
        logprobs: (B, T) of the response tokens under the policy being trained; carries the gradient.
        old_logprobs: (B, T) under the policy that sampled them.
        advantages, mask: (B, T). What stands where mask is 0 has no influence, NaN included.
        log_ratio_bound: bounds logprobs - old_logprobs on both sides; beyond it there is no gradient.

    Returns:
        losses (B, T), 0 where mask is 0; and sums over the mask: tokens; clipped and dual_clipped (tokens whose loss
        the bound decides); kl_k1 and kl_k3 (estimates of KL(old || new)); ratio.

    Raises:
        UserError: dual_clip is not above 1.
    """
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    if dual_clip is not None and dual_clip <= 1:
        raise UserError(f"dual_clip={dual_clip}: must be above 1 (3 is usual), or null for none")
    padding = ~mask.bool()
    # Emptied here, not at the end: 0 · NaN in the backward pass is NaN. With an advantage of 0 the loss is 0.
    new, old, gain = (x.float().masked_fill(padding, 0.0) for x in (logprobs, old_logprobs, advantages))
    ratio = (new - old).clamp(-log_ratio_bound, log_ratio_bound).exp()
    free = -gain * ratio
    bounded = -gain * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(free, bounded)
    dual_clipped = torch.zeros_like(padding)
    if dual_clip is not None:
        ceiling = -gain * dual_clip
        dual_clipped = (gain < 0) & (losses > ceiling)
        losses = torch.where(dual_clipped, ceiling, losses)
    counted = {
        "tokens": torch.ones_like(ratio),
        "clipped": bounded > free,
        "dual_clipped": dual_clipped,
        "kl_k1": kl_estimate(old, new, "k1"),
        "kl_k3": kl_estimate(old, new, "k3"),
        "ratio": ratio,
    }
    return losses, {name: masked_sum(x.detach(), mask) for name, x in counted.items()}


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2
) -> tuple[Tensor, Sums]:
    """0.5 · max((V - R)², (clip(V, V_old ± clip) - R)²) per token; 0.5 · (V - R)² with clip=None.

    The bound is that of the first PPO implementations (Engstrom et al. 2020, section 3): the value gains nothing by
    moving further than `clip` from where it was during the rollout. All arguments (B, T); values carries the gradient.

    Returns:
        losses (B, T), 0 where mask is 0; and sums over the mask: tokens; clipped (tokens whose loss the bound decides).
    """
    same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    padding = ~mask.bool()
    new, old, target = (x.float().masked_fill(padding, 0.0) for x in (values, old_values, returns))
    free = (new - target).square()
    losses, clipped = free, torch.zeros_like(padding)
    if clip is not None:
        # Not old + clip(new - old): rounding would move values that are within the bounds, and count them as clipped.
        bounded = (new.clamp(old - clip, old + clip) - target).square()
        losses, clipped = torch.maximum(free, bounded), bounded > free
    sums = {"tokens": mask.bool().sum().float(), "clipped": masked_sum(clipped, mask)}
    return 0.5 * losses, sums


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    ref_logprobs: Tensor | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
) -> tuple[Tensor, Sums]:
    """PPO's clipped surrogate with one advantage a response, plus β · KL estimate (Shao et al. 2024, eq. 3 and 4).

    logprobs, old_logprobs, ref_logprobs, mask: (B, T); advantages (B,) from group_advantages. ref_logprobs=None: no KL.

    Returns:
        losses (B, T), 0 where mask is 0, to be weighed by grpo_weights; and the sums of ppo_policy_loss, with "ref_kl"
        where there is a reference.
    """
    same_shape(advantages=advantages, rows=mask[:, 0])
    per_token = advantages[:, None].expand_as(mask)
    losses, sums = ppo_policy_loss(logprobs, old_logprobs, per_token, mask, clip_low, clip_high)
    if ref_logprobs is not None:
        padding = ~mask.bool()
        new, reference = (x.float().masked_fill(padding, 0.0) for x in (logprobs, ref_logprobs))
        kl = kl_estimate(new, reference, kl_estimator)
        losses = losses + beta * kl
        sums["ref_kl"] = masked_sum(kl.detach(), mask)
    return losses, sums


def grpo_weights(
    mask: Tensor, kind: str, max_length: int, kept: Tensor | None = None, ended: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """How much each token of grpo_loss counts: loss = Σ weights · losses / Σ denominator, both sums over the whole
    batch, all micro-batches and ranks.

        kind      weight          denominator           what weighs alike
        grpo      1 / length      completions           completions, so tokens of long ones less (Shao et al. 2024)
        dr_grpo   1 / max_length  completions           tokens, against a constant (Liu et al. 2025)
        dapo      1               tokens                tokens of the batch (Yu et al. 2025, section 3.3)

    Args:
        mask: (B, T) of the completions.
        max_length: longest completion the rollout allows (the constant of dr_grpo).
        kept: (B,) from group_advantages; other rows get weight 0 and are not counted.
        ended: (B,) given to leave out completions that were cut before their end token, likewise (DAPO's overlong
            filtering).

    Returns:
        weights (B, T) fp32; denominator of these rows, a scalar, 0 when nothing is left.

    Raises:
        UserError: another kind.
    """
    if kind not in ("grpo", "dr_grpo", "dapo"):
        raise UserError(f"GRPO loss type {kind!r} does not exist; choose grpo, dr_grpo or dapo")
    weights = mask.bool().float()
    for rows in (kept, ended):
        if rows is not None:
            same_shape(rows=rows, mask_rows=mask[:, 0])
            weights = weights * rows.bool()[:, None]
    lengths = weights.sum(1)
    if kind == "dapo":
        return weights, lengths.sum()
    size = lengths.clamp(min=1) if kind == "grpo" else torch.full_like(lengths, max_length)
    return weights / size[:, None], (lengths > 0).sum().float()
