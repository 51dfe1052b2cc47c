"""The losses of RL: every branch by hand, gradients against what they should be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tinychat.errors import UserError
from tinychat.rl.losses import ppo_policy_loss, value_loss

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def one_token(ratio: float, advantage: float, **options: Any) -> tuple[float, float, dict[str, float]]:
    """Loss, its gradient with respect to the log-probability, and the sums, for one token of the given ratio."""
    old = torch.tensor([[-1.0]])
    new = (old + math.log(ratio)).requires_grad_()
    settings: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3} | options
    loss, sums = ppo_policy_loss(new, old, torch.tensor([[advantage]]), torch.ones(1, 1), **settings)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    return loss.item(), gradient.item(), {name: value.item() for name, value in sums.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.1, 2.0, -2.2, -2.2, 0),  # inside
        (1.5, 2.0, -2.6, 0.0, 1),  # good and already likelier: stop at 1.3
        (0.5, 2.0, -1.0, -1.0, 0),  # good but less likely: no bound
        (1.5, -2.0, 3.0, 3.0, 0),  # bad but likelier: no bound
        (0.5, -2.0, 1.6, 0.0, 1),  # bad and already less likely: stop at 0.8
        (0.9, -2.0, 1.8, 1.8, 0),
    ],
)
def test_every_branch_of_the_clipped_loss(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: int
) -> None:
    found, slope, sums = one_token(ratio, advantage)
    assert found == pytest.approx(loss, rel=1e-5)
    assert slope == pytest.approx(gradient, rel=1e-5)
    assert sums["clipped"] == clipped
    assert sums["dual_clipped"] == 0
    assert sums["ratio"] == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "dual"),
    [
        (5.0, -2.0, 6.0, 0.0, 1),  # bounded by 3 · 2
        (2.0, -2.0, 4.0, 4.0, 0),  # below the bound
        (0.5, -2.0, 1.6, 0.0, 0),  # the ordinary bound
        (5.0, 2.0, -2.6, 0.0, 0),  # good tokens are not concerned
        (0.1, 2.0, -0.2, -0.2, 0),
    ],
)
def test_dual_clip(ratio: float, advantage: float, loss: float, gradient: float, dual: int) -> None:
    found, slope, sums = one_token(ratio, advantage, dual_clip=3.0)
    assert found == pytest.approx(loss, rel=1e-5)
    assert slope == pytest.approx(gradient, rel=1e-5)
    assert sums["dual_clipped"] == dual
    with pytest.raises(UserError, match=r"dual_clip=1\.0"):
        one_token(1.0, 1.0, dual_clip=1.0)


def test_the_log_ratio_is_bounded_on_both_sides() -> None:
    old = torch.zeros(1, 2)
    new = torch.tensor([[700.0, -700.0]], requires_grad=True)
    loss, sums = ppo_policy_loss(new, old, -torch.ones(1, 2), torch.ones(1, 2), 0.2, 0.2)
    assert loss.tolist()[0] == pytest.approx([math.exp(20), 0.8], rel=1e-5)
    assert sums["ratio"].item() == pytest.approx(math.exp(20) + math.exp(-20), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    assert gradient.tolist() == [[0.0, 0.0]]
    tight, _ = ppo_policy_loss(new, old, -torch.ones(1, 2), torch.ones(1, 2), 0.2, 0.2, log_ratio_bound=1.0)
    assert tight.tolist()[0] == pytest.approx([math.e, 0.8], rel=1e-5)
    good, _ = ppo_policy_loss(new, old, torch.ones(1, 2), torch.ones(1, 2), 0.2, 0.2, log_ratio_bound=1.0)
    assert good.tolist()[0] == pytest.approx([-1.2, -1 / math.e], rel=1e-5)


def test_at_ratio_1_the_gradient_is_the_policy_gradient_and_nothing_is_clipped() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 6, requires_grad=True)
    tokens, advantages = torch.randint(6, (3, 4)), torch.randn(3, 4)
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    losses, sums = ppo_policy_loss(logprobs, logprobs.detach(), advantages, MASK, 0.2, 0.2, dual_clip=3.0)
    (found,) = torch.autograd.grad(losses.sum() / MASK.sum(), logits)
    # REINFORCE in closed form: d log π(a) / d logits = onehot(a) - π
    onehot = torch.nn.functional.one_hot(tokens, 6)
    weights = (advantages * MASK / MASK.sum())[..., None]
    torch.testing.assert_close(found, -weights * (onehot - logits.detach().softmax(-1)))
    assert {name: value.item() for name, value in sums.items()} == {
        "tokens": 8.0,
        "clipped": 0.0,
        "dual_clipped": 0.0,
        "kl_k1": 0.0,
        "kl_k3": 0.0,
        "ratio": 8.0,
    }


def test_statistics_are_sums_over_the_mask() -> None:
    old = torch.zeros(1, 3)
    new = torch.tensor([[math.log(2.0), math.log(0.25), 50.0]])
    _, sums = ppo_policy_loss(new, old, torch.ones(1, 3), torch.tensor([[1, 1, 0]]), 0.2, 0.2)
    assert sums["tokens"].item() == 2
    assert sums["clipped"].item() == 1  # only upwards: the advantages are positive
    assert sums["ratio"].item() == pytest.approx(2.25)
    assert sums["kl_k1"].item() == pytest.approx(math.log(2), rel=1e-5)  # old - new
    # k3 of KL(old || new) = ratio - 1 - log ratio
    assert sums["kl_k3"].item() == pytest.approx(2 - 1 - math.log(2) + 0.25 - 1 + math.log(4), rel=1e-5)


@pytest.mark.parametrize(
    "rubbish", [(-math.inf, math.nan, 1e30), (math.nan, 0.0, math.nan), (0.0, math.inf, -math.inf)]
)
def test_masked_tokens_have_no_influence_and_no_gradient(rubbish: tuple[float, float, float]) -> None:
    torch.manual_seed(0)
    new, noise, gain = torch.randn(3, 4), 0.3 * torch.randn(3, 4), torch.randn(3, 4)
    padding = MASK == 0
    new_, old_, gain_ = (x.masked_fill(padding, bad) for x, bad in zip((new, new + noise, gain), rubbish, strict=True))
    new_.requires_grad_()
    expected, sums = ppo_policy_loss(new, new + noise, gain, MASK, 0.2, 0.2, dual_clip=2.0)
    found, dirty_sums = ppo_policy_loss(new_, old_, gain_, MASK, 0.2, 0.2, dual_clip=2.0)
    assert torch.equal(found, expected * MASK)
    assert sums == dirty_sums
    values, _ = value_loss(new_, old_, gain_, MASK)
    assert values[padding].abs().sum() == 0
    for losses in (found, values):
        (gradient,) = torch.autograd.grad(losses.sum(), new_)
        assert gradient.isfinite().all()
        assert gradient[padding].abs().sum() == 0


def test_losses_and_sums_do_not_depend_on_the_split() -> None:
    torch.manual_seed(0)
    new, noise, gain = torch.randn(3, 4), 0.5 * torch.randn(3, 4), torch.randn(3, 4)
    whole, sums = ppo_policy_loss(new, new + noise, gain, MASK, 0.2, 0.2)
    rows = [slice(i, i + 1) for i in range(3)]
    parts = [ppo_policy_loss(new[i], (new + noise)[i], gain[i], MASK[i], 0.2, 0.2) for i in rows]
    assert torch.equal(torch.cat([losses for losses, _ in parts]), whole)
    for name, value in sums.items():
        assert sum(part[name].item() for _, part in parts) == pytest.approx(value.item(), rel=1e-5)


def test_half_precision_is_computed_in_fp32() -> None:
    new, old, gain = (torch.tensor([[x]], dtype=torch.bfloat16) for x in (-8.0, -7.96875, 1.0))
    losses, sums = ppo_policy_loss(new, old, gain, torch.ones(1, 1), 0.2, 0.2)
    assert losses.dtype is torch.float32
    assert sums["ratio"].item() == pytest.approx(math.exp(-0.03125), rel=1e-6)
    for result in (value_loss(new, old, gain, torch.ones(1, 1))[0],):
        assert result.dtype is torch.float32


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient", "clipped"),
    [
        (1.1, 2.0, 0.405, -0.9, 0),  # inside ±0.2 of the old value 1
        (1.5, 2.0, 0.32, 0.0, 1),  # moved too far towards the target: as if at 1.2
        (0.5, 2.0, 1.125, -1.5, 0),  # moved away: the true error is larger
        (0.4, 0.0, 0.32, 0.0, 1),  # downwards: as if at 0.8
        (2.0, 0.0, 2.0, 2.0, 0),
    ],
)
def test_every_branch_of_the_value_loss(
    value: float, target: float, loss: float, gradient: float, clipped: int
) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    old, returns, mask = torch.ones(1, 1), torch.tensor([[target]]), torch.ones(1, 1)
    found, sums = value_loss(values, old, returns, mask, clip=0.2)
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert slope.item() == pytest.approx(gradient, rel=1e-5)
    assert (sums["tokens"].item(), sums["clipped"].item()) == (1, clipped)
    free, sums = value_loss(values, old, returns, mask, clip=None)
    assert free.item() == pytest.approx((value - target) ** 2 / 2, rel=1e-5)
    assert sums["clipped"].item() == 0


def test_values_that_hardly_moved_are_not_counted_as_clipped() -> None:
    torch.manual_seed(0)
    old, new, returns = -0.1 * torch.rand(50, 50), 0.05 * torch.rand(50, 50), torch.randn(50, 50)
    _, sums = value_loss(new, old, returns, torch.ones(50, 50), clip=0.2)
    assert sums["clipped"].item() == 0
