"""Several replies to one prompt in one forward pass: the prompt is computed once, and padding not at all.

The rows of a batch become tokens side by side in one row, which all that treats each token by itself (products, norms,
embeddings: most of the arithmetic) then goes through. Attention alone looks at rows again, with the prompt's keys and
values in each of its group. Values and gradients are those of the rows, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM

from tinychat.models.kernels.attention import BlockedAttention, plan_blocks, uses_blocked_attention

KNOWN = (GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM)  # whose attention is handed what a forward pass is given


@dataclass(frozen=True)
class SharedPrompts:
    """Rows (B, T), padded on the right, as N tokens: of each group the prompt once, then the replies."""

    tokens: Tensor  # (N,) places in the flat batch (B · T)
    slots: Tensor  # (B, T) where among the N a token of a row stands; padding anywhere
    leaders: Tensor  # (R,) the first row of each group
    begin: int  # columns before it belong to the prompt in every row
    outputs: Tensor  # (N,) places in what `attend` computes: columns before `begin` of leaders, then the others of all

    def inputs(self, input_ids: Tensor) -> dict[str, Any]:
        """What the model is called with in place of rows input_ids (B, T)."""
        return {
            "input_ids": input_ids.flatten()[self.tokens][None],
            "position_ids": (self.tokens % input_ids.shape[1])[None],
            # transformers would make one of (N, N), which nobody reads; a mask of four dimensions it leaves alone.
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
            "shared_prompts": self,
        }

    def rows(self, x: Tensor) -> Tensor:
        """(1, N, ...) of the tokens as (B, T, ...) of the rows; in padding anything."""
        return _Rows.apply(x[0], self.slots.flatten()).unflatten(0, self.slots.shape)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention within each row: (1, H, N, D) each -> (1, N, H, D)."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, D)
        key, value = (_Rows.apply(x, self.slots.flatten()) for x in (key, value))
        # The heads of all rows side by side, as BlockedAttention has the heads of one: (H, B, T, D).
        key, value = (x.unflatten(0, self.slots.shape).permute(2, 0, 1, 3) for x in (key, value))
        found, columns = [], self.slots.shape[1]
        parts = [(self.slots[:, self.begin :], key, value, plan_blocks(columns, begin=self.begin))]
        if self.begin:
            first = slice(0, self.begin)
            prompts = (x[:, self.leaders, first] for x in (key, value))
            parts.insert(0, (self.slots[self.leaders, first], *prompts, plan_blocks(self.begin)))
        for slots, keys, values, plan in parts:
            own = _Rows.apply(query, slots.flatten()).unflatten(0, slots.shape).permute(2, 0, 1, 3)
            done = BlockedAttention.apply(own, keys, values, scale, plan)
            found.append(done.permute(1, 2, 0, 3).flatten(0, 1))
        return torch.cat(found).index_select(0, self.outputs)[None]


class _Rows(torch.autograd.Function):
    """x (N, ...), places (M,) -> x[places] (M, ...). Gradients are summed in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        exact = grad if grad.dtype is torch.float64 else grad.float()
        total = exact.new_zeros(ctx.count, *grad.shape[1:]).index_add_(0, places, exact)
        return total.to(grad.dtype), None


def shared_prompts(model: Any, targets: Tensor, group: Tensor | None, ignored: int) -> SharedPrompts | None:
    """How the rows of a batch share their prompts; None where the model can only compute rows, or nothing is shared.

    model: a transformers causal language model, perhaps with an adapter. targets: (B, T), `ignored` but for replies,
    the first of which follows the last token of the prompt. group: (B,) a number that neighbours with one prompt have
    in common; None: nobody has.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if group is None or type(base) not in KNOWN or not uses_blocked_attention(base) or _slides(base.config):
        return None
    starts = torch.ones_like(group, dtype=torch.bool)
    starts[1:] = group[1:] != group[:-1]
    leaders = starts.nonzero().flatten()
    if len(leaders) == len(group):
        return None
    kept = targets != ignored
    rows, columns = targets.shape
    column = torch.arange(columns, device=targets.device)
    prompt = kept.int().argmax(1) + 1  # tokens of it
    length = torch.where(kept, column + 1, 1).amax(1)
    own = (column < length[:, None]) & (starts[:, None] | (column >= prompt[:, None]))
    leader = leaders[starts.int().cumsum(0) - 1]  # (B,) of each row
    slots = (own.flatten().int().cumsum(0) - 1).view(rows, columns)
    slots = torch.where(column < prompt[:, None], slots[leader], slots)
    slots = torch.where(column < length[:, None], slots, 0)
    begin = int(prompt.min())
    tokens = own.flatten().nonzero().flatten()
    row, at = tokens // columns, tokens % columns
    place_of_leader = starts.int().cumsum(0)[row] - 1
    before = len(leaders) * begin
    outputs = torch.where(at < begin, place_of_leader * begin + at, before + row * (columns - begin) + at - begin)
    return SharedPrompts(tokens, slots, leaders, begin, outputs)


def _slides(config: Any) -> bool:
    """Whether some layer sees the nearest tokens alone."""
    return bool({*(getattr(config, "layer_types", None) or ())} - {"full_attention"})
