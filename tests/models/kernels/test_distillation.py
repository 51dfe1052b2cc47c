"""Learning from a teacher's distributions against the textbook: values and gradients, however tokens are chunked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tinychat.models.kernels import distillation
from tinychat.models.kernels.distillation import LinearDistillation, Mixture
from tinychat.models.kernels.in_place import GradientsInPlace
from tinychat.models.logprobs import IGNORED, called, distilled, inner_model, last_hidden, token_nll
from tinychat.models.vocabulary import CLOSED, WHOLE, Vocabulary

KINDS = ("forward", "reverse", "jsd")
N, D, V = 9, 6, 11


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) of rows of log-probabilities."""
    return F.kl_div(b, a, reduction="none", log_target=True).sum(-1)


def textbook(z: Tensor, teacher: Tensor, targets: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) loss, cross-entropy and divergence by torch's own functions."""
    T, a = mixture.temperature, mixture.share
    p, q = (z / T).log_softmax(-1), (teacher / T).log_softmax(-1)
    match mixture.divergence:
        case "forward":
            far = kl(q, p)
        case "reverse":
            far = kl(p, q)
        case _:
            m = (mixture.beta * q.exp() + (1 - mixture.beta) * p.exp()).log()
            far = mixture.beta * kl(q, m) + (1 - mixture.beta) * kl(p, m)
    entropy = F.cross_entropy(z, targets, reduction="none")
    return (1 - a) * entropy + a * T**2 * far, entropy, far


@pytest.fixture
def case() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "hidden": torch.randn(N, D, dtype=torch.float64, requires_grad=True),
        "weight": torch.randn(V, D, dtype=torch.float64, requires_grad=True),
        "targets": torch.randint(V, (N,)),
        "weights": torch.rand(N, dtype=torch.float64),
        "teacher": 3 * torch.randn(N, V, dtype=torch.float64),
    }


def fused(case: dict[str, Tensor], mixture: Mixture, words: Vocabulary = WHOLE) -> Tensor:
    given = (case[name] for name in ("hidden", "weight", "targets", "weights"))
    teacher = case["teacher"][:, : words.size]
    return LinearDistillation.apply(*given, lambda part: words.close(teacher[part].clone()), mixture, words)


@pytest.mark.parametrize(("chunk", "together"), [(1 << 25, 1 << 19), (V * 4, V * 3), (1, 1)])
@pytest.mark.parametrize(("share", "temperature"), [(0.3, 1.0), (0.5, 2.0), (1.0, 1.0), (1.0, 0.7), (0.0, 1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_autograd(
    case: dict[str, Tensor],
    kind: str,
    share: float,
    temperature: float,
    chunk: int,
    together: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distillation, "EXACT_CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(distillation, "elements_at_once", lambda _: together)
    mixture = Mixture(kind, share, temperature, beta=0.2)
    leaves = (case["hidden"], case["weight"])
    loss, *others = textbook(leaves[0] @ leaves[1].T, case["teacher"], case["targets"], mixture)
    wanted = torch.autograd.grad((case["weights"] * loss).sum() * 1.7, leaves)
    found = fused(case, mixture)
    torch.testing.assert_close(found, torch.stack([(case["weights"] * loss).sum(), *(x.sum() for x in others)]))
    for gradient, exact in zip(torch.autograd.grad(found[0] * 1.7, leaves), wanted, strict=True):
        torch.testing.assert_close(gradient, exact, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_token_has_no_part_in_it(case: dict[str, Tensor], kind: str) -> None:
    words = Vocabulary(9, (2, 5))
    case["targets"] = torch.tensor([0, 1, 3, 4, 6, 7, 8, 0, 1])
    open_ids = [0, 1, 3, 4, 6, 7, 8]
    leaves, mixture = (case["hidden"], case["weight"]), Mixture(kind, 0.5, 2.0, 0.5)
    z = (leaves[0] @ leaves[1].T)[:, open_ids]
    among = torch.tensor([open_ids.index(int(target)) for target in case["targets"]])
    loss, *_ = textbook(z, case["teacher"][:, open_ids], among, mixture)
    wanted = torch.autograd.grad((case["weights"] * loss).sum(), leaves)
    found = fused(case, mixture, words)
    assert CLOSED < -1e4 and bool(found.isfinite().all())
    torch.testing.assert_close(found[0], (case["weights"] * loss).sum())
    for gradient, exact in zip(torch.autograd.grad(found[0], leaves), wanted, strict=True):
        torch.testing.assert_close(gradient, exact, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_zero_and_pulls_nowhere_only_from_the_teacher_itself(
    case: dict[str, Tensor], kind: str
) -> None:
    case["teacher"] = (case["hidden"] @ case["weight"].T).detach()
    found = fused(case, Mixture(kind, 1.0, 1.5, 0.3))
    assert found[2].item() == pytest.approx(0, abs=1e-12)
    assert float(torch.autograd.grad(found[0], case["hidden"])[0].abs().max()) < 1e-12
    case["teacher"] = case["teacher"] + torch.randn(N, V)
    assert fused(case, Mixture(kind, 1.0, 1.5, 0.3))[2].item() > 0.01


@pytest.mark.parametrize(("beta", "limit"), [(1e-6, "forward"), (1 - 1e-6, "reverse")])
def test_jensen_shannon_ends_in_the_two_others(case: dict[str, Tensor], beta: float, limit: str) -> None:
    between = fused(case, Mixture("jsd", 1.0, 1.0, beta))[2] / min(beta, 1 - beta)
    torch.testing.assert_close(between, fused(case, Mixture(limit, 1.0, 1.0))[2], rtol=0.01, atol=0)


def test_without_tokens_it_is_zero_with_zero_gradient(case: dict[str, Tensor]) -> None:
    case |= {name: case[name][:0] for name in ("hidden", "targets", "weights", "teacher")}
    found = fused(case, Mixture("forward", 0.5, 1.0))
    assert found.tolist() == [0, 0, 0]
    assert not torch.autograd.grad(found[0], case["weight"])[0].any()


# --- models


def small(seed: int, width: int = 16, tie: bool = True) -> Any:
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=40,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tie,
        initializer_range=0.3,
        max_position_embeddings=32,
    )
    return AutoModelForCausalLM.from_config(shape).eval()


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(40, (3, 12))
    targets = torch.randint(40, (3, 12))
    targets[torch.rand(3, 12) < 0.5] = IGNORED
    segments = torch.tensor([[1] * 7 + [2] * 5, [1] * 12, [1] * 3 + [2] * 3 + [3] * 4 + [0] * 2])
    targets[segments == 0] = IGNORED
    positions = torch.cat([torch.arange(n) for n in (7, 5, 12, 3, 3, 4, 2)]).view(3, 12)
    return {"input_ids": ids, "targets": targets, "segments": segments, "position_ids": positions}


def taught(student: Any, teacher: Any, given: dict[str, Tensor], mixture: Mixture) -> Tensor:
    with torch.no_grad(), last_hidden(teacher) as seen:
        called(teacher, given["input_ids"], given["position_ids"], None, given["segments"])
    weights = torch.linspace(0.5, 1.5, 36).view(3, 12)
    head: Callable[[Tensor], Tensor] = inner_model(teacher).get_output_embeddings()
    return distilled(student, weights=weights, taught=seen[0], teacher_logits=head, mixture=mixture, **given)


def of_logits(student: Any, teacher: Any, given: dict[str, Tensor], mixture: Mixture) -> Tensor:
    """The same with whole logits and autograd."""
    kept = given["targets"] != IGNORED
    z, logits = (
        called(model, given["input_ids"], given["position_ids"], None, given["segments"]).logits[kept]
        for model in (student, teacher)
    )
    loss, *others = textbook(z, logits.detach(), given["targets"][kept], mixture)
    weights = torch.linspace(0.5, 1.5, 36).view(3, 12)[kept]
    return torch.stack([(weights * loss).sum(), *(x.sum().detach() for x in others)])


@pytest.mark.parametrize("head", ["linear", "linear with a bias", "gradients in place"])
def test_a_model_learns_from_a_larger_one_as_whole_logits_say(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = small(2), small(3, width=24)
    if "bias" in head:
        own = student.get_output_embeddings()
        own.bias = torch.nn.Parameter(torch.randn(40))
    given, mixture = batch(), Mixture("jsd", 0.6, 1.5, 0.4)
    of_logits(student, teacher, given, mixture)[0].backward()
    wanted = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    if "place" in head:
        monkeypatch.setattr("tinychat.models.kernels.in_place.LARGE", 1)
        with GradientsInPlace(student).active():
            found = taught(student, teacher, given, mixture)
            found[0].backward()
    else:
        found = taught(student, teacher, given, mixture)
        found[0].backward()
    torch.testing.assert_close(found.detach(), of_logits(student, teacher, given, mixture).detach())
    for name, p in student.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], atol=1e-4, rtol=1e-4)
    assert all(p.grad is None for p in teacher.parameters())


def test_in_half_precision_it_stays_near() -> None:
    student, teacher, given = small(2), small(3, width=24), batch()
    exact = taught(student, teacher, given, Mixture("reverse", 1.0, 1.0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = taught(student, teacher, given, Mixture("reverse", 1.0, 1.0))
    torch.testing.assert_close(rough, exact, rtol=0.03, atol=0)


def test_its_cross_entropy_is_that_of_the_plain_loss() -> None:
    student, given = small(2), batch()
    found = taught(student, small(3), given, Mixture("forward", 0.5, 2.0))
    torch.testing.assert_close(found[1], token_nll(student, **given).sum().detach())
