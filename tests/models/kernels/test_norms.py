"""The fused RMS norm against transformers' own: values, gradients, types, copies."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tinychat.models.kernels.layers import RMSNorm, use_fused_norms

CPU = torch.device("cpu")


def both(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> list[list[torch.Tensor]]:
    norm = LlamaRMSNorm(x.shape[-1], eps=1e-5)
    norm.weight = torch.nn.Parameter(weight.clone())
    results = []
    for forward in (norm, lambda x: RMSNorm.apply(x, norm.weight, 1e-5, torch.float32)):
        leaf = x.clone().requires_grad_()
        norm.weight.grad = None
        y = forward(leaf)
        y.backward(grad)
        results.append([y.detach(), leaf.grad, norm.weight.grad])
    return results


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 64), (1, 1, 4, 16)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_values_and_gradients_are_those_of_transformers(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(len(shape))
    x, grad = scale * torch.randn(shape), torch.randn(shape)
    theirs, ours = both(x, 1 + 0.3 * torch.randn(shape[-1]), grad)
    for expected, found in zip(theirs, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


def small(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, **heads))
    return Qwen3ForCausalLM(Qwen3Config(**shape, **heads))


@pytest.mark.parametrize(("kind", "norms"), [("llama", 5), ("qwen3", 9)])
def test_a_model_keeps_its_loss_its_weights_and_can_be_copied(kind: str, norms: int) -> None:
    model = small(kind)
    ids = torch.randint(0, 64, (2, 12))
    expected, names = model(input_ids=ids, labels=ids).loss, list(model.state_dict())
    use_fused_norms(model, CPU)
    assert sum("RMSNorm" in type(module).__name__ and "forward" in vars(module) for module in model.modules()) == norms
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    torch.testing.assert_close(twin(input_ids=ids, labels=ids).loss, expected)
    assert list(model.state_dict()) == names


def test_under_autocast_the_result_comes_in_its_type() -> None:
    norm = LlamaRMSNorm(16)
    use_fused_norms(norm, CPU)
    x = torch.randn(4, 16)
    plain = norm(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = norm(x)
    assert (plain.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(rounded, plain.bfloat16())


def test_other_devices_keep_their_own() -> None:
    model = small("llama")
    use_fused_norms(model, torch.device("cuda"))
    assert not any("forward" in vars(module) for module in model.modules())
