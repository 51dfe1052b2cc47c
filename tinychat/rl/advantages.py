"""From scores to advantages: rewards per token, generalized advantage estimation, whitening, groups.

Shapes: B responses, T columns. A mask (B, T) is 1 on the tokens of each response, its end token included: one unbroken
run a row, usually from the first column (right padding). Results are fp32, 0 where the mask is 0, without gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.rl.kl import same_shape

WHITEN_EPSILON = 1e-8  # under the root: equal values become 0, not NaN
GROUP_EPSILON = 1e-4  # added to a group's standard deviation
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
    raise UserError(f"penalty mode {mode!r} for a missing end token does not exist; choose subtract or floor")


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
    rewards = -beta * kl.float().masked_fill(~kept, 0.0)
    return rewards + torch.where(last, scores.float()[:, None], 0.0)


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
    rewards, values = rewards.float().masked_fill(padding, 0.0), values.float().masked_fill(padding, 0.0)
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
def group_advantages(scores: Tensor, group_size: int, divide_by_std: bool = True) -> tuple[Tensor, Tensor]:
    """Advantage of each completion over the others of its prompt.

    (score - mean of the group) / (standard deviation of the group, with n - 1) as in GRPO (Shao et al. 2024, section
    4.1.2); without the division as in Dr. GRPO (Liu et al. 2025), where easy and hard prompts are not given more weight
    than those in between.

    Args:
        scores: (B,), the `group_size` completions of a prompt next to each other.

    Returns:
        advantages (B,), and kept (B,) bool: False for groups whose scores are all equal. These teach nothing: their
        advantages are exactly 0, and grpo_weights leaves them out of its denominator.

    Raises:
        ValueError: B is no multiple of group_size.
    """
    if scores.ndim != 1 or len(scores) % group_size:
        raise ValueError(f"scores {tuple(scores.shape)} are not made of groups of {group_size}")
    groups = scores.float().view(-1, group_size)
    spread = groups.amax(1, keepdim=True) > groups.amin(1, keepdim=True)
    advantages = groups - groups.mean(1, keepdim=True)
    if divide_by_std:
        variance = advantages.square().sum(1, keepdim=True) / max(group_size - 1, 1)
        advantages = advantages / (variance.sqrt() + GROUP_EPSILON)
    # Equal scores differ from their own rounded mean by a little: say 0, do not compute it.
    return torch.where(spread, advantages, 0.0).flatten(), spread.expand_as(groups).flatten()
