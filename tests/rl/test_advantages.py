"""Rewards and advantages: by hand, and against loops without masks."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.rl.advantages import (
    apply_eos_penalty,
    gae,
    per_token_rewards,
    whiten,
)

LENGTHS = [5, 1, 3, 0, 4]


def mask_of(lengths: list[int], width: int) -> Tensor:
    return torch.tensor([[int(t < length) for t in range(width)] for length in lengths])


@pytest.fixture
def rollout() -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values, mask (5, 5), with rubbish where the mask is 0."""
    torch.manual_seed(0)
    mask = mask_of(LENGTHS, 5)
    rewards, values = torch.randn(5, 5), torch.randn(5, 5)
    rewards[mask == 0], values[mask == 0] = math.nan, 1e9
    return rewards, values, mask


def naive_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The definition of one response: a sum over all later δ, no recursion."""
    following = [*values[1:], 0.0][: len(values)]
    delta = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, len(delta))) for t in range(len(delta))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_equals_the_definition(rollout: tuple[Tensor, Tensor, Tensor], gamma: float, lam: float) -> None:
    rewards, values, mask = rollout
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(LENGTHS):
        v = values[row, :length].tolist()
        expected = naive_gae(rewards[row, :length].tolist(), v, gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-5)
        assert returns[row, :length].tolist() == pytest.approx(
            [a + b for a, b in zip(expected, v, strict=True)], abs=1e-5
        )
        assert advantages[row, length:].tolist() == returns[row, length:].tolist() == [0.0] * (5 - length)


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 7.0]]), torch.tensor([[0.5, 0.25, 0.75, 7.0]])
    advantages, returns = gae(rewards, values, torch.tensor([[1, 1, 1, 0]]), gamma=1.0, lam=0.5)
    # δ = (-0.25, 0.5, 0.25); A_2 = 0.25, A_1 = 0.5 + 0.125, A_0 = -0.25 + 0.3125
    assert advantages.tolist() == [[0.0625, 0.625, 0.25, 0.0]]
    assert returns.tolist() == [[0.5625, 0.875, 1.0, 0.0]]


def test_with_gamma_and_lambda_1_returns_are_the_rewards_still_to_come() -> None:
    torch.manual_seed(0)
    rewards, values, mask = torch.randn(2, 6), torch.randn(2, 6), mask_of([6, 4], 6)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    expected = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, expected)


def test_a_response_that_begins_later_in_its_row_has_the_same_advantages() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(1, 3), torch.randn(1, 3)
    advantages, returns = gae(rewards, values, torch.ones(1, 3), 0.9, 0.8)
    pad = (2, 1)
    wide = [torch.nn.functional.pad(x, pad, value=math.nan) for x in (rewards, values)]
    found = gae(*wide, torch.tensor([[0, 0, 1, 1, 1, 0]]), 0.9, 0.8)
    for part, expected in zip(found, (advantages, returns), strict=True):
        assert torch.equal(part, torch.nn.functional.pad(expected, pad))


def test_advantages_carry_no_gradient() -> None:
    values = torch.randn(1, 3, requires_grad=True)
    advantages, returns = gae(torch.ones(1, 3), values, torch.ones(1, 3), 1.0, 0.95)
    assert not advantages.requires_grad and not returns.requires_grad


def test_rewards_by_hand() -> None:
    kl = torch.tensor([[1.0, 2.0, math.nan], [0.5, -1.0, 3.0], [4.0, math.nan, math.nan], [1.0, 1.0, 1.0]])
    rewards = per_token_rewards(torch.tensor([10.0, 20.0, 30.0, 40.0]), kl, 0.5, mask_of([2, 3, 1, 0], 3))
    assert rewards.tolist() == [[-0.5, 9.0, 0.0], [-0.25, 0.5, 18.5], [28.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    later = per_token_rewards(torch.tensor([10.0]), kl[:1], 0.5, torch.tensor([[0, 1, 0]]))
    assert later.tolist() == [[0.0, 9.0, 0.0]]


def test_rewards_add_up_to_the_score_less_the_whole_penalty() -> None:
    torch.manual_seed(0)
    scores, kl, mask = torch.randn(6), torch.randn(6, 9), mask_of([9, 1, 4, 6, 2, 8], 9)
    rewards = per_token_rewards(scores, kl, 0.05, mask)
    torch.testing.assert_close(rewards.sum(1), scores - 0.05 * (kl * mask).sum(1))


def test_scores_in_a_column_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores \(2, 1\)"):
        per_token_rewards(torch.zeros(2, 1), torch.zeros(2, 3), 0.1, torch.ones(2, 3))


def test_missing_end_token() -> None:
    scores, ended = torch.tensor([2.0, -3.0, 0.5]), torch.tensor([True, False, False])
    assert apply_eos_penalty(scores, ended, "subtract", 1.0).tolist() == [2.0, -4.0, -0.5]
    assert apply_eos_penalty(scores, ended, "floor", -1.0).tolist() == [2.0, -1.0, -1.0]
    with pytest.raises(UserError, match="missing_end=add: no such penalty; there are subtract, floor"):
        apply_eos_penalty(scores, ended, "add", 1.0)


def whiten_on_ranks(parts: list[tuple[Tensor, Tensor]], shift_mean: bool) -> list[Tensor]:
    """Each part whitened by a thread that stands for a rank; their sums meet as in World.sum."""
    meeting = threading.Barrier(len(parts), timeout=20)
    board: dict[int, tuple[float, ...]] = {}

    def one_rank(rank: int) -> Tensor:
        def sums(*values: float) -> list[float]:
            board[rank] = values
            meeting.wait()
            total = [sum(column) for column in zip(*board.values(), strict=True)]
            meeting.wait()  # nobody writes again before everybody has read
            return total

        return whiten(*parts[rank], sums, shift_mean=shift_mean)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(one_rank, range(len(parts))))


def test_whitening_gives_mean_0_and_variance_1_over_the_mask() -> None:
    torch.manual_seed(0)
    x, mask = 1000 + 5 * torch.randn(40, 30), torch.rand(40, 30) < 0.4
    x[~mask] = math.nan
    white = whiten(x, mask)
    kept = white[mask].double()
    assert kept.mean().item() == pytest.approx(0, abs=1e-6)
    assert kept.square().mean().item() == pytest.approx(1, abs=1e-6)
    assert white[~mask].abs().sum() == 0
    still = whiten(x, mask, shift_mean=False)[mask].double()
    assert still.mean().item() == pytest.approx(x[mask].mean().item(), rel=1e-5)
    assert still.var(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_whitening_by_hand() -> None:
    x, mask = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]])
    assert whiten(x, mask).tolist() == [[-1.0, 1.0, 0.0]]
    assert whiten(3 * x, mask, shift_mean=False).tolist() == [[5.0, 7.0, 0.0]]


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("split", [[4, 4], [1, 7], [3, 0, 5], [2, 2, 2, 2]])
def test_whitening_does_not_depend_on_the_ranks(split: list[int], shift_mean: bool) -> None:
    torch.manual_seed(0)
    x, mask = 3 + 2 * torch.randn(8, 5), mask_of([5, 1, 3, 2, 4, 5, 1, 2], 5)
    whole = whiten(x, mask, shift_mean=shift_mean)
    parts = list(zip(x.split(split), mask.split(split), strict=True))
    found = torch.cat(whiten_on_ranks(parts, shift_mean))
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6)
    alone = torch.cat([whiten(*part, shift_mean=shift_mean) for part in parts])
    assert (alone - whole).abs().max() > 0.01, "without the global sums it does depend on them"


def test_whitening_equal_or_no_values_gives_zeros() -> None:
    assert whiten(torch.full((2, 2), 3.0), torch.ones(2, 2)).abs().sum() == 0
    assert whiten(torch.ones(2, 2), torch.zeros(2, 2)).abs().sum() == 0
