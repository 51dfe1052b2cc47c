"""Remedies against lost entropy: which tokens are learnt from, and the bonus that comes and goes."""

from __future__ import annotations

import math

import pytest
import torch

from tinychat.errors import UserError
from tinychat.rl.entropy import TargetEntropy, high_entropy_tokens


def test_the_share_of_tokens_of_most_entropy_by_hand() -> None:
    entropy = torch.tensor([[0.1, 2.0, 0.3, math.nan], [1.0, 0.0, 0.2, 9.0], [0.5, math.inf, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]])  # 2 1 .5 .3 .2 .1 0
    assert high_entropy_tokens(entropy, mask, 0.4).nonzero().tolist() == [[0, 1], [1, 0], [2, 0]]  # 2.8 are 3
    assert high_entropy_tokens(entropy, mask, 0.01).nonzero().tolist() == [[0, 1]]
    assert torch.equal(high_entropy_tokens(entropy, mask, 1.0), mask.bool())
    assert not high_entropy_tokens(entropy, 0 * mask, 0.2).any()
    equal = torch.ones(2, 3)
    assert high_entropy_tokens(equal, equal, 0.2).all(), "which of equal ones would be chance"
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(UserError, match="entropy_share="):
            high_entropy_tokens(entropy, mask, share)


def test_the_bonus_acts_below_its_target_and_goes_when_it_has_worked() -> None:
    bonus = TargetEntropy(target=0.5, step=0.25)
    assert [bonus.update(entropy) for entropy in (0.9, 0.4, 0.3, 0.6, 0.4, 0.9, 0.9, 0.9, 0.1)] == [
        0.0, 0.25, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0, 0.25,
    ]  # fmt: skip
    again = TargetEntropy(0.5, 0.25)
    again.load_state_dict(bonus.state_dict())
    assert again.update(0.1) == bonus.update(0.1) == 0.5
    again.load_state_dict({})
    assert again.coefficient == 0
    with pytest.raises(ValueError, match="not a number"):
        bonus.update(math.nan)
    for target, step, name in ((0.0, 0.1, "entropy_target"), (0.5, -1.0, "entropy_step"), (math.inf, 1.0, "target")):
        with pytest.raises(UserError, match=name):
            TargetEntropy(target, step)


def test_it_lifts_a_policy_that_would_become_certain() -> None:
    """Gradient steps towards one of four tokens, with and without the bonus."""

    def entropy_after(target: float | None) -> float:
        logits = torch.zeros(4, requires_grad=True)
        bonus = TargetEntropy(target, 0.02) if target else None
        for _ in range(400):
            logp = logits.log_softmax(0)
            entropy = -(logp.exp() * logp).sum()
            coefficient = bonus.update(entropy.item()) if bonus else 0.0
            (gradient,) = torch.autograd.grad(logp.exp()[0] + coefficient * entropy, logits)
            with torch.no_grad():
                logits += gradient
        return entropy.item()

    assert entropy_after(None) < 0.1
    assert 0.45 < entropy_after(0.6) < 0.75
