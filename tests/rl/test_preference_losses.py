"""The losses on pairs of replies: every branch by hand, gradients against what they should be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tinychat.errors import UserError
from tinychat.rl.preference_losses import bradley_terry_loss, dpo_loss, pointwise_loss


def test_dpo_is_ln_2_where_policy_and_reference_agree() -> None:
    chosen, rejected = torch.tensor([-10.0, -3.0]), torch.tensor([-2.0, -30.0])
    for smoothing in (0.0, 0.1):
        losses, sums = dpo_loss(chosen, rejected, chosen, rejected, 0.1, label_smoothing=smoothing)
        assert losses.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6)
    assert {name: value.item() for name, value in sums.items()} == {
        "pairs": 2,
        "correct": 1,
        "margin": 0,
        "chosen_reward": 0,
        "rejected_reward": 0,
    }
    losses, _ = dpo_loss(chosen, rejected, chosen, rejected, 0.1, kind="ipo")
    assert losses.tolist() == pytest.approx([25.0] * 2)


def test_dpo_by_hand() -> None:
    chosen, rejected = torch.tensor([-5.0, -6.0]), torch.tensor([-8.0, -6.0])
    references = torch.tensor([-6.0, -4.0]), torch.tensor([-7.0, -7.0])
    # log-ratios: chosen (1, -2), rejected (-1, 1), h = (2, -3), βh = (1, -1.5)
    losses, sums = dpo_loss(chosen, rejected, *references, beta=0.5)
    plus, minus = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1.5))
    assert losses.tolist() == pytest.approx([plus, minus], rel=1e-5)
    smooth, _ = dpo_loss(chosen, rejected, *references, beta=0.5, label_smoothing=0.25)
    opposite = [math.log(1 + math.exp(1)), math.log(1 + math.exp(-1.5))]
    assert smooth.tolist() == pytest.approx(
        [0.75 * plus + 0.25 * opposite[0], 0.75 * minus + 0.25 * opposite[1]], rel=1e-5
    )
    ipo, _ = dpo_loss(chosen, rejected, *references, beta=0.5, kind="ipo")
    assert ipo.tolist() == pytest.approx([1.0, 16.0])  # (h - 1)²
    assert {name: value.item() for name, value in sums.items()} == {
        "pairs": 2,
        "correct": 1,
        "margin": -0.5,
        "chosen_reward": -0.5,
        "rejected_reward": 0,
    }


def test_reference_free_dpo_does_not_read_the_reference() -> None:
    chosen, rejected, nan = torch.tensor([-5.0]), torch.tensor([-8.0]), torch.tensor([math.nan])
    losses, sums = dpo_loss(chosen, rejected, nan, nan, beta=0.5, reference_free=True)
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-1.5)), rel=1e-5)
    assert sums["margin"].item() == 1.5


def test_the_gradient_of_dpo_raises_the_chosen_and_lowers_the_rejected() -> None:
    chosen, rejected = torch.tensor([-5.0], requires_grad=True), torch.tensor([-8.0], requires_grad=True)
    losses, _ = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.1)
    up, down = torch.autograd.grad(losses.sum(), (chosen, rejected))
    assert up.item() == pytest.approx(-0.05) and down.item() == pytest.approx(0.05)  # β · σ(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hinge"}, "'hinge' does not exist; choose sigmoid or ipo"),
        ({"beta": 0.0}, r"beta=0\.0"),
        ({"label_smoothing": 0.5}, r"label_smoothing=0\.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0\.1"),
        ({"label_smoothing": 0.1, "kind": "ipo"}, "with ipo only 0"),
    ],
)
def test_dpo_names_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dpo_loss(*[torch.zeros(1)] * 4, **({"beta": 0.1} | options))


def test_bradley_terry_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 1.0, 0.5])
    losses, sums = bradley_terry_loss(chosen, rejected)
    expected = [math.log(1 + math.exp(-d)) for d in (1.0, -2.0, 0.0)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert {name: value.item() for name, value in sums.items()} == {
        "pairs": 3,
        "correct": 1.5,
        "margin": -1,
        "chosen_reward": 1.5,
        "rejected_reward": 2.5,
    }
    for margin in (0.5, torch.full((3,), 0.5)):
        losses, _ = bradley_terry_loss(chosen, rejected, margin)
        assert losses.tolist() == pytest.approx([math.log(1 + math.exp(0.5 - d)) for d in (1.0, -2.0, 0.0)], rel=1e-5)
    centred, _ = bradley_terry_loss(chosen, rejected, centring=0.01)
    assert centred.tolist() == pytest.approx(
        [loss + 0.01 * square for loss, square in zip(expected, (9.0, 0.0, 1.0), strict=True)], rel=1e-5
    )


def test_bradley_terry_is_exact_for_large_differences() -> None:
    losses, _ = bradley_terry_loss(torch.tensor([500.0, -500.0]), torch.tensor([-500.0, 500.0]))
    assert losses.tolist() == [0.0, 1000.0]
    with pytest.raises(ValueError, match="shapes must be equal"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3, 1))


def test_pointwise_by_hand() -> None:
    losses, sums = pointwise_loss(torch.tensor([1.0, 1.0, 0.0, -2.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    expected = [math.log(1 + math.exp(z)) for z in (-1.0, -1.0, 0.0, -2.0)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert {name: value.item() for name, value in sums.items()} == {"samples": 4, "correct": 3.5, "score": 0}
    losses, sums = pointwise_loss(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.25]))
    assert losses.tolist() == pytest.approx([math.log(1 + math.e), math.log(1 + math.e) - 0.25], rel=1e-5)
    assert sums["correct"].item() == 0


def test_half_precision_is_computed_in_fp32() -> None:
    new, old = torch.tensor([-1.0], dtype=torch.bfloat16), torch.tensor([-2.0], dtype=torch.bfloat16)
    for result in (
        dpo_loss(new, old, new, old, beta=0.1)[0],
        bradley_terry_loss(new, old)[0],
        pointwise_loss(new, torch.ones(1))[0],
    ):
        assert result.dtype is torch.float32
