"""The one function that turns a model, tokens and targets into log-probabilities.

Every stage and both sides of RL go through it. No [B, T, V] tensor is kept: the head and the cross-entropy are computed
together, a chunk of tokens at a time, and only where there is a target.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinychat.models.attention import plan_blocks, uses_blocked_attention

IGNORED = -100
EXACT_COLUMNS = 2048  # summed in fp32 at a time
CHUNK_ELEMENTS = 1 << 27  # logits that live at once: 256 MiB in bf16


def token_nll(
    model: Any,
    input_ids: Tensor,
    targets: Tensor,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    temperature: float = 1.0,
    for_sum: bool = False,
    label_smoothing: float = 0.0,
    segments: Tensor | None = None,
    exact: bool = False,
) -> Tensor:
    """Negative log-likelihood of each target.

    Args:
        model: a transformers causal language model, possibly wrapped (DDP, DeepSpeed).
        input_ids: (B, T) int64.
        targets: (B, T) int64; targets[b, t] follows input_ids[b, t]; IGNORED where nothing is asked.
        position_ids: (B, T); given by the caller under left padding.
        attention_mask: (B, T) of 0 and 1.
        temperature: divides the logits.
        for_sum: the loss will weigh all targets alike (a sum or a mean): the gradient is then made in the forward pass,
            which saves computing the logits a second time. Other losses stay right, and become slower.
        label_smoothing: share ε of the target's probability that is spread evenly over the vocabulary (Szegedy et al.
            2016, section 7): the result is then the cross-entropy to that mixture.
        segments: (B, T), packed sequences numbered from 1 within a row, 0 for padding: a token sees its own sequence
            alone. Stands in place of attention_mask; position_ids restart with each sequence.
        exact: normalise in fp32 also where the products run in bf16 on a CPU. Rounded sums are some 0.002 nats off:
            nothing for a loss, much for the ratio of two probabilities.

    Returns:
        (B, T) fp32, in nats; 0 where the target is IGNORED.
    """
    inner = getattr(model, "module", model)
    # The head is called by the model's own forward, so that DDP's and ZeRO's hooks see it; it returns the losses.
    more: dict[str, Any] = {"attention_mask": attention_mask}
    if segments is not None and uses_blocked_attention(inner):
        more["block_plan"] = plan_blocks(segments.shape[1], segments)
    elif segments is not None:
        more["attention_mask"] = segment_mask(segments)
    with head_returns_nll(inner, targets, temperature, for_sum, label_smoothing, exact):
        return model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **more).logits


def segment_mask(segments: Tensor) -> Tensor:
    """The attention mask of packed rows: each token sees itself and the earlier tokens of its own segment.

    segments: (B, T), numbered from 1 within a row, 0 for padding (which sees itself alone, as a row of the softmax must
    not be empty). Returns (B, 1, T, T) bool, True where attention is allowed.
    """
    length = segments.shape[1]
    position = torch.arange(length, device=segments.device)
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)
    same &= position[:, None] >= position[None, :]
    return (same | torch.eye(length, dtype=torch.bool, device=segments.device)).unsqueeze(1)


@contextlib.contextmanager
def head_returns_nll(
    model: Any,
    targets: Tensor,
    temperature: float = 1.0,
    for_sum: bool = False,
    smoothing: float = 0.0,
    exact: bool = False,
) -> Iterator[None]:
    """Inside, the output head of a causal language model gives losses (B, T) in place of logits; as token_nll."""
    head = model.get_output_embeddings()
    original = head.forward
    fused = type(head) is torch.nn.Linear and head.bias is None

    def forward(hidden: Tensor) -> Tensor:
        if fused:
            return linear_nll(hidden, head.weight, targets, temperature, for_sum, smoothing, exact)
        logits = original(hidden).float().flatten(0, 1) / temperature
        nll = F.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
        )
        return nll.view_as(targets)

    head.forward = forward
    try:
        yield
    finally:
        head.forward = original


def linear_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    for_sum: bool,
    smoothing: float = 0.0,
    exact: bool = False,
) -> Tensor:
    """Cross-entropy of softmax(hidden @ weight.T / temperature), (B, T) fp32, 0 where the target is IGNORED.

    hidden (B, T, D), weight (V, D), targets (B, T). Under autocast the products run in its type.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    kept = targets != IGNORED
    with torch.autocast(kind, enabled=False):
        nll = _LinearNLL.apply(hidden[kept], weight, targets[kept], temperature, for_sum, exact)
        if smoothing:  # -(1 - ε)·log p(y) - ε·mean(log p) = nll + ε·(z(y) - mean(z)): the normalisation cancels
            chosen, mean = weight[targets[kept]], weight.float().mean(0)
            nll = nll + smoothing / temperature * (hidden[kept].float() * (chosen.float() - mean)).sum(-1)
    return torch.zeros(targets.shape, dtype=torch.float32, device=hidden.device).masked_scatter(kept, nll)


class _LinearNLL(torch.autograd.Function):
    """(N, D), (V, D), (N,) -> (N,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, for_sum: bool, exact: bool
    ) -> Tensor:
        eager = for_sum and any(ctx.needs_input_grad[:2])
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradients = _empty_gradients(hidden, weight, ctx.needs_input_grad[1]) if eager else None
        for part in _chunks(len(hidden), len(weight)):
            e, total, own = _exp_logits(hidden[part], weight, targets[part], temperature, exact)
            nll[part] = (total.log() - own)[:, 0]
            if gradients is not None:
                scale = torch.full_like(total, 1 / temperature)
                _add_gradients(e, total, own, hidden[part], weight, targets[part], scale, gradients, part)
            del e
        ctx.save_for_backward(hidden, weight, targets, *(gradients or ()))
        ctx.temperature, ctx.exact = temperature, exact
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, *eager = ctx.saved_tensors
        if eager and len(grad) and bool((grad == grad[0]).all()):
            grad_hidden, grad_weight = eager
            grad_weight = grad_weight * grad[0]
            return grad_hidden * grad[0], _typed(grad_weight, weight, ctx), None, None, None, None
        gradients = _empty_gradients(hidden, weight, ctx.needs_input_grad[1])
        for part in _chunks(len(hidden), len(weight)):
            e, total, own = _exp_logits(hidden[part], weight, targets[part], ctx.temperature, ctx.exact)
            scale = grad[part, None] / ctx.temperature
            _add_gradients(e, total, own, hidden[part], weight, targets[part], scale, gradients, part)
            del e
        return gradients[0], _typed(gradients[1], weight, ctx), None, None, None, None


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    for start in range(0, tokens, size):
        yield slice(start, start + size)


def _empty_gradients(hidden: Tensor, weight: Tensor, weight_is_trained: bool) -> tuple[Tensor, Tensor]:
    """The weight's is empty where it is frozen, as under an adapter: a third of the head's arithmetic."""
    shape = weight.shape if weight_is_trained else (0,)
    return torch.empty_like(hidden), torch.zeros(shape, dtype=torch.float32, device=weight.device)


def _typed(grad_weight: Tensor, weight: Tensor, ctx: Any) -> Tensor | None:
    return grad_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None


def _exp_logits(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """exp(z - max z) (n, V) in hidden's type; its row sums and the target's z - max z, both fp32 (n, 1)."""
    z = hidden @ weight.t()
    if temperature != 1.0:
        z.div_(temperature)
    top = z.amax(-1, keepdim=True)
    own = z.gather(1, targets[:, None]).float() - top.float()
    e = z.sub_(top).exp_()
    if e.is_cuda:
        return e, e.sum(-1, keepdim=True, dtype=torch.float32), own
    if exact:  # by columns that stay in the processor's cache
        return e, sum(part.float().sum(-1, keepdim=True) for part in e.split(EXACT_COLUMNS, -1)), own  # type: ignore
    # A CPU sums bf16 in fp32 inside and rounds once; asking it for fp32 takes a far slower path.
    return e, e.sum(-1, keepdim=True).float(), own


def _add_gradients(
    e: Tensor,
    total: Tensor,
    own: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    gradients: tuple[Tensor, Tensor],
    part: slice,
) -> None:
    """Add scale · d nll / d (hidden, weight) of one chunk; scale is (n, 1) fp32. Overwrites e.

    d nll / d z = softmax(z) - onehot, here times the row sum: the division moves from (n, V) to (n, D).
    """
    grad_hidden, grad_weight = gradients
    # On a CPU scatter_ would copy all of e first.
    e[torch.arange(len(e), device=e.device), targets] = (own.exp() - total).to(e.dtype)[:, 0]
    scale = scale / total
    grad_hidden[part] = (e @ weight) * scale
    if not grad_weight.numel():
        return
    scaled = (hidden * scale).to(hidden.dtype)
    if weight.is_cuda:
        grad_weight.add_(e.t() @ scaled)
    else:  # the CPU's product is faster with the long side last
        grad_weight.add_((scaled.t() @ e).t())
