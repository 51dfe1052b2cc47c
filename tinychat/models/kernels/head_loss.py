"""The output head and the cross-entropy as one function: no [N, V] tensor is kept.

Both are computed a chunk of tokens at a time; the backward pass computes a chunk's logits again, unless they are few.
An entropy bonus likewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tinychat.models.kernels.in_place import adds_in_place, cast, scratch
from tinychat.models.vocabulary import WHOLE, Vocabulary

EXACT_COLUMNS = 2048  # in fp32 at a time
ADDED_ROWS = 1024  # added to a gradient at a time
KEPT_ELEMENTS = 1 << 26  # logits kept for a backward pass that would else compute them again: 128 MiB in bf16
CHUNK_ELEMENTS = 1 << 27  # logits that live at once: 256 MiB in bf16
EXACT_CHUNK_ELEMENTS = 1 << 25  # the same where several models share the memory


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by the temperature: the one place where that is done, for sampling, losses and measures alike. In
    fp32: quotients rounded to the 16 bits of the products put probabilities some 0.02 nats a token apart."""
    return logits if temperature == 1.0 else logits.float() / temperature


def elements_at_once(on_cpu: bool) -> int:
    """How many logits become probabilities together where arrays of them are combined: so few that a CPU keeps them in
    its cache, so many that a GPU is busy."""
    return 1 << 19 if on_cpu else 1 << 22


def exact_columns(device: torch.device) -> int:
    """How many of a row's logits are summed in fp32 at a time."""
    return EXACT_COLUMNS if device.type == "cpu" else 16 * EXACT_COLUMNS


class LinearNLL(torch.autograd.Function):
    """(N, D), (V, D), (N,) -> (N,). The products are in hidden's type."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        for_sum: bool,
        exact: bool,
        vocabulary: Vocabulary = WHOLE,
    ) -> Tensor:
        eager = for_sum and any(ctx.needs_input_grad[:2])
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        ctx.weight_dtype, ctx.in_place = weight.dtype, weight if adds_in_place(weight) else None
        ctx.rows, ctx.vocabulary = len(weight), vocabulary
        weight = cast(weight, hidden.dtype)[: vocabulary.size]
        gradients = HeadGradients(hidden, weight, ctx.needs_input_grad[1]) if eager else None
        small = len(hidden) * len(weight) <= KEPT_ELEMENTS and any(ctx.needs_input_grad[:2])
        ctx.kept = [] if small and not eager else None
        for part in _chunks(len(hidden), len(weight), exact):
            e, total, own = _exp_logits(hidden[part], weight, targets[part], temperature, exact, vocabulary)
            nll[part] = (total.log() - own)[:, 0]
            if gradients is not None:
                scale = torch.full_like(total, 1 / temperature)
                gradients.add(_nll_slope(e, total, own, targets[part]), scale / total, part)
            if ctx.kept is not None:
                ctx.kept.append((e, total, own))
            else:
                scratch.give(e)
            del e
        ctx.save_for_backward(hidden, weight, targets)
        ctx.gradients, ctx.temperature, ctx.exact = gradients, temperature, exact
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None  # used up, as what is kept
        kept, ctx.kept = ctx.kept, None
        factor = 1.0
        if gradients is not None and len(grad) and bool((grad == grad[0]).all()):
            factor = float(grad[0])
        else:
            into = None if ctx.in_place is None else ctx.in_place.grad[: len(weight)]
            gradients = HeadGradients(hidden, weight, ctx.needs_input_grad[1], into)
            for part in _chunks(len(hidden), len(weight), ctx.exact):
                if kept:
                    e, total, own = kept.pop(0)
                else:
                    e, total, own = _exp_logits(
                        hidden[part], weight, targets[part], ctx.temperature, ctx.exact, ctx.vocabulary
                    )
                scale = grad[part, None] / ctx.temperature
                gradients.add(_nll_slope(e, total, own, targets[part]), scale / total, part)
                scratch.give(e)
                del e
        of_weight = gradients.of_weight(factor, ctx.weight_dtype, ctx.in_place, ctx.rows)
        return gradients.of_hidden * factor, of_weight, None, None, None, None, None


def _chunks(tokens: int, vocabulary: int, exact: bool) -> Iterator[slice]:
    size = max(1, (EXACT_CHUNK_ELEMENTS if exact else CHUNK_ELEMENTS) // vocabulary)
    for start in range(0, tokens, size):
        yield slice(start, start + size)


def _exp_logits(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, exact: bool, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor, Tensor]:
    """_exponentiate of the logits of hidden states; the caller gives the first back to `scratch`."""
    z = scratch.take((len(hidden), len(weight)), hidden.dtype, hidden.device)
    return _exponentiate(vocabulary.close(torch.mm(hidden, weight.t(), out=z)), targets, temperature, exact)


def _exponentiate(z: Tensor, targets: Tensor, temperature: float, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    """exp((z - max z) / temperature) (n, V) in place of the logits; its row sums and the target's (z - max z) /
    temperature, both fp32 (n, 1)."""
    top = z.amax(-1, keepdim=True)
    own = tempered(z.gather(1, targets[:, None]).float() - top.float(), temperature)
    if exact or temperature != 1.0:  # in fp32 from the logits on, by columns that stay in a processor's cache
        total, top = torch.zeros_like(own), top.float()
        for part in z.split(exact_columns(z.device), -1):
            e = tempered(part.float().sub_(top), temperature).exp_()  # in fp32 `part` itself, which is overwritten
            total += e.sum(-1, keepdim=True)
            part.copy_(e)
        return z, total, own
    e = z.sub_(top).exp_()
    if e.is_cuda:
        return e, e.sum(-1, keepdim=True, dtype=torch.float32), own
    # A CPU sums bf16 in fp32 inside and rounds once; asking it for fp32 takes a far slower path.
    return e, e.sum(-1, keepdim=True).float(), own


def _nll_slope(e: Tensor, total: Tensor, own: Tensor, targets: Tensor) -> Tensor:
    """total · (softmax(z) - onehot), which is d nll / d z times the row sum, in place of e: the division moves from
    (n, V) to (n, D)."""
    # On a CPU scatter_ would copy all of e first.
    e[torch.arange(len(e), device=e.device), targets] = (own.exp() - total).to(e.dtype)[:, 0]
    return e


class HeadGradients:
    """Those of hidden and weight, chunk by chunk. A frozen weight, as under an adapter, has none: a third of the head's
    arithmetic."""

    def __init__(self, hidden: Tensor, weight: Tensor, weight_is_trained: bool, into: Tensor | None = None):
        """into: (V, D) to which that of the weight is added at once."""
        self._hidden, self._weight, self._trained, self._into = hidden, weight, weight_is_trained, into
        self.of_hidden = torch.empty_like(hidden)
        self._sum: Tensor | None = None

    def add(self, slope: Tensor, scale: Tensor, part: slice) -> None:
        """Add scale · slope, (n, 1) fp32 and (n, V), which is d loss / d logits of one chunk."""
        hidden, weight = self._hidden[part], self._weight
        self.of_hidden[part] = (slope @ weight) * scale
        if not self._trained:
            return
        scaled = (hidden * scale).to(hidden.dtype)
        if self._into is not None:  # never as a whole: that would be the memory of a second head
            for into, columns in zip(self._into.split(ADDED_ROWS), slope.split(ADDED_ROWS, 1), strict=True):
                into.add_(torch.mm(columns.t(), scaled))
            return
        more = scratch.take(tuple(weight.shape), weight.dtype, weight.device)
        torch.mm(slope.t(), scaled, out=more)
        if self._sum is None:  # a single one stays as it is: reading so large a tensor again costs time
            self._sum = more
            return
        self._sum = _in_fp32(self._sum)
        _add(self._sum, more)
        scratch.give(more)

    def of_weight(self, factor: float, dtype: torch.dtype, in_place: Tensor | None, rows: int) -> Tensor | None:
        """`factor` times the gradient of the weight, for autograd, of all its `rows`; None where it has been added to
        that of in_place, or nobody asks. Once."""
        if not self._trained or self._into is not None:
            return None
        done, self._sum = self._sum, None
        if in_place is not None:
            assert in_place.grad is not None
            if done is not None:
                _add(in_place.grad[: len(done)], done, factor)
                scratch.give(done)
            return None
        missing = torch.zeros(rows - (0 if done is None else len(done)), self._weight.shape[1], dtype=dtype)
        missing = missing.to(self._weight.device)
        if done is None:
            return missing
        found = (done * factor).to(dtype)
        scratch.give(done)
        return torch.cat([found, missing]) if len(missing) else found


def _add(into: Tensor, more: Tensor, factor: float = 1.0) -> None:
    """into += factor · more, by rows that stay in the processor's cache: of another type torch first makes a copy."""
    for own, other in zip(into.split(ADDED_ROWS), more.split(ADDED_ROWS), strict=True):
        own.add_(other, alpha=factor)


def _in_fp32(x: Tensor) -> Tensor:
    """x, or a copy in its place."""
    if x.dtype in (torch.float32, torch.float64):
        return x
    copy = scratch.take(tuple(x.shape), torch.float32, x.device).copy_(x)
    scratch.give(x)
    return copy


ENTROPY_CHUNK_ELEMENTS = 1 << 24  # logits that live at once: 64 MiB in fp32


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
        for part in _entropy_chunks(hidden, used):
            entropy[part] = entropy_from_logits(tempered(vocabulary.close(hidden[part] @ used.t()), temperature))
        ctx.save_for_backward(hidden, weight, entropy)
        return entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, entropy = ctx.saved_tensors
        used = weight.detach().to(hidden.dtype)[: ctx.vocabulary.size]
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in _entropy_chunks(hidden, used):
            logits = tempered(ctx.vocabulary.close(hidden[part] @ used.t()), ctx.temperature)
            logp = F.log_softmax(logits, -1, dtype=torch.float32)
            p = logp.exp()
            scale = -grad[part, None] / ctx.temperature
            slope = logp.add_(entropy[part, None]).mul_(p).mul_(scale).to(hidden.dtype)
            of_hidden[part] = slope @ used
            if of_weight is not None:
                of_weight[: len(used)] += slope.t() @ hidden[part]
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None


def _entropy_chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, ENTROPY_CHUNK_ELEMENTS // max(1, len(weight)))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]
