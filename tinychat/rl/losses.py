"""Losses of PPO and of the methods that compare a prompt's replies with each other (GRPO and its relatives).

Each returns its terms one by one, at least in fp32 and not averaged, and what there is to report as detached SUMS. Both
can be added over micro-batches and ranks and divided once by a global count, so the result does not depend on the
split. In all of them ratio = exp(logprobs - old_logprobs), token by token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat.errors import UserError, no_such
from tinychat.rl.kl import LOG_RATIO_BOUND, at_least_fp32, kl_estimate, masked_sum, same_shape

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
    new, old, gain = _emptied(mask, logprobs, old_logprobs, advantages)
    ratio = (new - old).clamp(-log_ratio_bound, log_ratio_bound).exp()
    losses, decided = _clipped(gain, ratio, clip_low, clip_high, dual_clip)
    return losses, _policy_sums(new, old, ratio, decided, mask)


def _emptied(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Each with 0 where the mask is 0. Not at the end of a loss: 0 · NaN in the backward pass is NaN."""
    padding = ~mask.bool()
    return [at_least_fp32(x).masked_fill(padding, 0.0) for x in tensors]


def _clipped(
    gain: Tensor, ratio: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (B, T) of PPO, and which of them a bound decides."""
    if dual_clip is not None and dual_clip <= 1:
        raise UserError(f"dual_clip={dual_clip}: must be above 1 (3 is usual), or null for none")
    free = -gain * ratio
    bounded = -gain * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(free, bounded)
    dual_clipped = torch.zeros_like(losses, dtype=torch.bool)
    if dual_clip is not None:
        ceiling = -gain * dual_clip
        dual_clipped = (gain < 0) & (losses > ceiling)
        losses = torch.where(dual_clipped, ceiling, losses)
    return losses, {"clipped": bounded > free, "dual_clipped": dual_clipped}


def _policy_sums(new: Tensor, old: Tensor, ratio: Tensor, decided: dict[str, Tensor], mask: Tensor) -> Sums:
    counted = {
        "tokens": torch.ones_like(ratio),
        **decided,
        "kl_k1": kl_estimate(old, new, "k1"),
        "kl_k3": kl_estimate(old, new, "k3"),
        "ratio": ratio,
    }
    return {name: masked_sum(x.detach(), mask) for name, x in counted.items()}


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
    new, old, target = _emptied(mask, values, old_values, returns)
    free = (new - target).square()
    losses, clipped = free, torch.zeros_like(free, dtype=torch.bool)
    if clip is not None:
        # Not old + clip(new - old): rounding would move values that are within the bounds, and count them as clipped.
        bounded = (new.clamp(old - clip, old + clip) - target).square()
        losses, clipped = torch.maximum(free, bounded), bounded > free
    sums = {"tokens": mask.bool().sum().float(), "clipped": masked_sum(clipped, mask)}
    return 0.5 * losses, sums


GROUP_LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo")


def group_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    kind: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    log_ratio_bound: float = LOG_RATIO_BOUND,
    correction: Tensor | None = None,
) -> tuple[Tensor, Sums]:
    """Policy losses of group methods, to be weighed by token_weights of the same kind. With A the advantage, r the
    ratio of a token, ℓ its log-probability and sg() what carries no gradient:

        grpo, dr_grpo, dapo   -min(r·A, clip(r, 1 - clip_low, 1 + clip_high)·A), as ppo_policy_loss; dual_clip too
                              (Shao et al. 2024, eq. 3; Liu et al. 2025; Yu et al. 2025, eq. 8). They differ in
                              token_weights.
        gspo                  the same with s in place of r, one ratio for the whole row: s = exp(Σ log r / length)
                              (Zheng et al. 2025, 2507.18071, eq. 5 and 7). A mean over a reply moves little: clip_low
                              and clip_high are some 3e-4 and 4e-4 there, PPO's 0.2 would never act. Computed in the
                              token form (eq. 13 and 14), sg(s)·exp(ℓ - sg(ℓ)): the gradient of a token is -A·s·∇ℓ.
                              Averaged over the row it is the loss and the gradient of the sequence form where the
                              row has one advantage, and remains right where tokens have their own (KL in the reward).
        cispo                 -sg(min(r, 1 + clip_high))·A·ℓ (MiniMax 2025, 2506.13585, eq. 4 and 5): the weight is
                              bounded, no token loses its gradient. clip_high is the ε of the paper: 0.28 bounds the
                              weight at 1.28. (Elsewhere the bound itself is given: 1.28 there is 0.28 here.) No lower
                              bound, as in the paper's experiments: clip_low and dual_clip are not read.
        rloo                  -r·A, REINFORCE with the leave-one-out advantage (Ahmadian et al. 2024): while
                              r = 1 the gradient is -A·∇ℓ. r weighs what later updates learn from a policy that is
                              no longer the one that sampled; nothing but log_ratio_bound bounds it, and clip_low,
                              clip_high and dual_clip are not read.

    Args:
        logprobs: (B, T) of the response tokens under the policy being trained; carries the gradient.
        old_logprobs: (B, T) under the policy at the start of the step, as the trainer computes it.
        advantages: (B, T); group_advantages of each row on all its tokens.
        mask: (B, T) of WHOLE responses (gspo averages over them). What stands where it is 0 has no influence, NaN
            included; what is not learnt from is left out by token_weights.
        log_ratio_bound: bounds the logarithm of r or s on both sides; beyond it there is no gradient.
        correction: (B, T) from sampler_correction; multiplies the losses.

    Returns:
        losses (B, T), 0 where mask is 0; and the sums of ppo_policy_loss, where `ratio` is r, with gspo s, and
        `clipped` counts the tokens whose loss, with cispo whose weight, the bound decides.

    Raises:
        UserError: another kind; dual_clip is not above 1.
    """
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    if kind not in GROUP_LOSSES:
        raise no_such("loss", kind, "loss of groups", GROUP_LOSSES)
    new, old, gain = _emptied(mask, logprobs, old_logprobs, advantages)
    log_ratio = new - old
    if kind == "gspo":
        mean = log_ratio.sum(1, keepdim=True) / mask.bool().sum(1, keepdim=True).clamp(min=1)
        log_ratio = mean.detach() + (new - new.detach())
    ratio = log_ratio.clamp(-log_ratio_bound, log_ratio_bound).exp()
    nowhere = torch.zeros_like(ratio, dtype=torch.bool)
    if kind == "rloo":
        losses, decided = -gain * ratio, {"clipped": nowhere, "dual_clipped": nowhere}
    elif kind == "cispo":
        losses = -ratio.detach().clamp(max=1 + clip_high) * gain * new
        decided = {"clipped": ratio > 1 + clip_high, "dual_clipped": nowhere}
    else:
        losses, decided = _clipped(gain, ratio, clip_low, clip_high, dual_clip)
    if correction is not None:
        same_shape(correction=correction, mask=mask)
        (weights,) = _emptied(mask, correction)
        losses = losses * weights.detach()
    return losses, _policy_sums(new, old, ratio, decided, mask)


@torch.no_grad()
def fresh_tokens(logprobs: Tensor, sampled: Tensor, advantages: Tensor, mask: Tensor, bound: float) -> Tensor:
    """Which tokens the policy loss keeps when stale bad replies are left out: all but those with A < 0 in replies that
    the policy has left by more than `bound` nats a token, mean(sampled - logprobs) > bound (DeepSeek-AI 2025,
    DeepSeek-V3.2, 2512.02556, section 3.1). Such a reply is pushed away further by the loss, and tells little of a
    policy that would not write it.

    Args:
        logprobs: (B, T) under the policy being trained. sampled: (B, T) as recorded while sampling.
        advantages, mask: (B, T) of WHOLE replies. What stands where mask is 0 has no influence, NaN included.

    Returns:
        (B, T) bool, False where mask is 0; multiplies the policy loss. The denominator of token_weights stays: it is
        counted before the policy has moved.
    """
    same_shape(logprobs=logprobs, sampled=sampled, advantages=advantages, mask=mask)
    new, drawn, gain = _emptied(mask, logprobs, sampled, advantages)
    left = (drawn - new).sum(1, keepdim=True) / mask.bool().sum(1, keepdim=True).clamp(min=1)
    return mask.bool() & ~((gain < 0) & (left > bound))


KL_LOSSES = ("k2", "k3")


def kl_loss(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, form: str
) -> tuple[Tensor, Sums]:
    """KL(policy || reference) as a loss, with d = logprobs - ref_logprobs and r the ratio of the token
    (Liu et al. 2025, 2506.09477; kl_estimate has the estimators):

        form    loss                      gradient     right
        k2      d² / 2                    d·∇ℓ         on policy: while r is 1
        k3      r · (exp(-d) - 1 + d)     r·d·∇ℓ       also after the policy has moved, at the variance of r

    The expected gradient is that of Σ_t KL(policy || reference) at the prefixes that were sampled, token by token. Bare
    k1 has the gradient 0 in expectation and bare k3 that of KL(reference || policy): neither is offered. r in front
    mends k3: its gradient is r·(k3 + 1 - exp(-d))·∇ℓ = r·d·∇ℓ.

    Tokens whose advantage is 0 keep this loss, groups without spread included.

    Args:
        logprobs, old_logprobs, ref_logprobs, mask: (B, T), as group_policy_loss has them. What stands where mask is 0
            has no influence, NaN included.

    Returns:
        losses (B, T), 0 where mask is 0, in nats; and the sum `ref_kl` of them.

    Raises:
        UserError: another form.
    """
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, mask=mask)
    if form not in KL_LOSSES:
        raise no_such("kl_loss", form, "KL loss", KL_LOSSES)
    new, old, reference = _emptied(mask, logprobs, old_logprobs, ref_logprobs)
    losses = kl_estimate(new, reference, form)
    if form == "k3":
        ratio = (new - old).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp().detach()
        # r · k3, with its gradient written out: 1 - exp(-d) + d would lose a small d to rounding, and beyond the bound
        # of k3 point away from the reference.
        pull = ratio * (new - reference).detach()
        losses = (ratio * losses).detach() + pull * (new - new.detach())
    return losses, {"ref_kl": masked_sum(losses.detach(), mask)}


def token_weights(mask: Tensor, kind: str, max_length: int, learnt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How much each token of group_policy_loss and kl_loss counts: loss = Σ weights · losses / Σ denominator, both sums
    over the whole batch, all micro-batches and ranks.

        kind          weight          denominator   what weighs alike
        grpo, gspo    1 / length      rows          rows, so tokens of long ones less (Shao et al. 2024, eq. 3)
        dr_grpo       1 / max_length  rows          tokens, against a constant (Liu et al. 2025)
        dapo, cispo   1               tokens        tokens of the batch (Yu et al. 2025, eq. 8; MiniMax 2025, eq. 4)
        rloo          1               rows          a reply is one action: its tokens add up (Ahmadian et al. 2024)

    Groups without spread have no policy loss, for their advantages are 0; they count here as all others do, so that
    what a reply weighs does not depend on the luck of its neighbours, and for their KL.

    Args:
        mask: (B, T) of the responses.
        max_length: longest response the rollout allows, in tokens (the constant of dr_grpo).
        learnt: (B,) or (B, T) bool: False for rows (cut replies, Yu et al. 2025, section 3.4) or tokens (of little
            entropy) that are left out. They get weight 0, and are not counted: lengths, rows and tokens above are of
            what is left.

    Returns:
        weights (B, T) fp32; denominator of these rows, a scalar, 0 when nothing is left.

    Raises:
        UserError: another kind.
    """
    if kind not in GROUP_LOSSES:
        raise no_such("loss", kind, "loss of groups", GROUP_LOSSES)
    weights = mask.bool().float()
    if learnt is not None:
        learnt = learnt[:, None].expand_as(mask) if learnt.ndim == 1 else learnt
        same_shape(learnt=learnt, mask=mask)
        weights = weights * learnt.bool()
    lengths = weights.sum(1)
    if kind in ("dapo", "cispo"):
        return weights, lengths.sum()
    if kind in ("grpo", "gspo"):
        weights = weights / lengths.clamp(min=1)[:, None]
    elif kind == "dr_grpo":
        weights = weights / max_length
    return weights, (lengths > 0).sum().float()
