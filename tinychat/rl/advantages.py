"""From scores to advantages: rewards per token, generalized advantage estimation, whitening, groups.

Shapes: B responses, T columns. A mask (B, T) is 1 on the tokens of each response, its end token included: one unbroken
run a row, usually from the first column (right padding). Results are at least fp32, 0 where the mask is 0, without
gradient. The replies to a prompt, its group, stand next to each other: rows i·G to (i + 1)·G - 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tinychat.errors import UserError, no_such
from tinychat.rl.kl import LOG_RATIO_BOUND, at_least_fp32, same_shape
from tinychat.rl.losses import GROUP_LOSSES

WHITEN_EPSILON = 1e-8  # under the root: equal values become 0, not NaN
SMALLEST_STD = 0.01  # what a group is divided by at least
NEAR = 0.1  # no advantage above 1 for scores that are nearer than this to the mean of their group
CORRECTIONS = ("none", "tis", "icepop", "sequence_mask")
# This rank's numbers -> their sums over all ranks. World.sum is one: a collective, so every rank must call as often.
SumOverRanks = Callable[..., list[float]]


def local_sums(*values: float) -> list[float]:
    """The SumOverRanks of a single rank."""
    return list(values)


def apply_eos_penalty(scores: Tensor, ended: Tensor, mode: str, value: float) -> Tensor:
    """Scores (B,) of responses, worse for those that were cut off before their end token.

    ended: (B,) bool. mode "subtract": score - value; "floor": the score is replaced by value, whatever it was.
    Raises UserError for another mode.
    """
    same_shape(scores=scores, ended=ended)
    scores = scores.float()
    if mode == "subtract":
        return torch.where(ended.bool(), scores, scores - value)
    if mode == "floor":
        return torch.where(ended.bool(), scores, torch.full_like(scores, value))
    raise no_such("missing_end", mode, "penalty", ("subtract", "floor"))


@torch.no_grad()
def per_token_rewards(scores: Tensor, kl: Tensor, beta: float, mask: Tensor) -> Tensor:
    """r_t = -β · kl_t, plus the score at the last token of the response (Ouyang et al. 2022; Ziegler et al. 2019).

    scores (B,), kl (B, T) per token, mask (B, T) -> (B, T). The score of a response without tokens has no place and is
    left out.
    """
    same_shape(kl=kl, mask=mask)
    same_shape(scores=scores, rows=mask[:, 0])
    kept = mask.bool()
    last = kept & (kept.flip(1).cumsum(1).flip(1) == 1)  # counted from the right, the first
    rewards = -beta * at_least_fp32(kl).masked_fill(~kept, 0.0)
    return rewards + torch.where(last, at_least_fp32(scores)[:, None], 0.0)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), with δ_t = r_t + γ V_{t+1} - V_t.

    A_t = Σ_l (γλ)^l δ_{t+l}, computed backwards as A_t = δ_t + γλ A_{t+1}. After a response's last token the value is
    0, whether it ended or was cut.

    Args:
        rewards, values, mask: (B, T); values[:, t] is the value before token t was chosen. What stands where mask is 0
            has no influence.

    Returns:
        advantages, returns: (B, T); returns = advantages + values, from advantages that are not whitened.
    """
    same_shape(rewards=rewards, values=values, mask=mask)
    padding = ~mask.bool()
    rewards, values = (at_least_fp32(x).masked_fill(padding, 0.0) for x in (rewards, values))
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    delta = rewards + gamma * following - values
    advantages = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])  # δ is 0 behind a response, so it is entered with 0
    for t in reversed(range(delta.shape[1])):
        running = delta[:, t] + gamma * lam * running
        advantages[:, t] = running
    advantages = advantages.masked_fill(padding, 0.0)
    return advantages, advantages + values


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, sums: SumOverRanks = local_sums, shift_mean: bool = True) -> Tensor:
    """x (B, T) scaled to variance 1 over all masked entries of all ranks, and shifted to mean 0.

    sums: adds numbers over the ranks (World.sum); called twice, on every rank. shift_mean=False keeps the mean: rewards
    are whitened so, because a shift would reward or punish mere length.
    """
    same_shape(x=x, mask=mask)
    kept = mask.bool()
    own = x[kept].double()
    count, total = sums(float(own.numel()), own.sum().item())
    mean = total / max(count, 1.0)
    # The squares in a second pass: Σx² - n·mean² would lose everything when the mean is large.
    (squares,) = sums((own - mean).square().sum().item())
    whitened = (x.double() - mean) * (squares / max(count, 1.0) + WHITEN_EPSILON) ** -0.5
    return (whitened if shift_mean else whitened + mean).masked_fill(~kept, 0.0).float()


@torch.no_grad()
def group_advantages(
    scores: Tensor, group_size: int, divide_by_std: bool, kind: str, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advantage of each reply over the others to its prompt, R its score, n the replies of the group that have one:

        R - mean                 Dr. GRPO (Liu et al. 2025) and, before the division, GRPO (Shao et al. 2024, 4.1.2)
        n / (n - 1)·(R - mean)   kind rloo: the mean of the OTHERS is taken off (Ahmadian et al. 2024; Kool et al. 2019)

    divide_by_std divides by the group's standard deviation (with n - 1), as GRPO does; without it easy and hard prompts
    weigh no more than those in between. Divided is by max(std, min(largest |R - mean|, 0.1), 0.01). A floor of the std
    alone is not enough: .5 .5 .5 .502 have a std of 0.001, and an advantage of 1.5. So an advantage above 1 takes a
    score that is 0.1 away from its group's mean; nearer ones are scaled to at most 1, and those within 0.01, which
    rounding and padding move, fade to 0 (.502 above: 0.15). Where the std is 0.1 or more, as of rewards of 0 and 1 in
    groups of up to 100, it is GRPO's own.

    Args:
        scores: (B,); what stands where known is False has no influence, NaN included.
        known: (B,) bool, False for replies whose reward is missing; None: all have one.

    Returns:
        advantages (B,), 0 where the reward is missing; and spread (B,) bool, the same for a whole group: False where no
        two of its scores differ (max == min, not a small std: rounding leaves a residue). Such a group's advantages
        are exactly 0.

    Raises:
        UserError: group_size below 2, or another kind. ValueError: B is no multiple of group_size; a known score is
            not a number.
    """
    if kind not in GROUP_LOSSES:
        raise no_such("loss", kind, "loss of groups", GROUP_LOSSES)
    if group_size < 2:
        raise UserError(
            f"group_size={group_size}: a reply is compared with others to its prompt; at least 2 (8 is usual)"
        )
    if scores.ndim != 1 or len(scores) % group_size:
        raise ValueError(f"scores {tuple(scores.shape)} are not made of groups of {group_size}")
    known = torch.ones_like(scores, dtype=torch.bool) if known is None else known.bool()
    same_shape(scores=scores, known=known)
    if not scores[known].isfinite().all():
        raise ValueError("scores hold NaN or infinity where they are said to be known")
    given, groups = known.view(-1, group_size), at_least_fp32(scores).view(-1, group_size)
    groups = groups.masked_fill(~given, 0.0)
    n = given.sum(1, keepdim=True)
    highest = groups.masked_fill(~given, -torch.inf).amax(1, keepdim=True)
    spread = highest > groups.masked_fill(~given, torch.inf).amin(1, keepdim=True)
    above = (groups - groups.sum(1, keepdim=True) / n.clamp(min=1)).masked_fill(~given, 0.0)
    advantages = above * n / (n - 1).clamp(min=1) if kind == "rloo" else above
    if divide_by_std:
        std = (above.square().sum(1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
        farthest = above.abs().amax(1, keepdim=True)
        advantages = advantages / torch.maximum(std, farthest.clamp(max=NEAR)).clamp(min=SMALLEST_STD)
    # Equal scores differ from their own rounded mean by a little: say 0, do not compute it.
    return torch.where(spread, advantages, 0.0).flatten(), spread.expand_as(groups).flatten()


@torch.no_grad()
def part_advantages(parts: Tensor, weights: Tensor, group_size: int, known: Tensor | None = None) -> Tensor:
    """Σ_k weight_k · advantage by part k: each part of the reward is divided by its own spread within the group before
    they are added (Liu et al. 2026, GDPO, 2601.05242), so that none drowns the others. Its authors then whiten the sum
    over the batch; here the weights keep saying how much each part counts.

    Args:
        parts: (B, K), not weighted; NaN where a part is missing.
        weights: (K,).
        known: (B,) bool; None: a reply is known when all its parts are.

    Returns:
        (B,); 0 where the reward is missing. A part that is the same for all replies of a group adds exactly 0.

    Raises:
        as group_advantages.
    """
    same_shape(weights=weights, parts=parts[0])
    known = ~parts.isnan().any(1) if known is None else known
    found = [group_advantages(part, group_size, True, "grpo", known)[0] for part in parts.T]
    return torch.stack(found, 1) @ at_least_fp32(weights).to(found[0].dtype)


@torch.no_grad()
def with_kl_penalty(advantages: Tensor, kl: Tensor, beta: float, mask: Tensor, group_size: int, kind: str) -> Tensor:
    """Advantages of tokens (B, T) from those of rows (B,): the KL in the reward, with group methods.

        A_t = A + β · (mean over the group - own) of the k1 still to come, Σ_{s ≥ t} log π(s) / π_ref(s)

    A reward of -β·k1 at each token, detached, and what of it can still be influenced: in expectation the gradient is
    that of β·KL of whole replies. The mean over the group at the same place, 0 for replies that have ended, is the
    baseline. Added after A has been divided by its group's std: β keeps its meaning.

    Args:
        advantages: (B,) from group_advantages or part_advantages. kl: (B, T), k1 of each token. kind: as there; with
            rloo the mean is that of the others.

    Returns:
        (B, T), 0 where mask is 0.
    """
    same_shape(kl=kl, mask=mask)
    same_shape(advantages=advantages, rows=mask[:, 0])
    kept = mask.bool()
    own = at_least_fp32(kl).masked_fill(~kept, 0.0)
    coming = own.flip(1).cumsum(1).flip(1).view(-1, group_size, mask.shape[1])
    over = coming - coming.mean(1, keepdim=True)
    if kind == "rloo":
        over = over * (group_size / (group_size - 1))
    return (at_least_fp32(advantages)[:, None] - beta * over.view_as(own)).masked_fill(~kept, 0.0)


@torch.no_grad()
def sampler_correction(
    old_logprobs: Tensor, sampled: Tensor, mask: Tensor, kind: str, cap: float, low: float, high: float
) -> Tensor:
    """What the policy loss is multiplied by where sampler and trainer give tokens different probabilities, with
    ρ = exp(old_logprobs - sampled):

        none     1
        tis      min(ρ, cap): truncated importance sampling (Yao et al. 2025; cap 2)
        icepop   ρ where low ≤ ρ ≤ high, else 0 (IcePop, 2510.18855; 0.5 and 5)
        sequence_mask   1 in rows with low ≤ exp(mean of log ρ) ≤ high, else 0: a reply that the sampler would have
                 given another probability than the trainer is left out as a whole

    The ratio of the loss is against old_logprobs, never against `sampled` at the same time: that would count ρ twice.

    Args:
        old_logprobs: (B, T) under the policy at the start of the step, as the trainer computes it.
        sampled: (B, T) as recorded while sampling.

    Returns:
        weights (B, T), detached, 0 where mask is 0.

    Raises:
        UserError: another kind; cap below 1; a band without 1 in it.
    """
    if kind not in CORRECTIONS:
        raise no_such("correction", kind, "correction of the sampler", CORRECTIONS)
    if kind == "tis" and not cap >= 1:
        raise UserError(
            f"correction_cap={cap}: must be 1 or more (2 is usual), or equal sampler and trainer are cut too"
        )
    if kind in ("icepop", "sequence_mask") and not 0 <= low <= 1 <= high:
        raise UserError(
            f"correction_low={low}, correction_high={high}: the band must hold 1, where sampler and trainer agree "
            "(0.5 and 5 are usual)"
        )
    same_shape(old_logprobs=old_logprobs, sampled=sampled, mask=mask)
    padding = ~mask.bool()
    old, drawn = (at_least_fp32(x).masked_fill(padding, 0.0) for x in (old_logprobs, sampled))
    logs = old - drawn
    if kind == "sequence_mask":  # mask: of WHOLE replies
        logs = (logs.sum(1, keepdim=True) / mask.bool().sum(1, keepdim=True).clamp(min=1)).expand_as(logs)
    weights = logs.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    if kind == "none":
        weights = torch.ones_like(weights)
    elif kind == "tis":
        weights = weights.clamp(max=cap)
    else:
        inside = (weights >= low) & (weights <= high)
        weights = torch.where(inside, weights if kind == "icepop" else 1.0, 0.0)
    return weights.masked_fill(padding, 0.0)


def soft_length_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """0 for replies of up to limit - buffer tokens, then falling evenly to -1 at the limit (Yu et al. 2025, DAPO,
    eq. 13): -min(length - (limit - buffer), buffer) / buffer. To be added to the scores.

    lengths (B,) in tokens -> (B,). Raises UserError unless 1 ≤ buffer ≤ limit.
    """
    if not 1 <= buffer <= limit:
        raise UserError(f"soft_length={buffer}: the last tokens of a reply that are punished, from 1 to all {limit}")
    return -((lengths.float() - (limit - buffer)) / buffer).clamp(0.0, 1.0)
