"""Causal attention for training on a CPU, in blocks of queries, with packed conversations blind to each other.

torch's scaled_dot_product_attention is a fast kernel on a GPU, and there it stays in use. On a CPU its products run far
below the rate of plain batched matrix products: the same mathematics in blocks is up to twice as fast on whole rows of
512 tokens (see benchmarks/attention.py). For packed rows a block reads only the keys of the segments in it, which gains
far more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tinychat.runtime.run_files import tell_once

NAME = "tinychat_blocked"
BLOCK = 128  # queries whose scores are computed together


def use_blocked_attention(model: Any, device: torch.device) -> None:
    """Let a transformers model attend in blocks where that is faster: on a CPU. One whose attention is its own code
    keeps it, which is said once."""
    if device.type != "cpu":
        return
    if attention_can_be_set(model):
        model.set_attn_implementation(NAME)
    else:
        tell_once(f"{name_of(model)}: its attention is its own code, tinychat's faster one on a CPU is not used")


def attention_can_be_set(model: Any) -> bool:
    """Whether attention goes through transformers' AttentionInterface. A class from elsewhere is believed when it says
    so: transformers guesses from its source, wrongly where no class there is called attention."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return is_of_transformers(base) or bool(getattr(base, "_supports_attention_backend", False))


def is_of_transformers(module: Any) -> bool:
    """Whether a module is of one of transformers' own classes: another of the same name may compute something else."""
    return type(module).__module__.startswith("transformers.")


def name_of(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def uses_blocked_attention(model: Any) -> bool:
    return model.config._attn_implementation == NAME


@dataclass(frozen=True)
class Block:
    """Queries [start, end) look at keys [first, end); `forbidden` is added to their scores: (B or 1, q, k)."""

    start: int
    end: int
    first: int
    forbidden: Tensor

    def of_tensors(self, begin: int) -> tuple[slice, slice]:
        """Its places among queries, the first of which is token `begin`, and among keys."""
        return slice(self.start - begin, self.end - begin), slice(self.first, self.end)


def plan_blocks(length: int, segments: Tensor | None = None, size: int = BLOCK, begin: int = 0) -> list[Block]:
    """Which keys each block of queries reads.

    segments: (B, T) as for `logprobs.segment_mask`; None: every token sees all earlier ones. begin: the first query,
    where those before it are not asked for.
    """
    blocks = []
    position = torch.arange(length)
    for start in range(begin, length, size):
        end, first = min(start + size, length), 0
        if segments is None:
            allowed = (position[start:end, None] >= position[None, :end]).unsqueeze(0)
        else:
            inside = segments[:, start:end, None]
            # The keys before this block that belong to a segment in it; padding (0) belongs to none.
            before = ((segments[:, :start] == segments[:, start, None]) & (segments[:, :start] > 0)).any(0)
            first = int(before.to(torch.uint8).argmax()) if bool(before.any()) else start
            same = (inside == segments[:, None, first:end]) & (inside > 0)
            same |= position[start:end, None] == position[None, first:end]
            allowed = same & (position[start:end, None] >= position[None, first:end])
        forbidden = torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))
        blocks.append(Block(start, end, first, forbidden))
    return blocks


class BlockedAttention(torch.autograd.Function):
    """softmax(q·kᵀ·scale + forbidden)·v; k and v are (B, H, T, D), q their last tokens, from the plan's first on."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, plan: list[Block]) -> Tensor:
        batch, heads, length, width = query.shape
        q, k, v = ((query * scale).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
        out, kept = torch.empty_like(q), []
        for block in plan:
            rows, keys = block.of_tensors(plan[0].start)
            scores = torch.bmm(q[:, rows], k[:, keys].transpose(1, 2))
            scores.view(batch, heads, *scores.shape[1:]).add_(block.forbidden.to(scores.dtype).unsqueeze(1))
            share = torch.softmax(scores, -1)
            out[:, rows] = torch.bmm(share, v[:, keys])
            kept.append(share)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.scale, ctx.plan = scale, plan
        return out.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, *kept = ctx.saved_tensors
        shape, of_keys = grad.shape, (*grad.shape[:2], *k.shape[1:])
        grad = grad.flatten(0, 1)
        inner = (grad * out).sum(-1, keepdim=True)  # Σ share · d share, by which the softmax's gradient is centred
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, share in zip(ctx.plan, kept, strict=True):
            rows, keys = block.of_tensors(ctx.plan[0].start)
            grad_v[:, keys] += torch.bmm(share.transpose(1, 2), grad[:, rows])
            scores = torch.bmm(grad[:, rows], v[:, keys].transpose(1, 2)).sub_(inner[:, rows]).mul_(share)
            grad_q[:, rows] = torch.bmm(scores, k[:, keys])
            grad_k[:, keys] += torch.bmm(scores.transpose(1, 2), q[:, rows])
        return grad_q.mul_(ctx.scale).view(shape), grad_k.view(of_keys), grad_v.view(of_keys), None, None


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    block_plan: list[Block] | None = None,
    shared_prompts: Any = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, T, D), key and value (B, K, T, D); returns (B, T, H, D).

    shared_prompts: a SharedPrompts of the module of that name, which says what the tokens of the one row are.
    """
    whole = query.shape[2] == key.shape[2] and query.shape[2] > 1
    # A plan says all that a mask could.
    masked = attention_mask is not None and block_plan is None and shared_prompts is None
    if masked or dropout or not whole:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if shared_prompts is not None:
        return shared_prompts.attend(query, key, value, scale).contiguous(), None
    plan = block_plan if block_plan is not None else plan_blocks(query.shape[2])
    return BlockedAttention.apply(query, key, value, scale, plan).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
