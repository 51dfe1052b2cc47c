"""Gradients added in place are autograd's, and memory that is kept is lent to one user at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tinychat.engine.base import PlainEngine
from tinychat.models.kernels import in_place
from tinychat.models.kernels import in_place as scratch_module
from tinychat.models.kernels.in_place import GradientsInPlace, Scratch, adds_in_place
from tinychat.models.logprobs import IGNORED, OutputHead, token_nll
from tinychat.runtime.world import World

CPU = torch.device("cpu")
SHAPES: dict[str, Callable[[], object]] = {
    "tied": lambda: GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=32, vocab_size=64, attn_pdrop=0.0),
    "apart, with padding": lambda: LlamaConfig(
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        vocab_size=64,
        pad_token_id=3,
        tie_word_embeddings=False,
    ),
}


def build(shape: str) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES[shape]())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    found = []
    for _ in range(3):
        ids = torch.randint(64, (2, 9), generator=random)
        ids[0, :4] = 3  # padding, and one row of the embedding many times
        found.append((ids[:, :-1], ids[:, 1:].masked_fill(ids[:, 1:] == 3, IGNORED)))
    return found


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "LARGE", 1)
    monkeypatch.setattr(scratch_module, "LARGE", 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("for_sum", [True, False])
@pytest.mark.parametrize("chunk_elements", [1 << 27, 64 * 3])
def test_gradients_are_those_of_autograd(
    everything_is_large: None, monkeypatch: pytest.MonkeyPatch, shape: str, for_sum: bool, chunk_elements: int
) -> None:
    monkeypatch.setattr("tinychat.models.kernels.head_loss.CHUNK_ELEMENTS", chunk_elements)
    expected, model = build(shape), build(shape)
    adding = GradientsInPlace(model)
    for ids, targets in batches():
        weights = 0.3 if for_sum else torch.rand(targets.shape, generator=torch.Generator().manual_seed(5))
        (token_nll(expected, ids, targets, for_sum=for_sum) * weights).sum().backward()
        with adding.active():
            (token_nll(model, ids, targets, for_sum=for_sum) * weights).sum().backward()
    for (name, own), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text)
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_outside_autograd_has_its_way_again(everything_is_large: None) -> None:
    model = build("tied")
    weight, (ids, targets) = model.get_input_embeddings().weight, batches()[0]
    with GradientsInPlace(model).active():
        assert adds_in_place(weight)
        token_nll(model, ids, targets).sum().backward()
    first = weight.grad.clone()
    assert not adds_in_place(weight)
    assert "forward" not in vars(model.get_input_embeddings())
    (found,) = torch.autograd.grad(token_nll(model, ids, targets).sum(), weight)
    torch.testing.assert_close(found, first, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weight.grad, first, atol=0, rtol=0)


def test_what_does_not_fit_is_left_alone(everything_is_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = build("tied").requires_grad_(False)
    with GradientsInPlace(frozen).active():
        assert not adds_in_place(frozen.get_input_embeddings().weight)
    sparse = nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Embedding(8, 4, max_norm=1.0))
    with GradientsInPlace(sparse).active():
        assert not any(adds_in_place(module.weight) for module in sparse)
    monkeypatch.setattr(in_place, "LARGE", 1 << 20)
    small = build("tied")
    with GradientsInPlace(small).active():
        assert not adds_in_place(small.get_input_embeddings().weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_trains_alike_with_and_without(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    ends = []
    for large in (1 << 30, 1):
        monkeypatch.setattr(in_place, "LARGE", large)
        model = build("tied")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = PlainEngine(model, optimizer, World(rank=0, local_rank=0, size=1, device=CPU), dtype, 1.0)
        for _ in range(3):
            parts = [{"input_ids": ids, "targets": targets} for ids, targets in batches()]
            engine.train_step(parts, lambda model, batch: token_nll(model, **batch).sum() / 40)
        weight = model.get_input_embeddings().weight
        assert (weight.grad is None) == (large > 1)
        assert weight.grad is None or weight.grad.abs().sum() == 0, "emptied, and kept"
        ends.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 if dtype is torch.float32 else 2e-3, rtol=1e-5)


def test_the_copy_of_a_weight_lasts_one_step(everything_is_large: None) -> None:
    model, (ids, targets) = build("tied"), batches()[0]
    adding, head = GradientsInPlace(model), model.get_output_embeddings()
    found = []
    for _ in range(2):
        with adding.active(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found.append(token_nll(model, ids, targets))
        with torch.no_grad():
            head.weight.mul_(2.0)
    assert not torch.allclose(*found)


def test_the_head_for_many_calls_is_the_head() -> None:
    model, hidden = build("tied"), torch.randn(5, 16)
    assert torch.equal(OutputHead(model).logits(hidden), model.get_output_embeddings()(hidden))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(OutputHead(model).logits(hidden), model.get_output_embeddings()(hidden))


def test_scratch_lends_memory_again_only_once_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_module, "LARGE", 100)
    monkeypatch.setattr(scratch_module, "ROUNDING", 64)
    scratch = Scratch()
    first, second = scratch.take((10, 5), torch.float32, CPU), scratch.take((10, 5), torch.float32, CPU)
    assert first.shape == (10, 5) and first.data_ptr() != second.data_ptr()
    place = first.data_ptr()
    scratch.give(first)
    again = scratch.take((5, 20), torch.bfloat16, CPU)  # 200 bytes too
    assert again.data_ptr() == place and again.shape == (5, 20) and again.dtype is torch.bfloat16
    scratch.give(again)
    larger = scratch.take((100,), torch.float32, CPU)
    assert larger.data_ptr() != place
    scratch.give(larger)
    assert len(scratch._free) == 1, "what was too small went"
    small = scratch.take((2,), torch.float32, CPU)
    scratch.give(small)
    assert len(scratch._free) == 1, "small memory is the C library's"
