"""Every loss of RL against the exact gradient of its objective: six tokens, replies of at most three, all of them.

The policy is a table of logits, one row for each of the 31 beginnings of a reply; token 0 ends it, so there are 156
replies of one to three tokens. An expectation is a sum over all of them, over all 156² pairs for groups of two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tinychat.rl.advantages import gae, group_advantages, per_token_rewards, with_kl_penalty
from tinychat.rl.kl import kl_estimate
from tinychat.rl.losses import (
    GROUP_LOSSES,
    group_policy_loss,
    kl_loss,
    ppo_policy_loss,
    token_weights,
    value_loss,
)

VOCABULARY, LONGEST, END = 6, 3, 0
BETA = 0.3


def replies() -> Iterator[tuple[int, ...]]:
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=length):
            if END not in tokens[:-1] and (tokens[-1] == END or length == LONGEST):
                yield tokens


REPLIES = list(replies())
STATES = {tokens[:t]: 0 for tokens in REPLIES for t in range(len(tokens))}
STATES = {state: row for row, state in enumerate(STATES)}
MASK = torch.tensor([[t < len(tokens) for t in range(LONGEST)] for tokens in REPLIES])
AT = torch.tensor([[STATES.get(tokens[:t], 0) if t < len(tokens) else 0 for t in range(LONGEST)] for tokens in REPLIES])
TOKENS = torch.tensor([[tokens[t] if t < len(tokens) else 0 for t in range(LONGEST)] for tokens in REPLIES])
LENGTHS = MASK.sum(1)


@dataclass
class Toy:
    """Logits (31, 6) of a policy that is trained, of the one that sampled, and of the reference; rewards (156,)."""

    logits: Tensor
    old: Tensor
    reference: Tensor
    rewards: Tensor

    def gradient(self, value: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(value, self.logits, retain_graph=True)
        return found


@pytest.fixture
def toy() -> Toy:
    draw = torch.Generator().manual_seed(0)

    def table(scale: float, around: Tensor | float = 0.0) -> Tensor:
        return around + scale * torch.randn(len(STATES), VOCABULARY, dtype=torch.float64, generator=draw)

    old = table(0.7)
    rewards = torch.randn(len(REPLIES), dtype=torch.float64, generator=draw)
    return Toy(table(0.3, old).requires_grad_(), old, table(0.5, old), rewards)


@pytest.fixture
def on_policy(toy: Toy) -> Toy:
    """At the first update: the policy that is trained is the one that sampled."""
    return Toy(toy.logits, toy.logits.detach(), toy.reference, toy.rewards)


def logprobs(logits: Tensor) -> Tensor:
    """(156, 3), NaN behind a reply."""
    return logits.log_softmax(-1)[AT, TOKENS].masked_fill(~MASK, torch.nan)


def chances(logits: Tensor) -> Tensor:
    """(156,) of each reply; they add up to 1."""
    return logits.log_softmax(-1)[AT, TOKENS].masked_fill(~MASK, 0.0).sum(1).exp()


def over_pairs(toy: Toy, advantages: Callable[[Tensor, Tensor], Tensor], kind: str) -> Tensor:
    """Expected loss of a group of two replies, a row's share of the batch taken to be a half: how many tokens a batch
    has, dapo's denominator, is chance. advantages: (indices of replies (2N,), their mask) -> (2N, 3)."""
    pairs = torch.cartesian_prod(*[torch.arange(len(REPLIES))] * 2)
    rows, mask = pairs.flatten(), MASK[pairs.flatten()]
    new, old = logprobs(toy.logits)[rows], logprobs(toy.old)[rows]
    losses, _ = group_policy_loss(new, old, advantages(rows, mask), mask, kind, 0.2, 0.2)
    weights, _ = token_weights(mask, kind, LONGEST)
    chance = chances(toy.old)[pairs].prod(1).repeat_interleave(2)
    return (chance[:, None] * weights * losses).sum() / 2


def same(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3, "nothing to compare"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_all_replies_are_there(toy: Toy) -> None:
    assert (len(REPLIES), len(STATES)) == (156, 31)
    assert chances(toy.logits).sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", GROUP_LOSSES)
def test_the_first_update_of_every_group_loss_climbs_the_expected_reward(on_policy: Toy, kind: str) -> None:
    def advantages(rows: Tensor, mask: Tensor) -> Tensor:
        found, _ = group_advantages(on_policy.rewards[rows], 2, False, kind)
        return found[:, None].expand_as(mask)

    found = on_policy.gradient(over_pairs(on_policy, advantages, kind))
    p, reward = chances(on_policy.logits), on_policy.rewards
    half = 0.5  # (G - 1) / G: each reply is part of the mean that it is compared with; rloo takes the others'
    objective = {
        "rloo": (p * reward).sum(),
        "dapo": half * (p * reward).sum(),
        "cispo": half * (p * reward).sum(),
        "dr_grpo": half * (p * reward).sum() / LONGEST,
    }
    # A mean over the row: what climbs is the reward per token, above the mean reward. Long bad replies are punished
    # less than short ones.
    per_token = half * (p / LENGTHS * (reward - (p * reward).sum().detach())).sum()
    same(found, -on_policy.gradient(objective.get(kind, per_token)))


def test_divided_by_the_std_of_a_pair_it_climbs_how_often_a_reply_is_the_better_one(on_policy: Toy) -> None:
    def advantages(rows: Tensor, mask: Tensor) -> Tensor:
        found, _ = group_advantages(on_policy.rewards[rows], 2, True, "dapo")
        return found[:, None].expand_as(mask)

    on_policy.rewards = (10 * on_policy.rewards).round()  # some are equal, none nearer than 1
    found = on_policy.gradient(over_pairs(on_policy, advantages, "dapo"))
    p, reward = chances(on_policy.logits), on_policy.rewards
    better = (reward[:, None] - reward).sign() @ p.detach()  # than a reply of the policy, less how often it is worse
    same(found, -on_policy.gradient(0.5**0.5 * (p * better).sum()))


@pytest.mark.parametrize("kind", GROUP_LOSSES)
def test_later_updates_climb_the_objectives_as_the_papers_write_them(toy: Toy, kind: str) -> None:
    low, high, dual = (0.05, 0.08, 3.0) if kind == "gspo" else (0.2, 0.28, 1.5)
    new, old = logprobs(toy.logits), logprobs(toy.old)
    gain = toy.rewards
    losses, sums = group_policy_loss(new, old, gain[:, None].expand_as(MASK), MASK, kind, low, high, dual)
    weights, _ = token_weights(MASK, kind, LONGEST)
    found = toy.gradient((chances(toy.old)[:, None] * weights * losses).sum())

    def bounded(ratio: Tensor, a: Tensor) -> Tensor:
        ppo = torch.min(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
        return torch.max(ppo, dual * a) if a < 0 else ppo

    objective = torch.zeros((), dtype=torch.float64)
    policy, sampler = toy.logits.softmax(-1), toy.old.softmax(-1)
    for tokens, a in zip(REPLIES, gain, strict=True):
        places = [(STATES[tokens[:t]], token) for t, token in enumerate(tokens)]
        p, q = torch.stack([policy[at] for at in places]), torch.stack([sampler[at] for at in places])
        ratio, length = p / q, len(tokens)
        if kind == "gspo":
            value = bounded((p.prod() / q.prod()) ** (1 / length), a)
        elif kind == "cispo":
            value = (ratio.detach().clamp(max=1 + high) * a * p.log()).sum()
        elif kind == "rloo":
            value = (ratio * a).sum()
        else:
            value = sum(bounded(one, a) for one in ratio)
            value = value / {"grpo": length, "dr_grpo": LONGEST, "dapo": 1}[kind]
        objective = objective + q.prod() * value
    same(found, -toy.gradient(objective))
    if kind != "rloo":
        assert 0.05 < sums["clipped"] / sums["tokens"] < 0.6, "the bound acts on some"


def test_ppo_with_any_value_function_climbs_the_reward_less_the_kl_of_replies(on_policy: Toy) -> None:
    new, reference = logprobs(on_policy.logits), logprobs(on_policy.reference)
    values = torch.randn(len(STATES), dtype=torch.float64, generator=torch.Generator().manual_seed(1))[AT]
    rewards = per_token_rewards(on_policy.rewards, kl_estimate(new.detach(), reference, "k1"), BETA, MASK)
    advantages, _ = gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    losses, _ = ppo_policy_loss(new, new.detach(), advantages, MASK, 0.2, 0.2)
    found = on_policy.gradient((chances(on_policy.old)[:, None] * losses).sum())
    same(found, -on_policy.gradient(reward_less_kl(on_policy)))


def reward_less_kl(toy: Toy) -> Tensor:
    p = chances(toy.logits)
    return (p * toy.rewards).sum() - BETA * (p * (p / chances(toy.reference)).log()).sum()


@pytest.mark.parametrize(("kind", "factor"), [("rloo", 1.0), ("dapo", 0.5), ("dr_grpo", 0.5 / LONGEST)])
def test_the_kl_in_the_reward_of_group_methods_is_the_kl_of_replies(on_policy: Toy, kind: str, factor: float) -> None:
    k1 = kl_estimate(logprobs(on_policy.logits), logprobs(on_policy.reference), "k1")

    def advantages(rows: Tensor, mask: Tensor) -> Tensor:
        found, _ = group_advantages(on_policy.rewards[rows], 2, False, kind)
        return with_kl_penalty(found, k1[rows], BETA, mask, 2, kind)

    found = on_policy.gradient(over_pairs(on_policy, advantages, kind))
    same(found, -factor * on_policy.gradient(reward_less_kl(on_policy)))


def test_ppo_after_the_first_update_climbs_the_clipped_surrogate(toy: Toy) -> None:
    """The gradient written out: of a token whose loss no bound decides, -A · ratio · (one-hot - π)."""
    new, old = logprobs(toy.logits), logprobs(toy.old)
    gain = torch.randn(MASK.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses, _ = ppo_policy_loss(new, old, gain, MASK, 0.2, 0.28, dual_clip=1.5)
    found = toy.gradient((chances(toy.old)[:, None] * losses).sum())
    policy, chance = toy.logits.detach().softmax(-1), chances(toy.old)
    expected = torch.zeros_like(found)
    for row, t in MASK.nonzero().tolist():
        a, ratio = gain[row, t], (new - old)[row, t].detach().exp()
        free = ratio <= 1.28 if a > 0 else 0.8 <= ratio <= 1.5
        onehot = torch.nn.functional.one_hot(TOKENS[row, t], VOCABULARY)
        expected[AT[row, t]] -= chance[row] * free * a * ratio * (onehot - policy[AT[row, t]])
    same(found, expected)


def visits(logits: Tensor) -> Tensor:
    """(31,) how often each beginning is met in a reply."""
    return torch.zeros(len(STATES), dtype=torch.float64).index_add(
        0, AT[MASK], chances(logits)[:, None].expand_as(MASK)[MASK]
    )


def kl_gradient(toy: Toy) -> Tensor:
    """Of KL(policy || reference) after each beginning, as often as the sampler meets it."""
    logp, logq = toy.logits.log_softmax(-1), toy.reference.log_softmax(-1)
    return toy.gradient((visits(toy.old).detach() * (logp.exp() * (logp - logq)).sum(-1)).sum())


def of_estimates(toy: Toy, per_token: Tensor) -> Tensor:
    return toy.gradient((chances(toy.old)[:, None] * per_token.masked_fill(~MASK, 0.0)).sum())


@pytest.mark.parametrize("form", ["k2", "k3"])
def test_kl_losses_have_the_gradient_of_the_kl(on_policy: Toy, form: str) -> None:
    new = logprobs(on_policy.logits)
    losses, _ = kl_loss(new, new.detach(), logprobs(on_policy.reference), MASK, form)
    same(of_estimates(on_policy, losses), kl_gradient(on_policy))


def test_with_its_ratio_k3_keeps_it_after_the_policy_has_moved_and_k2_does_not(toy: Toy) -> None:
    def error(form: str) -> float:
        losses, _ = kl_loss(logprobs(toy.logits), logprobs(toy.old), logprobs(toy.reference), MASK, form)
        return relative(of_estimates(toy, losses), kl_gradient(toy))

    assert error("k3") < 1e-9
    assert error("k2") > 0.05
    losses, _ = kl_loss(logprobs(toy.logits), logprobs(toy.old), logprobs(toy.reference), MASK, "k3")
    logp, logq = toy.logits.log_softmax(-1), toy.reference.log_softmax(-1)
    exact = (visits(toy.old) * (logp.exp() * (logp - logq)).sum(-1)).sum()
    torch.testing.assert_close((chances(toy.old)[:, None] * losses).sum(), exact)  # the value too


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_bare_estimators_as_a_loss_have_the_wrong_gradient(on_policy: Toy) -> None:
    new, reference = logprobs(on_policy.logits), logprobs(on_policy.reference)
    exact = kl_gradient(on_policy)
    nothing = of_estimates(on_policy, kl_estimate(new, reference, "k1"))
    assert nothing.abs().max() < 1e-12
    wrong = of_estimates(on_policy, kl_estimate(new, reference, "k3"))
    assert relative(wrong, exact) > 0.25
    logp, logq = on_policy.logits.log_softmax(-1), on_policy.reference.log_softmax(-1)
    other_way = on_policy.gradient((visits(on_policy.old).detach() * (logq.exp() * (logq - logp)).sum(-1)).sum())
    same(wrong, other_way)  # KL(reference || policy)


@pytest.mark.parametrize("kind", GROUP_LOSSES)
def test_groups_without_spread_are_pulled_to_the_reference_as_all_others(on_policy: Toy, kind: str) -> None:
    advantages, spread = group_advantages(torch.full((len(REPLIES),), 0.1), 2, True, kind)
    assert not spread.any()
    new = logprobs(on_policy.logits)
    policy, _ = group_policy_loss(new, new.detach(), advantages[:, None].expand_as(MASK), MASK, kind, 0.2, 0.2)
    kl, _ = kl_loss(new, new.detach(), logprobs(on_policy.reference), MASK, "k2")
    weights, count = token_weights(MASK, kind, LONGEST)
    assert count == (MASK.sum() if kind in ("dapo", "cispo") else len(REPLIES))
    size = {"grpo": LENGTHS, "gspo": LENGTHS, "dr_grpo": torch.tensor(LONGEST)}.get(kind, torch.tensor(1))
    expected = of_estimates(on_policy, BETA * kl / size.view(-1, 1))
    same(of_estimates(on_policy, weights * (policy + BETA * kl)), expected)


def test_the_value_loss_goes_to_the_expected_return(toy: Toy) -> None:
    values = torch.randn(len(STATES), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values.requires_grad_()
    kl = torch.zeros(MASK.shape, dtype=torch.float64)
    rewards = per_token_rewards(toy.rewards, kl, BETA, MASK)
    _, returns = gae(rewards, values.detach()[AT], MASK, gamma=1.0, lam=1.0)
    losses, _ = value_loss(values[AT], values.detach()[AT], returns, MASK, clip=0.2)
    (found,) = torch.autograd.grad((chances(toy.old)[:, None] * losses).sum(), values)
    expected = torch.zeros_like(found)  # Σ over replies that go on from a beginning of (V - reward)
    for tokens, chance, reward in zip(REPLIES, chances(toy.old), toy.rewards, strict=True):
        for t in range(len(tokens)):
            row = STATES[tokens[:t]]
            expected[row] += chance * (values[row].detach() - reward)
    same(found, expected)
