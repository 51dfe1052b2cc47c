"""The losses of group methods: every kind by hand, extreme inputs, and what each token weighs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.rl.advantages import sampler_correction
from tinychat.rl.losses import (
    GROUP_LOSSES,
    fresh_tokens,
    group_policy_loss,
    kl_loss,
    ppo_policy_loss,
    token_weights,
)

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def one_token(kind: str, ratio: float, advantage: float, **options: Any) -> tuple[float, float, dict[str, float]]:
    """Loss, its gradient with respect to the log-probability, and the sums, for one token of the given ratio."""
    old = torch.tensor([[-1.0]])
    new = (old + math.log(ratio)).requires_grad_()
    settings: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3} | options
    loss, sums = group_policy_loss(new, old, torch.tensor([[advantage]]), torch.ones(1, 1), kind, **settings)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    return loss.item(), gradient.item(), {name: value.item() for name, value in sums.items()}


@pytest.mark.parametrize(
    ("kind", "ratio", "advantage", "loss", "gradient", "clipped"),
    [
        ("grpo", 1.1, 2.0, -2.2, -2.2, 0),
        ("dapo", 1.5, 2.0, -2.6, 0.0, 1),  # stops at 1 + clip_high
        ("dr_grpo", 0.5, -2.0, 1.6, 0.0, 1),  # stops at 1 - clip_low
        ("gspo", 1.1, 2.0, -2.2, -2.2, 0),  # of one token, the row's ratio is the token's
        ("gspo", 1.5, 2.0, -2.6, 0.0, 1),
        ("cispo", 1.1, 2.0, -2.2 * (math.log(1.1) - 1), -2.2, 0),
        ("cispo", 1.5, 2.0, -2.6 * (math.log(1.5) - 1), -2.6, 1),  # the weight stops at 1.3, the gradient does not
        ("cispo", 0.1, -2.0, 0.2 * (math.log(0.1) - 1), 0.2, 0),  # no lower bound
        ("rloo", 1.0, 2.0, -2.0, -2.0, 0),
        ("rloo", 5.0, 2.0, -10.0, -10.0, 0),  # no bound
    ],
)
def test_every_kind_by_hand(
    kind: str, ratio: float, advantage: float, loss: float, gradient: float, clipped: int
) -> None:
    found, slope, sums = one_token(kind, ratio, advantage)
    assert found == pytest.approx(loss, rel=1e-5)
    assert slope == pytest.approx(gradient, rel=1e-5)
    assert sums["clipped"] == clipped
    assert sums["ratio"] == pytest.approx(ratio, rel=1e-5)


def test_dual_clip_bounds_bad_tokens_that_became_likely() -> None:
    for kind in ("grpo", "dr_grpo", "dapo", "gspo"):
        found, slope, sums = one_token(kind, 5.0, -2.0, dual_clip=3.0)
        assert (found, slope, sums["dual_clipped"]) == (pytest.approx(6), 0, 1)
    with pytest.raises(UserError, match=r"dual_clip=1\.0"):
        one_token("grpo", 1.0, 1.0, dual_clip=1.0)


def test_gspo_has_one_ratio_a_row() -> None:
    old = torch.zeros(2, 3)
    new = torch.tensor([[math.log(2.0), math.log(4.0), 99.0], [0.3, 0.1, 0.2]], requires_grad=True)
    mask, gain = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1.0] * 3, [-2.0] * 3])
    losses, sums = group_policy_loss(new, old, gain, mask, "gspo", 0.9, 9.0)
    row = [math.sqrt(8), math.exp(0.2)]
    assert losses[0].tolist() == pytest.approx([-row[0], -row[0], 0.0])
    assert losses[1].tolist() == pytest.approx([2 * row[1]] * 3)
    assert sums["ratio"].item() == pytest.approx(2 * row[0] + 3 * row[1])
    weights, rows = token_weights(mask, "gspo", 3)
    (token_form,) = torch.autograd.grad((losses * weights).sum() / rows, new)
    # the sequence form
    s = ((new - old).masked_fill(mask == 0, 0.0).sum(1) / mask.sum(1)).exp()
    (whole,) = torch.autograd.grad(-(s * gain[:, 0]).mean(), new)
    torch.testing.assert_close(token_form, whole)
    # PPO's range never acts on it, its own does, on all tokens of a row at once
    near = new.detach() * 0.001
    assert group_policy_loss(near, old, gain.abs(), mask, "gspo", 0.2, 0.2)[1]["clipped"] == 0
    assert group_policy_loss(near, old, gain.abs(), mask, "gspo", 3e-4, 4e-4)[1]["clipped"] == 2


def test_with_one_token_in_a_row_gspo_is_ppo() -> None:
    torch.manual_seed(0)
    new, old, gain = torch.randn(8, 1), torch.randn(8, 1), torch.randn(8, 1)
    found = group_policy_loss(new, old, gain, torch.ones(8, 1), "gspo", 0.2, 0.3, 3.0)
    expected = ppo_policy_loss(new, old, gain, torch.ones(8, 1), 0.2, 0.3, 3.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", GROUP_LOSSES)
def test_at_ratio_1_the_gradient_of_every_kind_is_the_policy_gradient(kind: str) -> None:
    torch.manual_seed(0)
    new, gain = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    losses, sums = group_policy_loss(new, new.detach(), gain, MASK, kind, 3e-4, 4e-4, dual_clip=3.0)
    (gradient,) = torch.autograd.grad(losses.sum(), new)
    torch.testing.assert_close(gradient, -gain * MASK)
    assert (sums["clipped"], sums["dual_clipped"], sums["ratio"], sums["kl_k3"]) == (0, 0, 8, 0)


@pytest.mark.parametrize("kind", GROUP_LOSSES)
def test_the_correction_multiplies_the_loss_and_has_no_gradient(kind: str) -> None:
    torch.manual_seed(0)
    new, noise, gain = torch.randn(3, 4), 0.1 * torch.randn(3, 4), torch.randn(3, 4)
    weights = torch.rand(3, 4).masked_fill(MASK == 0, math.nan).requires_grad_()
    plain, _ = group_policy_loss(new, new + noise, gain, MASK, kind, 0.2, 0.2)
    found, _ = group_policy_loss(new, new + noise, gain, MASK, kind, 0.2, 0.2, correction=weights)
    torch.testing.assert_close(found, plain * weights.detach().nan_to_num())
    assert not found.requires_grad


@pytest.mark.parametrize("kind", GROUP_LOSSES)
@pytest.mark.parametrize(
    "rubbish", [(-math.inf, math.nan, 1e30), (math.nan, 0.0, math.nan), (0.0, math.inf, -math.inf)]
)
def test_masked_tokens_have_no_influence_and_no_gradient(kind: str, rubbish: tuple[float, float, float]) -> None:
    torch.manual_seed(0)
    new, noise, gain = torch.randn(3, 4), 0.3 * torch.randn(3, 4), torch.randn(3, 4)
    padding = MASK == 0
    new_, old_, gain_ = (x.masked_fill(padding, bad) for x, bad in zip((new, new + noise, gain), rubbish, strict=True))
    new_.requires_grad_()
    expected, sums = group_policy_loss(new, new + noise, gain, MASK, kind, 0.2, 0.2)
    found, dirty_sums = group_policy_loss(new_, old_, gain_, MASK, kind, 0.2, 0.2)
    assert torch.equal(found, expected * MASK)
    assert sums == dirty_sums
    for form in ("k2", "k3"):
        kl, _ = kl_loss(new_, old_, gain_, MASK, form)
        assert torch.equal(kl, kl_loss(new, new + noise, gain, MASK, form)[0] * MASK)
        found = found + kl
    (gradient,) = torch.autograd.grad(found.sum(), new_)
    assert gradient.isfinite().all()
    assert gradient[padding].abs().sum() == 0


@pytest.mark.parametrize("kind", GROUP_LOSSES)
def test_extreme_inputs_give_finite_losses_and_gradients(kind: str) -> None:
    new = torch.tensor([[700.0, -700.0, 0.0], [700.0, 700.0, 700.0], [-700.0, -700.0, -700.0]], requires_grad=True)
    old, mask = torch.zeros(3, 3), torch.ones(3, 3)
    for sign in (1.0, -1.0):
        losses, sums = group_policy_loss(new, old, sign * mask, mask, kind, 0.2, 0.2, log_ratio_bound=10.0)
        (gradient,) = torch.autograd.grad(losses.sum(), new)
        assert losses.isfinite().all() and gradient.isfinite().all()
        assert sums["ratio"] <= 9 * math.exp(10.0) * 1.001
    for form, (a, b) in itertools.product(("k2", "k3"), [(new, old), (old, new)]):
        losses, sums = kl_loss(a, old, b, mask, form)
        assert losses.isfinite().all() and sums["ref_kl"].isfinite()
    # every row masked: nothing, and nothing to divide by
    losses, sums = group_policy_loss(new, old, mask, 0 * mask, kind, 0.2, 0.2)
    weights, denominator = token_weights(0 * mask, kind, 3)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), new)
    assert losses.abs().sum() == gradient.abs().sum() == weights.abs().sum() == denominator == sums["tokens"] == 0


def test_half_precision_is_computed_in_fp32() -> None:
    new, old, gain = (torch.tensor([[x]], dtype=torch.bfloat16) for x in (-8.0, -7.96875, 1.0))
    losses, sums = group_policy_loss(new, old, gain, torch.ones(1, 1), "gspo", 0.2, 0.2)
    assert losses.dtype is torch.float32
    assert sums["ratio"].item() == pytest.approx(math.exp(-0.03125), rel=1e-6)
    assert kl_loss(new, old, old, torch.ones(1, 1), "k3")[0].dtype is torch.float32


def test_kl_losses_by_hand() -> None:
    d, ratio = math.log(2.0), 1.5
    for form, loss, gradient in [("k2", d * d / 2, d), ("k3", ratio * (0.5 - 1 + d), ratio * d)]:
        new = torch.tensor([[-1.0]], requires_grad=True)
        old, reference = new.detach() - math.log(ratio), new.detach() - d
        found, sums = kl_loss(new, old, reference, torch.ones(1, 1), form)
        (slope,) = torch.autograd.grad(found.sum(), new)
        assert found.item() == pytest.approx(loss, rel=1e-5)
        assert sums["ref_kl"].item() == pytest.approx(loss, rel=1e-5)
        assert slope.item() == pytest.approx(gradient, rel=1e-5)


def test_k3_pulls_towards_the_reference_however_far_it_is() -> None:
    new = torch.tensor([[-1.0, -60.0, -1.0, -1.0 - 1e-4]], requires_grad=True)
    reference = torch.tensor([[-60.0, -1.0, -1.0, -1.0]])
    losses, _ = kl_loss(new, torch.full((1, 4), -1.0), reference, torch.ones(1, 4), "k3")
    (gradient,) = torch.autograd.grad(losses.sum(), new)
    assert gradient[0, 0].item() == pytest.approx(59, rel=1e-5)
    assert gradient[0, 1] < 0
    assert gradient[0, 2] == 0
    assert gradient[0, 3].item() == pytest.approx(-1e-4, rel=2e-3), "not rounded away"
    assert (losses >= 0).all()


def test_the_written_gradient_of_k3_is_that_of_the_ratio_times_k3() -> None:
    torch.manual_seed(0)
    old, reference = torch.randn(2, 5, 5, dtype=torch.float64)
    new = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    losses, _ = kl_loss(new, old, reference, torch.ones(5, 5), "k3")
    plain = (new - old).exp() * ((reference - new).exp() - 1 - (reference - new))
    torch.testing.assert_close(losses, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), new)[0] for x in (losses, plain)))


def averaged(losses: Tensor, kind: str, learnt: Tensor | None = None) -> float:
    weights, denominator = token_weights(MASK, kind, 10, learnt)
    return ((weights * losses).sum() / denominator).item()


def test_what_a_token_weighs_by_hand() -> None:
    losses = torch.arange(12.0).view(3, 4)  # rows under the mask: 0 1 2 | 4 | 8 9 10 11
    for kind in ("grpo", "gspo"):
        assert averaged(losses, kind) == pytest.approx((1 + 4 + 9.5) / 3)
    assert averaged(losses, "dr_grpo") == pytest.approx((3 + 4 + 38) / (10 * 3))
    assert averaged(losses, "rloo") == pytest.approx((3 + 4 + 38) / 3)
    for kind in ("dapo", "cispo"):
        assert averaged(losses, kind) == pytest.approx((3 + 4 + 38) / 8)
    rows = torch.tensor([True, False, True])
    assert averaged(losses, "grpo", rows) == pytest.approx((1 + 9.5) / 2)
    assert averaged(losses, "dr_grpo", rows) == pytest.approx((3 + 38) / (10 * 2))
    assert averaged(losses, "dapo", rows) == pytest.approx((3 + 38) / 7)
    tokens = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]])
    assert averaged(losses, "grpo", tokens) == pytest.approx((1.5 + 9.5) / 2)
    assert averaged(losses, "rloo", tokens) == pytest.approx((3 + 19) / 2)
    assert averaged(losses, "dapo", tokens) == pytest.approx((3 + 19) / 4)


@pytest.mark.parametrize("kind", GROUP_LOSSES)
@pytest.mark.parametrize("learnt", [None, "rows", "tokens"])
def test_every_split_of_a_batch_has_the_same_loss_and_gradient(kind: str, learnt: str | None) -> None:
    """All 32 ways to cut six replies into micro-batches or ranks, each part's loss divided by the global count."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([4, 1, 2, 4, 3, 1])
    mask = torch.arange(4) < lengths[:, None]
    new, old, reference, sampled, gain = torch.randn(5, 6, 4, dtype=torch.float64, generator=draw)
    gain[2:4] = 0  # a group without spread
    left_out = {"rows": torch.tensor([1, 0, 1, 1, 1, 0]), "tokens": torch.rand(6, 4, generator=draw) < 0.6, None: None}
    new.requires_grad_()

    def of(part: slice) -> tuple[Tensor, Tensor]:
        rows = [x[part] for x in (new, old, gain, mask)]
        weight = sampler_correction(old[part], sampled[part], mask[part], "tis", 2.0, 0.5, 5.0)
        losses, _ = group_policy_loss(*rows, kind, 0.2, 0.28, 3.0, correction=weight)
        losses = losses * fresh_tokens(new[part], sampled[part], gain[part], mask[part], 1.0)
        kl, _ = kl_loss(new[part], old[part], reference[part], mask[part], "k3")
        own = left_out[learnt]
        weights, count = token_weights(mask[part], kind, 10, None if own is None else own[part])
        return (weights * (losses + 0.1 * kl)).sum(), count

    total, denominator = of(slice(0, 6))
    (whole,) = torch.autograd.grad(total / denominator, new)
    assert whole[2:4].abs().sum() > 0, "its KL is there"
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, 6), n) for n in range(6)):
        parts = [of(slice(a, b)) for a, b in itertools.pairwise((0, *cuts, 6))]
        count = sum(own for _, own in parts)
        assert count == denominator
        loss = sum(value / count for value, _ in parts)
        torch.testing.assert_close(loss, total / denominator)
        torch.testing.assert_close(torch.autograd.grad(loss, new)[0], whole)


def test_stale_bad_replies_are_left_out() -> None:
    sampled = torch.tensor([[-1.0, -1.0, math.nan], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]])
    moved = torch.tensor([[0.5, 0.9, math.nan], [0.9, 0.1, 0.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])  # means .7 .33 2 2
    gain = torch.tensor([[-1.0, -1.0, math.nan], [-1.0] * 3, [1.0] * 3, [-1.0, 1.0, -1.0]])
    found = fresh_tokens(sampled - moved, sampled, gain, sampled.isfinite(), 0.5)
    assert found.tolist() == [[False] * 3, [True] * 3, [True] * 3, [False, True, False]]
    assert not fresh_tokens(sampled, sampled, gain, torch.zeros(4, 3), 0.5).any()


def test_a_kind_that_does_not_exist_is_named_with_what_was_meant() -> None:
    zeros = torch.zeros(1, 1)
    for call in (
        lambda: token_weights(zeros, "gpso", 10),
        lambda: group_policy_loss(zeros, zeros, zeros, zeros, "gpso", 0.2, 0.2),
    ):
        with pytest.raises(
            UserError, match=r"loss=gpso: no such loss of groups; there are grpo, .* Did you mean gspo\?"
        ):
            call()
    for form in ("k1", "k33"):
        with pytest.raises(UserError, match=f"kl_loss={form}: no such KL loss; there are k2, k3"):
            kl_loss(zeros, zeros, zeros, zeros, form)
    with pytest.raises(ValueError, match=r"advantages \(3,\)"):
        group_policy_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3), MASK, "grpo", 0.2, 0.2)
