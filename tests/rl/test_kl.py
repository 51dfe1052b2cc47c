"""KL estimators against the exact KL, by enumerating every sequence of a small vocabulary."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.models.kernels.head_loss import entropy_from_logits
from tinychat.rl.kl import kl_estimate, logit_measures, masked_sum, same_shape

V, T = 8, 3


def kl_and_entropy(logits: Tensor, ref_logits: Tensor | None, *more: float) -> tuple[Tensor, Tensor]:
    temperature, elements = more or (1.0, 1000)
    anything = torch.zeros(len(logits), dtype=torch.int64)
    found = logit_measures(logits, anything, temperature, ref_logits, elements=int(elements))
    return found.get("full_kl", torch.zeros(len(logits))), found["entropy"]


SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=T)))  # (512, 3)


def random_model(seed: int, spread: float) -> Tensor:
    """Logits (V, V, V, V): [first, second, t] of the token at position t after that prefix; see prefix_logits."""
    return spread * torch.randn(T, V, V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prefix_logits(model: Tensor) -> Tensor:
    """(512, 3, V): what the model says before each token of each sequence; it depends on all tokens before."""
    first, second = SEQUENCES[:, 0], SEQUENCES[:, 1]
    return torch.stack([model[0, 0, 0].expand(len(first), V), model[1, first, 0], model[2, first, second]], 1)


def sequence_logprobs(model: Tensor) -> Tensor:
    """(512, 3) fp64."""
    return prefix_logits(model).log_softmax(-1).gather(-1, SEQUENCES[..., None])[..., 0]


def expectation(policy: Tensor, reference: Tensor, estimator: str) -> tuple[float, float]:
    """Mean over ALL sequences of the estimator summed over tokens; and the exact KL of the sequences."""
    logp, logq = sequence_logprobs(policy), sequence_logprobs(reference)
    weight = logp.sum(1).exp()
    assert weight.sum().item() == pytest.approx(1.0, abs=1e-12)
    exact = (weight * (logp.sum(1) - logq.sum(1))).sum().item()
    return (weight * kl_estimate(logp, logq, estimator).double().sum(1)).sum().item(), exact


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("seed", range(3))
def test_k1_and_k3_are_unbiased(estimator: str, seed: int) -> None:
    mean, exact = expectation(random_model(seed, 0.7), random_model(seed + 100, 0.7), estimator)
    assert exact > 0.5
    assert mean == pytest.approx(exact, rel=1e-5)


def test_k2_is_right_to_second_order() -> None:
    policy, direction = random_model(0, 0.7), random_model(1, 1.0)

    def bias(step: float) -> tuple[float, float]:
        mean, exact = expectation(policy, policy + step * direction, "k2")
        return abs(mean - exact), exact

    far, far_exact = bias(0.4)
    near, near_exact = bias(0.1)
    assert far > 0.01 * far_exact, "k2 is biased"
    assert near_exact == pytest.approx(far_exact / 16, rel=0.2), "the KL itself is of second order"
    assert near < far / 40, "the bias is of third: 4³ = 64 times smaller at a quarter of the distance"


def test_the_exact_kl_per_token_adds_up_to_that_of_the_sequence() -> None:
    policy, reference = random_model(0, 1.0), random_model(1, 1.0)
    own, other = prefix_logits(policy), prefix_logits(reference)
    kl, _ = kl_and_entropy(own.flatten(0, 1), other.flatten(0, 1))
    per_token = kl.double().view(own.shape[:2])
    weight = sequence_logprobs(policy).sum(1).exp()
    _, exact = expectation(policy, reference, "k1")
    assert (weight * per_token.sum(1)).sum().item() == pytest.approx(exact, rel=1e-5)


def test_entropy_per_token_adds_up_to_that_of_the_sequence() -> None:
    policy = random_model(0, 1.0)
    logp = sequence_logprobs(policy).sum(1)
    weight = logp.exp()
    per_token = entropy_from_logits(prefix_logits(policy)).double().sum(1)
    assert (weight * per_token).sum().item() == pytest.approx(-(weight * logp).sum().item(), rel=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradients_are_what_the_docstring_says(estimator: str) -> None:
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.5, 0.2, 0.4, 1.0], dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (found,) = torch.autograd.grad((logp.exp().detach() * kl_estimate(logp, reference, estimator)).sum(), logits)
    logp = logits.log_softmax(0)
    exact = torch.zeros_like(logits)
    if estimator != "k1":
        forward, backward = (logp.exp() * (logp - reference)).sum(), (reference.exp() * (reference - logp)).sum()
        (exact,) = torch.autograd.grad(forward if estimator == "k2" else backward, logits)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-5)


def test_values_by_hand() -> None:
    logprobs, ref = torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, 0.0])  # d = 0.5, -1
    assert kl_estimate(logprobs, ref, "k1").tolist() == [0.5, -1.0]
    assert kl_estimate(logprobs, ref, "k2").tolist() == [0.125, 0.5]
    expected = [math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1]
    assert kl_estimate(logprobs, ref, "k3").tolist() == pytest.approx(expected, rel=1e-6)


def test_k3_is_exact_near_zero_and_finite_far_away() -> None:
    d = torch.tensor([1e-4, -1e-4])
    assert kl_estimate(d, torch.zeros(2), "k3").tolist() == pytest.approx([5e-9, 5e-9], rel=0.01)
    far = kl_estimate(torch.tensor([-500.0, 500.0]), torch.zeros(2), "k3")
    assert far.tolist() == pytest.approx([math.exp(20) - 1 - 20, math.exp(-20) - 1 + 20], rel=1e-6)


def test_half_precision_is_computed_in_fp32() -> None:
    logprobs, ref = torch.tensor([-8.0], dtype=torch.bfloat16), torch.tensor([-0.0078125], dtype=torch.bfloat16)
    found = kl_estimate(logprobs, ref, "k1")
    assert found.dtype is torch.float32
    assert found.item() == -7.9921875, "in bf16 the difference would be -8"
    logits = torch.randn(5, V).bfloat16()
    in_fp32 = kl_and_entropy(logits.float(), (2 * logits).float())
    assert all(map(torch.equal, kl_and_entropy(logits, 2 * logits), in_fp32))
    assert torch.equal(entropy_from_logits(logits), entropy_from_logits(logits.float()))


def test_an_unknown_estimator_is_named() -> None:
    with pytest.raises(UserError, match="kl_estimator=k4: no such estimator; there are k1, k2, k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_kl_and_entropy_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    kl, entropy = kl_and_entropy(torch.stack([p, p]).log() + 3, torch.stack([q, p]).log())
    assert kl.tolist() == pytest.approx([0.25 * math.log(2), 0], rel=1e-6, abs=1e-6)
    assert entropy.tolist() == pytest.approx([1.5 * math.log(2)] * 2, rel=1e-6)
    assert entropy_from_logits(p.log() + 3).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_excluded_tokens_have_probability_zero() -> None:
    excluded = torch.tensor([0.0, 0.0, -math.inf]).requires_grad_()
    entropy = entropy_from_logits(excluded)
    assert entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    entropy.backward()
    assert excluded.grad is not None
    assert excluded.grad.isfinite().all()


@pytest.mark.parametrize("elements", [1, 4 * V, 1000 * V])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_parts_equal_the_whole(elements: int, temperature: float) -> None:
    torch.manual_seed(0)
    logits, ref_logits = torch.randn(9, V).requires_grad_(), torch.randn(9, V)
    kl, entropy = kl_and_entropy(logits, ref_logits, temperature, elements)
    logp, logq = ((x.detach() / temperature).log_softmax(-1) for x in (logits, ref_logits))
    torch.testing.assert_close(kl, (logp.exp() * (logp - logq)).sum(-1))
    torch.testing.assert_close(entropy, entropy_from_logits(logits / temperature).detach())
    assert not kl.requires_grad
    none, alone = kl_and_entropy(logits, None, temperature, elements)
    assert not none.any() and torch.equal(alone, entropy)


def test_masked_sum_ignores_what_is_masked() -> None:
    x = torch.tensor([[1.0, math.nan], [2.5, -math.inf]])
    assert masked_sum(x, torch.tensor([[1, 0], [1, 0]])).item() == 3.5
    assert masked_sum(x, torch.tensor([[True, False], [False, False]])).item() == 1.0


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a \(2, 3\), b \(2, 1\)"):
        same_shape(a=torch.zeros(2, 3), b=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="shapes must be equal"):
        kl_estimate(torch.zeros(2, 3), torch.zeros(3), "k1")
