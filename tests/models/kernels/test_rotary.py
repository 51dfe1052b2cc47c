"""The fused queries and keys against transformers' own: losses and gradients, cached generation, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from tinychat.models.kernels.attention import use_blocked_attention
from tinychat.models.kernels.layers import rotate, use_fused_rotary

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.0}


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, attn_implementation="sdpa"))
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, **HEADS, attn_implementation="sdpa"))


@pytest.mark.parametrize("normed", [True, False])
def test_one_head_after_another(normed: bool) -> None:
    torch.manual_seed(1)
    norm = LlamaRMSNorm(8, eps=1e-5) if normed else None
    if norm is not None:
        norm.weight.data.add_(0.3 * torch.randn(8))
    x, grad = torch.randn(2, 5, 3, 8), torch.randn(2, 3, 5, 8)
    angles = torch.randn(2, 5, 4).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    results = []
    for ours in (False, True):
        leaf = x.clone().requires_grad_()
        if ours:
            y = rotate(leaf, cos, sin, norm)
        else:
            y = apply_rotary_pos_emb(*[(norm(leaf) if norm else leaf).transpose(1, 2)] * 2, cos, sin)[0]
        if norm is not None:
            norm.weight.grad = None
        y.backward(grad)
        results.append([y.detach(), leaf.grad, norm.weight.grad if norm else torch.zeros(1)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_losses_and_gradients_are_those_of_transformers(kind: str, blocked: bool, padded: bool) -> None:
    plain = model_of(kind)
    fused = copy.deepcopy(plain)
    use_fused_rotary(fused, CPU)
    if blocked:
        use_blocked_attention(fused, CPU)
    ids = torch.randint(0, 64, (2, 12))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    losses = []
    for model in (plain, fused):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.where(mask.bool(), -100), use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0])
    for (name, expected), found in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_generation_with_a_cache_and_copies_work_as_before(kind: str) -> None:
    model = model_of(kind).eval()
    ids = torch.randint(0, 64, (1, 6))
    wanted = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    use_fused_rotary(model, CPU)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), wanted)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        for weight in model.parameters():
            weight.zero_()
        torch.testing.assert_close(twin(ids, use_cache=False).logits, expected)


def test_other_devices_keep_their_own() -> None:
    model = model_of("qwen3")
    use_fused_rotary(model, torch.device("cuda"))
    assert not any("forward" in vars(module) for module in model.modules())
