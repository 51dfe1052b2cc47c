"""The entropy of the next token, with gradient, and without a kept (n, V) tensor: logits are computed a chunk of tokens
at a time, and once more in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tinychat.models.kernels.head_loss import tempered
from tinychat.models.vocabulary import Vocabulary

CHUNK_ELEMENTS = 1 << 24  # logits that live at once: 64 MiB in fp32


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy of the next token, -Σ_v p_v log p_v: (..., V) -> (...) fp32. A logit of -inf adds nothing."""
    logp = F.log_softmax(logits.float(), -1)
    return -(logp.exp() * logp.masked_fill(logp.isneginf(), 0.0)).sum(-1)


def kept_entropy(logits: Tensor) -> Tensor:
    """The same for logits that are there anyway: nothing but they is kept for the backward pass."""
    return checkpoint(entropy_from_logits, logits, use_reentrant=False)


class LinearEntropy(torch.autograd.Function):
    """(N, D), (V, D) -> (N,) fp32: the entropy of softmax(hidden @ weight.T / temperature), with

        dH / dz_v = -p_v (log p_v + H),    z = logits / temperature

    The products are in hidden's type. vocabulary: which of the weight's rows are tokens."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, temperature: float, vocabulary: Vocabulary) -> Tensor:
        ctx.temperature, ctx.vocabulary = temperature, vocabulary
        entropy = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        used = weight.detach().to(hidden.dtype)[: vocabulary.size]
        for part in _chunks(hidden, used):
            entropy[part] = entropy_from_logits(tempered(vocabulary.close(hidden[part] @ used.t()), temperature))
        ctx.save_for_backward(hidden, weight, entropy)
        return entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, entropy = ctx.saved_tensors
        used = weight.detach().to(hidden.dtype)[: ctx.vocabulary.size]
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in _chunks(hidden, used):
            logits = tempered(ctx.vocabulary.close(hidden[part] @ used.t()), ctx.temperature)
            logp = F.log_softmax(logits, -1, dtype=torch.float32)
            p = logp.exp()
            scale = -grad[part, None] / ctx.temperature
            slope = logp.add_(entropy[part, None]).mul_(p).mul_(scale).to(hidden.dtype)
            of_hidden[part] = slope @ used
            if of_weight is not None:
                of_weight[: len(used)] += slope.t() @ hidden[part]
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // max(1, len(weight)))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]
