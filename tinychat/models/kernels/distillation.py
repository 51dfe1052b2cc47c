"""Cross-entropy to given tokens and the divergence from a teacher's distributions, from the student's last hidden
states: as in tinychat.models.kernels.head_loss no [N, V] tensor is kept, of the student or of the teacher.

With p the student's distribution of the next token and q the teacher's, both of logits divided by T, and z the
student's logits, of a token

    loss = (1 - a) · cross-entropy + a · T² · D        (Hinton et al. 2015, section 2; cross-entropy at T = 1)

    D                                                       T · dD / dz_v
    forward   Σ q (log q - log p)                           p_v - q_v
    reverse   Σ p (log p - log q)                           p_v (s_v - Σ p s),   s = log p - log q
    jsd       β Σ q (log q - log m) + (1-β) Σ p (log p - log m)    the same with s = (1-β) (log p - log m)

where m = β q + (1-β) p (Agarwal et al. 2024, GKD, equation 1). T² keeps the gradient's size as T grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinychat.models.kernels.head_loss import EXACT_CHUNK_ELEMENTS, HeadGradients, elements_at_once
from tinychat.models.kernels.in_place import adds_in_place, cast, scratch
from tinychat.models.vocabulary import Vocabulary

TeacherLogits = Callable[[slice], Tensor]  # some of the N tokens -> the teacher's logits (n, V), which may be changed


@dataclass(frozen=True)
class Mixture:
    """What of a student's loss is the teacher's."""

    divergence: str  # forward | reverse | jsd
    share: float  # a
    temperature: float  # T
    beta: float = 0.5  # jsd: the teacher's share of m


class LinearDistillation(torch.autograd.Function):
    """(N, D), (V, D), (N,), (N,) -> (3,), at least fp32: over the tokens the sums of weight · loss, of cross-entropy
    and of D. The first alone has a gradient, which is made in the forward pass: the logits of both models are computed
    once. The products are in hidden's type.

    targets: (N,) int64. weights: (N,), of the tokens in the loss. vocabulary: which rows of the head are tokens, the
    same as the teacher's logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        teacher: TeacherLogits,
        mixture: Mixture,
        vocabulary: Vocabulary,
    ) -> Tensor:
        ctx.weight_dtype, ctx.in_place, ctx.rows = weight.dtype, weight if adds_in_place(weight) else None, len(weight)
        weight = cast(weight, hidden.dtype)[: vocabulary.size]
        wanted = any(ctx.needs_input_grad[:2])
        ctx.gradients = HeadGradients(hidden, weight, ctx.needs_input_grad[1]) if wanted else None
        sums = torch.zeros(3, dtype=torch.float64, device=hidden.device)
        for part in _parts(len(hidden), max(1, EXACT_CHUNK_ELEMENTS // len(weight))):
            z = scratch.take((len(hidden[part]), len(weight)), hidden.dtype, hidden.device)
            z = vocabulary.close(torch.mm(hidden[part], weight.t(), out=z))
            sums += losses_and_slope(z, teacher(part), targets[part], weights[part], mixture)
            if ctx.gradients is not None:
                ctx.gradients.add(z, weights[part, None], part)
            scratch.give(z)
            del z
        return sums if hidden.dtype is torch.float64 else sums.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None  # used up
        factor = float(grad[0])
        of_weight = gradients.of_weight(factor, ctx.weight_dtype, ctx.in_place, ctx.rows)
        return gradients.of_hidden * factor, of_weight, None, None, None, None, None


class DistilledLogits(torch.autograd.Function):
    """The same where the student's head is more than a product (an adapter, a bias): of its logits (N, V), which are
    overwritten by nothing but their gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, teacher: TeacherLogits, mixture: Mixture
    ) -> Tensor:
        slope = logits.clone()
        sums = losses_and_slope(slope, teacher(slice(None)), targets, weights, mixture)
        ctx.save_for_backward(slope.mul_(weights[:, None]) if ctx.needs_input_grad[0] else slope[:0])
        return sums if logits.dtype is torch.float64 else sums.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return slope * grad[0].to(slope.dtype), None, None, None, None


def losses_and_slope(z: Tensor, teacher: Tensor, targets: Tensor, weights: Tensor, mixture: Mixture) -> Tensor:
    """(3,) float64, the sums of LinearDistillation; the student's logits z (n, V) become d loss / d z of each token,
    without its weight. teacher: its logits, (n, V)."""
    sums = torch.zeros(3, dtype=torch.float64, device=z.device)
    for part in _parts(len(z), max(1, elements_at_once(z.device.type == "cpu") // z.shape[1])):
        entropy, divergence = _token_losses(z[part], teacher[part], targets[part], mixture)
        a = mixture.share
        loss = weights[part] * ((1 - a) * entropy + a * mixture.temperature**2 * divergence)
        sums += torch.stack([x.sum(dtype=torch.float64) for x in (loss, entropy, divergence)])
    return sums


def _token_losses(z: Tensor, teacher: Tensor, targets: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """(n,) cross-entropy and divergence; z becomes the slope."""
    a, T = mixture.share, mixture.temperature
    wide = torch.float64 if z.dtype is torch.float64 else torch.float32
    logp, logq = _log_softmax(z, T, wide), _log_softmax(teacher, T, wide)
    p = logp.exp()
    if mixture.divergence == "forward":
        q = logq.exp()
        divergence = (q * (logq - logp)).sum(-1)
        slope = p - q
    else:
        if mixture.divergence == "reverse":
            s = logp - logq
            rest = torch.zeros((), dtype=wide, device=z.device)
        else:
            beta = mixture.beta
            logm = torch.logaddexp(logq + math.log(beta), logp + math.log(1 - beta))
            s = (1 - beta) * (logp - logm)
            rest = beta * (logq.exp() * (logq - logm)).sum(-1)
        own = (p * s).sum(-1)
        divergence = own + rest
        slope = s.sub_(own[:, None]).mul_(p)
    logp1 = logp if T == 1.0 else _log_softmax(z, 1.0, wide)
    entropy = -logp1.gather(1, targets[:, None])[:, 0]
    slope.mul_(a * T)
    if a < 1:
        slope.add_(p if T == 1.0 else logp1.exp(), alpha=1 - a)
        slope[torch.arange(len(z), device=z.device), targets] -= 1 - a
    z.copy_(slope)
    return entropy, divergence


def _log_softmax(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    wide = logits.to(dtype)
    return F.log_softmax(wide if temperature == 1.0 else wide / temperature, -1)


def _parts(tokens: int, size: int) -> Iterator[slice]:
    for start in range(0, tokens, size):
        yield slice(start, start + size)
