"""The losses on pairs of replies: every branch by hand, gradients against what they should be."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.rl.preference_losses import (
    KINDS,
    WITHOUT_REFERENCE,
    bradley_terry_loss,
    pointwise_loss,
    preference_loss,
)

LENGTHS = torch.tensor([[2, 4], [3, 1]])
# log-ratios: chosen (1, -2), rejected (-1, 1), so h = (2, -3); by length chosen (1/2, -2/3), rejected (-1/4, 1)
LOGPROBS = torch.tensor([[-5.0, -8.0], [-6.0, -6.0]])
REFERENCE = torch.tensor([[-6.0, -7.0], [-4.0, -7.0]])


def softplus(x: float) -> float:
    """-log σ(-x)"""
    return math.log(1 + math.exp(x))


def found(kind: str, beta: float = 0.5, **options: Any) -> tuple[list[float], dict[str, float]]:
    reference = None if kind in WITHOUT_REFERENCE else REFERENCE
    losses, sums = preference_loss(kind, LOGPROBS, LENGTHS, reference, beta, **options)
    return losses.tolist(), {name: value.item() for name, value in sums.items()}


def log_odds(logprob: float, length: int) -> float:
    p = math.exp(logprob / length)
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("sigmoid", {}, [softplus(-1), softplus(1.5)]),
        (
            "sigmoid",
            {"label_smoothing": 0.25},
            [0.75 * softplus(-1) + 0.25 * softplus(1), 0.75 * softplus(1.5) + 0.25 * softplus(-1.5)],
        ),
        ("sigmoid", {"by_length": True, "beta": 2.0}, [softplus(-1.5), softplus(10 / 3)]),
        ("hinge", {}, [0.0, 2.5]),
        ("hinge", {"by_length": True}, [1 - 0.375, 1 + 5 / 6]),
        ("ipo", {}, [(0.75 - 1) ** 2, (-5 / 3 - 1) ** 2]),
        ("ipo", {"by_length": True}, [(0.75 - 1) ** 2, (-5 / 3 - 1) ** 2]),
        ("rpo", {}, [softplus(-1) + 2.5, softplus(1.5) + 2]),
        ("rpo", {"rpo_weight": 0.1}, [softplus(-1) + 0.25, softplus(1.5) + 0.2]),
        (
            "simpo",
            {"beta": 2.0, "target_margin": 0.5},
            [softplus(-2 * (-2.5 + 2) + 0.5), softplus(-2 * (-2 + 6) + 0.5)],
        ),
        (
            "orpo",
            {},
            [
                2.5 + 0.5 * softplus(log_odds(-8, 4) - log_odds(-5, 2)),
                2 + 0.5 * softplus(log_odds(-6, 1) - log_odds(-6, 3)),
            ],
        ),
    ],
)
def test_every_loss_by_hand(kind: str, options: dict[str, Any], expected: list[float]) -> None:
    losses, _ = found(kind, **options)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_the_sums_are_those_of_the_rewards() -> None:
    _, sums = found("sigmoid")
    assert sums == {
        "pairs": 2,
        "correct": 1,
        "margin": -0.5,
        "chosen_reward": -0.5,
        "rejected_reward": 0,
        "chosen_logprobs": -11,
        "rejected_logprobs": -14,
    }
    _, sums = found("simpo", beta=2.0)
    assert [sums[name] for name in ("correct", "chosen_reward", "rejected_reward")] == pytest.approx([1, -9, -16])
    _, whole = found("ipo")
    parts = [preference_loss("ipo", LOGPROBS[i], LENGTHS[i], REFERENCE[i], 0.5)[1] for i in (slice(1), slice(1, 2))]
    for name, value in whole.items():
        assert sum(part[name].item() for part in parts) == pytest.approx(value), name


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "rpo"])
def test_where_policy_and_reference_agree_nothing_is_told_apart(kind: str) -> None:
    losses, sums = preference_loss(kind, LOGPROBS, LENGTHS, LOGPROBS, 0.1, rpo_weight=0.0)
    expected = {"sigmoid": math.log(2), "rpo": math.log(2), "hinge": 1.0, "ipo": 25.0}[kind]
    assert losses.tolist() == pytest.approx([expected] * 2, rel=1e-6)
    assert (sums["correct"].item(), sums["margin"].item()) == (1, 0)


def test_the_gradient_of_dpo_raises_the_chosen_and_lowers_the_rejected() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    losses, _ = preference_loss("sigmoid", logprobs, LENGTHS, LOGPROBS, 0.1)
    (slope,) = torch.autograd.grad(losses.sum(), logprobs)
    assert slope.tolist() == [pytest.approx([-0.05, 0.05])] * 2  # β · σ(0)


def test_a_reply_that_is_certain_has_finite_odds() -> None:
    logprobs = torch.tensor([[0.0, -1.0], [-1.0, 0.0]], requires_grad=True)
    losses, _ = preference_loss("orpo", logprobs, torch.ones(2, 2), None, 0.1)
    (slope,) = torch.autograd.grad(losses.sum(), logprobs)
    assert losses.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sigmoud", {}, "loss=sigmoud: no such loss .* rpo, simpo, orpo. Did you mean sigmoid?"),
        ("hinge", {"ref_logprobs": None}, "loss=hinge compares with a reference, and there is none; simpo and orpo"),
        ("sigmoid", {"beta": 0.0}, r"beta=0\.0"),
        ("sigmoid", {"label_smoothing": 0.5}, r"label_smoothing=0\.5"),
        ("sigmoid", {"label_smoothing": -0.1}, r"label_smoothing=-0\.1"),
        ("ipo", {"label_smoothing": 0.1}, "loss=ipo has none; sigmoid and rpo do"),
        ("rpo", {"rpo_weight": -1.0}, r"rpo_weight=-1\.0"),
    ],
)
def test_settings_that_cannot_work_are_named(kind: str, options: dict[str, Any], message: str) -> None:
    given = {"ref_logprobs": REFERENCE, "beta": 0.1} | options
    with pytest.raises(UserError, match=message):
        preference_loss(kind, LOGPROBS, LENGTHS, **given)


# --- everything enumerated: six tokens, replies of up to three

TOKENS, MOST, END = 6, 3, 5


def all_replies() -> list[tuple[int, ...]]:
    """Every reply that ends with its first end token, or after MOST tokens."""
    whole = itertools.product(range(TOKENS), repeat=MOST)
    return sorted({reply[: reply.index(END) + 1] if END in reply else reply for reply in whole})


REPLIES = all_replies()
SIZES = torch.tensor([len(reply) for reply in REPLIES])


def table(seed: int) -> Tensor:
    """The next token's logits after each beginning: (beginnings, TOKENS), fp64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1 + TOKENS + TOKENS**2, TOKENS, dtype=torch.float64, generator=generator)


def reply_logprobs(logits: Tensor) -> Tensor:
    """Of REPLIES under a table."""
    steps = logits.log_softmax(-1)
    places = {begin: row for row, begin in enumerate([(), *((a,) for a in range(TOKENS)), *PAIRS_OF_TOKENS])}
    return torch.stack([sum(steps[places[reply[:i]], reply[i]] for i in range(len(reply))) for reply in REPLIES])


PAIRS_OF_TOKENS = list(itertools.product(range(TOKENS), repeat=2))


def all_pairs(x: Tensor) -> Tensor:
    """(R,) -> (R², 2): every reply as the chosen one, beside every other as the rejected."""
    return torch.stack([x.repeat_interleave(len(x)), x.repeat(len(x))], 1)


def test_the_replies_are_all_there_are() -> None:
    assert len(REPLIES) == 1 + 5 + 25 * 6
    assert reply_logprobs(table(0)).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_expected_loss(kind: str, by_length: bool) -> None:
    """Pairs drawn from the reference, labels from a Bradley-Terry model: the gradient of the mean of preference_loss
    against the derivative of the objective as it is defined, one log-probability at a time."""
    beta, smoothing, weight, margin = 0.7, 0.1 if kind == "sigmoid" else 0.0, 0.3, 0.2
    reference, scores = reply_logprobs(table(1)), 2 * table(2).flatten()[: len(REPLIES)]
    drawn = reference.exp()
    chance = torch.outer(drawn, drawn) * torch.sigmoid(scores[:, None] - scores[None])  # of (chosen, rejected)
    logits = table(3).requires_grad_()
    own = reply_logprobs(logits)
    given = None if kind in WITHOUT_REFERENCE else all_pairs(reference)
    losses, _ = preference_loss(
        kind, all_pairs(own), all_pairs(SIZES), given, beta, smoothing, weight, margin, by_length
    )
    (found,) = torch.autograd.grad((chance.flatten() * losses).sum(), logits, retain_graph=True)

    # By hand: the slope of each pair's loss along its two log-probabilities, then by the chain rule.
    divided = SIZES if by_length or kind in ("ipo", "simpo", "orpo") else torch.ones_like(SIZES)
    gain = (own.detach() - (0 if kind in WITHOUT_REFERENCE else reference)) / divided
    h = gain[:, None] - gain[None]
    along = {
        "sigmoid": lambda: (
            -(1 - smoothing) * beta * torch.sigmoid(-beta * h) + smoothing * beta * torch.sigmoid(beta * h)
        ),
        "rpo": lambda: -beta * torch.sigmoid(-beta * h),
        "hinge": lambda: torch.where(beta * h < 1, -beta, 0.0),
        "ipo": lambda: 2 * (h - 1 / (2 * beta)),
        "simpo": lambda: -beta * torch.sigmoid(margin - beta * h),
    }
    if kind == "orpo":  # d log odds / d log p = 1 / (1 - p)
        p = gain.exp()
        odds = (p / (1 - p)).log()
        pull = -beta * torch.sigmoid(odds[None] - odds[:, None])
        up, down = pull / (1 - p)[:, None], pull / (1 - p)[None]
    else:
        up = down = along[kind]()
    slope = (chance * up).sum(1) / divided - (chance * down).sum(0) / divided
    slope -= {"rpo": weight, "orpo": 1.0}.get(kind, 0.0) * chance.sum(1) / SIZES
    (expected,) = torch.autograd.grad((slope * own).sum(), logits)
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max().item() < 1e-6


def test_the_policy_that_dpo_is_after_leaves_no_gradient() -> None:
    """Rafailov et al. 2023, eq. 4: reference · exp(reward / β), normalised, minimises the expected loss where labels
    follow a Bradley-Terry model of the reward."""
    beta, reference, scores = 0.7, reply_logprobs(table(1)), table(2).flatten()[: len(REPLIES)]
    best = (reference + scores / beta).log_softmax(0).requires_grad_()
    drawn = reference.exp()
    chance = torch.outer(drawn, drawn) * torch.sigmoid(scores[:, None] - scores[None])
    losses, _ = preference_loss("sigmoid", all_pairs(best), all_pairs(SIZES), all_pairs(reference), beta)
    (found,) = torch.autograd.grad((chance.flatten() * losses).sum(), best)
    assert found.abs().max().item() < 1e-12


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
        preference_loss("sigmoid", new[None].repeat(1, 2), torch.ones(1, 2), old[None].repeat(1, 2), 0.1)[0],
        bradley_terry_loss(new, old)[0],
        pointwise_loss(new, torch.ones(1))[0],
    ):
        assert result.dtype is torch.float32
