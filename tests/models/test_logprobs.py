"""The fused head against the textbook, in value and gradient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tinychat.models.generation.decode import DecodeOptions, choose
from tinychat.models.kernels import head_loss
from tinychat.models.logprobs import IGNORED, head_returns_nll, linear_nll, token_nll
from tinychat.models.vocabulary import WHOLE, Vocabulary
from tinychat.rl.kl import logit_measures


def textbook(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ weight.T / temperature).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none").view_as(targets)


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 7, 16), torch.randn(50, 16)
    targets = torch.randint(50, (3, 7))
    targets[0, :3] = IGNORED
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@pytest.mark.parametrize("chunk_elements", [1 << 27, 50 * 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("for_sum", [True, False])
@pytest.mark.parametrize("weighing", ["sum", "per token"])
def test_values_and_gradients_match_the_textbook(
    case: tuple[Tensor, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    chunk_elements: int,
    temperature: float,
    for_sum: bool,
    weighing: str,
) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", chunk_elements)
    hidden, weight, targets = case
    weights = torch.full((3, 7), 0.3) if weighing == "sum" else torch.rand(3, 7)
    expected = textbook(hidden, weight, targets, temperature)
    wanted = torch.autograd.grad((expected * weights).sum(), (hidden, weight))
    found = linear_nll(hidden, weight, targets, temperature, for_sum)
    gradients = torch.autograd.grad((found * weights).sum(), (hidden, weight))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for gradient, exact in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, exact, atol=1e-5, rtol=1e-4)


def test_nothing_to_predict_is_zero_with_zero_gradient(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = case
    nll = linear_nll(hidden, weight, torch.full_like(targets, IGNORED), 1.0, True)
    nll.sum().backward()
    assert nll.abs().sum() == 0
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "shape",
    [
        GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=32, vocab_size=64, bos_token_id=0, eos_token_id=0),
        LlamaConfig(
            num_hidden_layers=2,
            hidden_size=32,
            num_attention_heads=2,
            intermediate_size=48,
            vocab_size=64,
            tie_word_embeddings=False,
        ),
    ],
    ids=["gpt2, tied", "llama, untied"],
)
def test_a_models_losses_are_transformers_own(shape: GPT2Config | LlamaConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape).eval()
    ids = torch.randint(64, (2, 20))
    expected = model(input_ids=ids, labels=ids)
    expected.loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORED)], 1)
    loss = token_nll(model, ids, targets, for_sum=True).sum() / (targets != IGNORED).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], atol=1e-6, rtol=1e-4)
    assert model(input_ids=ids).logits.shape == (2, 20, 64), "the head is itself again afterwards"


def test_bf16_autocast_stays_near_fp32(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = case
    exact = textbook(hidden, weight, targets, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_nll(hidden, weight, targets, 1.0, True)
    found.sum().backward()
    assert (found - exact).abs().max() < 0.1
    assert weight.grad is not None
    assert weight.grad.dtype is torch.float32


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_label_smoothing_matches_the_textbook(case: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    hidden, weight, targets = case
    logits = (hidden @ weight.T / temperature).flatten(0, 1)
    expected = F.cross_entropy(
        logits, targets.flatten(), ignore_index=IGNORED, reduction="none", label_smoothing=0.1
    ).view_as(targets)
    found = linear_nll(hidden, weight, targets, temperature, for_sum=True, smoothing=0.1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(expected.sum(), (hidden, weight))
    for gradient, exact in zip(torch.autograd.grad(found.sum(), (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(gradient, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("for_sum", [True, False])
def test_a_frozen_head_gets_no_gradient_and_the_same_one_flows_below(
    case: tuple[Tensor, Tensor, Tensor], for_sum: bool
) -> None:
    hidden, weight, targets = case
    (wanted,) = torch.autograd.grad(linear_nll(hidden, weight, targets, 1.0, for_sum).sum(), hidden)
    frozen = weight.detach()
    (found,) = torch.autograd.grad(linear_nll(hidden, frozen, targets, 1.0, for_sum).sum(), hidden)
    assert torch.equal(found, wanted)


VOCABULARY = 40  # of the 50 rows


@pytest.mark.parametrize("for_sum", [True, False])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("chunk_elements", [1 << 27, 50 * 4])
def test_rows_beyond_the_vocabulary_have_no_probability(
    case: tuple[Tensor, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    for_sum: bool,
    exact: bool,
    chunk_elements: int,
) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", chunk_elements)
    monkeypatch.setattr(head_loss, "EXACT_CHUNK_ELEMENTS", chunk_elements)
    hidden, weight, targets = case
    targets = targets.clamp(max=VOCABULARY - 1)
    expected = textbook(hidden, weight[:VOCABULARY], targets, 0.7)
    wanted = torch.autograd.grad(expected.sum(), (hidden, weight))
    found = linear_nll(hidden, weight, targets, 0.7, for_sum, exact=exact, vocabulary=Vocabulary(VOCABULARY))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for gradient, right in zip(torch.autograd.grad(found.sum(), (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(gradient, right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.3])
def test_sampling_and_losses_divide_bf16_logits_by_the_temperature_alike(temperature: float) -> None:
    """A token's log-probability as it is drawn, as it is learnt from and as it is measured, from the same products in
    bf16: logits of some 20 are an eighth apart there, and their quotients must not be rounded once more."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 64), torch.randn(3000, 64) * 0.7
    options = DecodeOptions(1, (), temperature=temperature)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.nn.functional.linear(hidden, weight)
        chosen, recorded = choose(logits, torch.rand(200, dtype=torch.float64), options)
        learnt = -linear_nll(hidden[None], weight, chosen[None], temperature, False, exact=True)[0]
        said = logit_measures(logits, chosen, temperature, logits.clone())
    exact = (logits.double() / temperature).log_softmax(-1).gather(1, chosen[:, None])[:, 0]
    for found in (recorded, learnt, said["logprobs"]):
        assert (found - exact).abs().max() < 2e-3
        assert (found - exact).abs().mean() < 2e-4
    assert torch.equal(learnt, said["logprobs"])
    assert not said["full_kl"].any()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("vocabulary", [WHOLE, Vocabulary(VOCABULARY), Vocabulary(VOCABULARY, (3, 7))])
@pytest.mark.parametrize("chunk_elements", [1 << 24, 50 * 4])
def test_the_entropy_and_its_gradient_match_the_textbook(
    case: tuple[Tensor, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    fused: bool,
    vocabulary: Vocabulary,
    chunk_elements: int,
) -> None:
    monkeypatch.setattr(head_loss, "ENTROPY_CHUNK_ELEMENTS", chunk_elements)
    hidden, weight, targets = case
    targets = torch.where(targets == IGNORED, IGNORED, targets.clamp(max=VOCABULARY - 1))
    targets = torch.where(torch.isin(targets, torch.tensor(vocabulary.holes)), 0, targets)
    head = torch.nn.Linear(16, 50, bias=not fused)
    head.weight = torch.nn.Parameter(weight.detach())
    if not fused:
        torch.nn.init.zeros_(head.bias)
    model: Any = SimpleNamespace(get_output_embeddings=lambda: head)
    with head_returns_nll(model, targets, 0.7, exact=True, vocabulary=vocabulary, entropy=True):
        nll, entropy = head(hidden).unbind(-1)
    places = [i for i in range(vocabulary.size or 50) if i not in vocabulary.holes]
    used, numbers = head.weight[places], torch.tensor([places.index(i) if i in places else IGNORED for i in range(50)])
    logits = (hidden @ used.T) / 0.7
    weights, kept = torch.rand(3, 7), targets != IGNORED
    expected = torch.distributions.Categorical(logits=logits).entropy() * kept
    torch.testing.assert_close(entropy, expected, atol=1e-5, rtol=1e-5)
    moved = torch.where(kept, numbers[targets.clamp(min=0)], IGNORED)
    torch.testing.assert_close(nll, textbook(hidden, used, moved, 0.7), atol=1e-5, rtol=1e-5)
    for one, other in ((nll, textbook(hidden, used, moved, 0.7)), (entropy, expected)):
        found, wanted = (
            torch.autograd.grad((x * weights).sum(), (hidden, head.weight), retain_graph=True) for x in (one, other)
        )
        for gradient, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(gradient, right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_holes_have_no_probability_in_any_type(dtype: torch.dtype) -> None:
    """Ids above 256 are no numbers of bf16."""
    vocabulary, logits = Vocabulary(900, (1, 257, 801)), torch.zeros(2, 1000, dtype=dtype)
    for closed in (vocabulary.of_logits(logits), vocabulary.close(logits[:, :900].clone())):
        p = closed.float().softmax(-1)
        assert (p == 0).nonzero()[:, 1].tolist() == [1, 257, 801] * 2
        assert closed.dtype == dtype


def test_nothing_of_the_vocabulary_is_kept_for_the_entropys_gradient() -> None:
    """(tokens, vocabulary) would be 200 MB here."""
    hidden = torch.randn(1, 1000, 8, requires_grad=True)
    head = torch.nn.Linear(8, 50_000, bias=False)
    targets = torch.randint(50_000, (1, 1000))
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    model: Any = SimpleNamespace(get_output_embeddings=lambda: head)
    watched = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    with watched, head_returns_nll(model, targets, 1.0, exact=True, entropy=True):
        losses = head(hidden)
    assert max(kept) <= head.weight.numel()
    losses[..., 1].sum().backward()
    assert hidden.grad is not None
