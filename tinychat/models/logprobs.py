"""The one function that turns a model, tokens and targets into log-probabilities.

Every stage and both sides of RL go through it. No [B, T, V] tensor is kept: the head and the cross-entropy are computed
together (tinychat.models.kernels.head_loss), a chunk of tokens at a time, and only where there is a target.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinychat.models.kernels.attention import plan_blocks, uses_blocked_attention
from tinychat.models.kernels.distillation import DistilledLogits, LinearDistillation, Mixture
from tinychat.models.kernels.head_loss import LinearEntropy, LinearNLL, kept_entropy, tempered
from tinychat.models.vocabulary import WHOLE, Vocabulary
from tinychat.runtime.process import LARGE

IGNORED = -100


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
    vocabulary: Vocabulary = WHOLE,
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
        vocabulary: which rows of the head are tokens; their probabilities sum to 1.

    Returns:
        (B, T) fp32, in nats; 0 where the target is IGNORED.
    """
    with head_returns_nll(inner_model(model), targets, temperature, for_sum, label_smoothing, exact, vocabulary):
        return called(model, input_ids, position_ids, attention_mask, segments).logits


def distilled(
    model: Any,
    input_ids: Tensor,
    targets: Tensor,
    weights: Tensor,
    taught: Tensor,
    teacher_logits: Callable[[Tensor], Tensor],
    mixture: Mixture,
    position_ids: Tensor | None = None,
    segments: Tensor | None = None,
    vocabulary: Vocabulary = WHOLE,
) -> Tensor:
    """(3,): over all targets the sums of weight · loss, of cross-entropy, and of the divergence from a teacher, as
    tinychat.models.kernels.distillation has them. The first has the student's gradient.

    Args:
        model: the student, a transformers causal language model, possibly wrapped (DDP, DeepSpeed).
        input_ids, targets, position_ids, segments, vocabulary: as for token_nll.
        weights: (B, T), of the targets in the loss.
        taught: (B, T, D'), what the teacher's head gets for the same tokens.
        teacher_logits: (n, D') of it -> logits (n, V) over the vocabulary, without gradient.
    """
    student, kept = inner_model(model), targets != IGNORED
    device, known = input_ids.device.type, taught[kept]

    def teacher(part: slice) -> Tensor:
        return teacher_logits(known[part])

    head = student.get_output_embeddings()
    fused = type(head) is torch.nn.Linear and head.bias is None

    def losses(hidden: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        wanted, own = targets[kept], hidden[kept]
        if not fused:
            logits = vocabulary.of_logits(logits_of(own).float())
            return DistilledLogits.apply(logits, wanted, weights[kept].to(logits.dtype), teacher, mixture)
        if torch.is_autocast_enabled(device):
            own = own.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            at = weights[kept].to(torch.promote_types(own.dtype, torch.float32))
            return LinearDistillation.apply(own, head.weight, wanted, at, teacher, mixture, vocabulary)

    with head_is(head, losses):
        return called(model, input_ids, position_ids, None, segments).logits


def inner_model(model: Any) -> Any:
    """The transformers model in what wraps it (DDP, DeepSpeed), or the model."""
    return getattr(model, "module", model)


def called(
    model: Any, input_ids: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None, segments: Tensor | None
) -> Any:
    """The output of the model's own forward, which calls the head, so that DDP's and ZeRO's hooks see it. Arguments as
    for token_nll."""
    inner = inner_model(model)
    more: dict[str, Any] = {"attention_mask": attention_mask}
    if segments is not None and uses_blocked_attention(inner):
        more["block_plan"] = plan_blocks(segments.shape[1], segments)
    elif segments is not None:
        more["attention_mask"] = segment_mask(segments)
    return model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **more)


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
def head_is(head: Any, function: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> Iterator[None]:
    """Inside, a call of this module, a model's head, gives function(hidden, own), own being what it did before.

    The model's own forward still makes the call, and makes it of the module: so DDP and DeepSpeed see it, and ZeRO-3
    gathers the weight for as long as it takes. May be nested.
    """
    own = head.forward
    head.forward = lambda hidden: function(hidden, own)
    try:
        yield
    finally:
        head.forward = own


@contextlib.contextmanager
def head_returns_nll(
    model: Any,
    targets: Tensor,
    temperature: float = 1.0,
    for_sum: bool = False,
    smoothing: float = 0.0,
    exact: bool = False,
    vocabulary: Vocabulary = WHOLE,
    entropy: bool = False,
) -> Iterator[None]:
    """Inside, the output head of a causal language model gives losses (B, T) in place of logits; as token_nll. With
    `entropy` (B, T, 2): beside each loss the entropy of the distribution it was computed from."""
    head = model.get_output_embeddings()
    fused = type(head) is torch.nn.Linear and head.bias is None
    kept = targets != IGNORED

    def losses(hidden: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        if fused:
            nll = linear_nll(hidden, head.weight, targets, temperature, for_sum, smoothing, exact, vocabulary)
            if entropy:
                spread = _linear_entropy(hidden[kept], head.weight, temperature, vocabulary)
        else:
            logits = tempered(vocabulary.of_logits(logits_of(hidden[kept]).float()), temperature)
            nll = _placed(F.cross_entropy(logits, targets[kept], reduction="none", label_smoothing=smoothing), kept)
            if entropy:
                spread = kept_entropy(logits)
        return torch.stack([nll, _placed(spread, kept)], -1) if entropy else nll

    with head_is(head, losses):
        yield


@contextlib.contextmanager
def last_hidden(model: Any, logits: bool = False) -> Iterator[list[Tensor]]:
    """Inside, what each call of a causal language model gives its output head, (B, T, D), is added to the list; the
    head computes nothing unless its `logits` are wanted too."""
    seen: list[Tensor] = []

    def kept(hidden: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        seen.append(hidden)
        return logits_of(hidden) if logits else hidden[..., :1]  # "logits" that nobody reads

    with head_is(model.get_output_embeddings(), kept):
        yield seen


class OutputHead:
    """The output head of a causal language model for many calls without gradient, with the arithmetic of token_nll:
    under autocast its weight is cast once, not in each call. vocabulary as for token_nll."""

    def __init__(self, model: Any, vocabulary: Vocabulary = WHOLE):
        head = model.get_output_embeddings()
        kind = head.weight.device.type
        self._run = lambda hidden: vocabulary.of_logits(head(hidden))
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
        if type(head) is torch.nn.Linear:
            parts = (None if x is None else x.detach().to(dtype)[: vocabulary.size] for x in (head.weight, head.bias))
            weight, bias = parts
            self._run = lambda hidden: vocabulary.close(F.linear(hidden, weight, bias))
        # So many that their logits are not of LARGE bytes: their memory then serves for the next ones.
        self.tokens_at_once = max(1, (LARGE - 1) // (model.config.vocab_size * dtype.itemsize))

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V)."""
        return self._run(hidden)


def linear_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    for_sum: bool,
    smoothing: float = 0.0,
    exact: bool = False,
    vocabulary: Vocabulary = WHOLE,
) -> Tensor:
    """Cross-entropy of softmax(hidden @ weight.T / temperature), (B, T) fp32, 0 where the target is IGNORED.

    hidden (B, T, D), weight (V, D), targets (B, T). Under autocast the products run in its type.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    kept = targets != IGNORED
    with torch.autocast(kind, enabled=False):
        nll = LinearNLL.apply(hidden[kept], weight, targets[kept], temperature, for_sum, exact, vocabulary)
        if smoothing:  # -(1 - ε)·log p(y) - ε·mean(log p) = nll + ε·(z(y) - mean(z)): the normalisation cancels
            chosen, mean = weight[targets[kept]], weight[: vocabulary.size].float().mean(0)
            nll = nll + smoothing / temperature * (hidden[kept].float() * (chosen.float() - mean)).sum(-1)
    return _placed(nll, kept)


def _linear_entropy(hidden: Tensor, weight: Tensor, temperature: float, vocabulary: Vocabulary) -> Tensor:
    """(n, D), (V, D) -> (n,); under autocast the products run in its type."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        return LinearEntropy.apply(hidden, weight, temperature, vocabulary)


def _placed(values: Tensor, kept: Tensor) -> Tensor:
    """(n,) to the n places of kept (B, T), 0 elsewhere; fp32."""
    return torch.zeros(kept.shape, dtype=torch.float32, device=kept.device).masked_scatter(kept, values)


@torch.no_grad()
def likeliest(
    model: Any, ids: list[int], vocabulary: Vocabulary, most: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """For each of the T tokens but the first: its log-probability after those before it, and the `most` likeliest
    tokens there with theirs, in nats, the likeliest first."""
    inner = inner_model(model)
    head = OutputHead(inner, vocabulary)
    inputs = torch.tensor([ids], device=inner.get_input_embeddings().weight.device)
    with last_hidden(inner) as seen:
        called(inner, inputs, None, None, None)
    found: list[tuple[float, list[tuple[int, float]]]] = []
    hidden, targets = seen[0][0, :-1], inputs[0, 1:]
    for start in range(0, len(targets), head.tokens_at_once):
        part = slice(start, start + head.tokens_at_once)
        logprobs = head.logits(hidden[part]).float().log_softmax(-1)
        own = logprobs.gather(1, targets[part, None])[:, 0].tolist()
        values, others = (x.tolist() for x in logprobs.topk(min(most, logprobs.shape[1]), -1))
        found += [
            (logprob, list(zip(*pair, strict=True)))
            for logprob, pair in zip(own, zip(others, values, strict=True), strict=True)
        ]
    return found
