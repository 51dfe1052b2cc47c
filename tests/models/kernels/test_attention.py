"""Attention in blocks against torch's own, in value and gradient; packed rows against rows of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tinychat.models.kernels.attention import (
    BlockedAttention,
    plan_blocks,
    use_blocked_attention,
    uses_blocked_attention,
)
from tinychat.models.logprobs import IGNORED, segment_mask, token_nll

SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 0], [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]])


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    shape = (
        GPT2Config(vocab_size=40, n_layer=2, n_embd=32, n_head=4, n_positions=32)
        if kind == "gpt2"
        else LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )
    return AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("size", [1, 4, 5, 128])
@pytest.mark.parametrize("packed", [False, True])
def test_values_and_gradients_are_those_of_torch(size: int, packed: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 11, 8, requires_grad=True) for _ in range(3))
    segments = SEGMENTS if packed else torch.ones(2, 11, dtype=torch.int64)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=segment_mask(segments), scale=0.3)
    plan = plan_blocks(11, SEGMENTS if packed else None, size)
    found = BlockedAttention.apply(query, key, value, 0.3, plan)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for gradient, exact in zip(torch.autograd.grad((found * weights).sum(), (query, key, value)), wanted, strict=True):
        torch.testing.assert_close(gradient, exact, atol=1e-5, rtol=1e-4)


def test_a_block_reads_no_keys_before_its_own_segments() -> None:
    segments = torch.arange(1, 9).repeat_interleave(4)[None]
    plan = plan_blocks(32, segments, 8)
    assert [(block.first, block.end) for block in plan] == [(0, 8), (8, 16), (16, 24), (24, 32)]
    unaligned = torch.tensor([[1] * 6 + [2] * 4 + [3] * 6])
    assert [block.first for block in plan_blocks(16, unaligned, 8)] == [0, 6]
    assert [block.first for block in plan_blocks(16, None, 8)] == [0, 0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_gives_the_same_logits_and_takes_masks_and_caches(kind: str) -> None:
    model, blocked = model_of(kind), model_of(kind)
    use_blocked_attention(blocked, torch.device("cpu"))
    assert uses_blocked_attention(blocked)
    ids = torch.randint(40, (2, 11))
    torch.testing.assert_close(blocked(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    seen = mask.bool()
    with_mask = blocked(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits
    torch.testing.assert_close(with_mask[0][seen], with_mask[1][seen], atol=1e-5, rtol=1e-5)
    cached = blocked(ids[:, :6], use_cache=True)
    rest = blocked(ids[:, 6:], past_key_values=cached.past_key_values).logits
    torch.testing.assert_close(rest, model(ids).logits[:, 6:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("blocked", [True, False])
def test_packed_logprobs_are_those_of_each_sequence_alone(kind: str, blocked: bool) -> None:
    model = model_of(kind)
    if blocked:
        use_blocked_attention(model, torch.device("cpu"))
    ids = torch.randint(40, SEGMENTS.shape)
    positions, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    alone: dict[tuple[int, int], Tensor] = {}
    for row in range(len(ids)):
        for number in range(1, int(SEGMENTS[row].max()) + 1):
            (where,) = (SEGMENTS[row] == number).nonzero(as_tuple=True)
            positions[row, where] = torch.arange(len(where))
            targets[row, where[:-1]] = ids[row, where[1:]]
            own = targets[row, where][None]
            alone[row, number] = token_nll(model, ids[row, where][None], own)[0]
    packed = token_nll(model, ids, targets, positions, segments=SEGMENTS)
    for (row, number), expected in alone.items():
        torch.testing.assert_close(packed[row, SEGMENTS[row] == number], expected, atol=1e-5, rtol=1e-5)
    assert packed[0, -1] == 0


def test_another_conversation_in_the_row_changes_nothing() -> None:
    model = model_of("llama")
    use_blocked_attention(model, torch.device("cpu"))
    ids = torch.randint(40, SEGMENTS.shape)
    other = ids.clone()
    other[0, :3] = (other[0, :3] + 1) % 40
    targets = torch.full_like(ids, IGNORED)
    targets[0, 3:8] = 7
    first, second = (token_nll(model, x, targets, segments=SEGMENTS) for x in (ids, other))
    assert torch.equal(first, second)
    assert first[0, 3:8].abs().sum() > 0
