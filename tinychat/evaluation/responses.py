"""How well a model predicts held-out replies that are given to it, token by token."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.evaluation.statistics import Interval, ratio_interval
from tinychat.models.kernels.head_loss import CHUNK_ELEMENTS
from tinychat.models.logprobs import IGNORED
from tinychat.runtime.world import World

Scores = tuple[Tensor, Tensor]  # (B, T): negative log-likelihood in nats, fp32; whether the target is the likeliest


@torch.no_grad()
def response_loss(model: Any, batches: Iterable[dict[str, Tensor]], world: World) -> dict[str, float]:
    """Loss, perplexity and accuracy on the targets of the batches.

    batches: dicts with input_ids and targets (B, T), padded on the right or with position_ids and a 4D attention_mask;
    other entries are left alone. Every rank brings its own rows, and the same number of batches (sharded models need
    that); rows without a target do not count.

    Returns eval/response_loss (nats per token over all targets), eval/response_ppl = exp(loss), eval/token_accuracy
    (share of targets that are the likeliest token), each with 95 % bounds _low and _high that take rows for the sample
    (left out for fewer than two), and eval/response_tokens. Raises UserError without any target.
    """
    rows: list[list[float]] = []  # nats, tokens predicted right, tokens
    for batch in batches:
        inputs = {name: batch[name].to(world.device) for name in ("input_ids", "targets")}
        extra = {name: batch[name].to(world.device) for name in ("position_ids", "attention_mask") if name in batch}
        nll, right = token_scores(model, **inputs, **extra)
        counts = (inputs["targets"] != IGNORED).sum(1)
        sums = torch.stack([nll.double().sum(1), right.double().sum(1), counts.double()], 1)
        rows += sums[counts > 0].tolist()
    gathered = np.array([row for part in world.texts(json.dumps(rows)) for row in json.loads(part)]).reshape(-1, 3)
    nats, hits, tokens = gathered.T
    if not len(gathered):
        raise UserError("the conversations to evaluate on have no reply within the context; use a longer one")
    loss, bounds = nats.sum() / tokens.sum(), ratio_interval(nats, tokens)
    accuracy = hits.sum() / tokens.sum()
    metrics = with_interval("eval/response_loss", loss, bounds)
    metrics |= with_interval("eval/response_ppl", _exp(loss), (_exp(bounds[0]), _exp(bounds[1])))
    metrics |= with_interval("eval/token_accuracy", accuracy, within_unit(ratio_interval(hits, tokens)))
    return metrics | {"eval/response_tokens": float(tokens.sum())}


def with_interval(name: str, value: float, interval: Interval) -> dict[str, float]:
    """The metric NAME, with NAME_low and NAME_high where the interval is known."""
    metrics = {name: float(value)}
    if not math.isnan(interval[0]):
        metrics |= {f"{name}_low": float(interval[0]), f"{name}_high": float(interval[1])}
    return metrics


def within_unit(interval: Interval) -> Interval:
    """An interval of a share, which lies in [0, 1]."""
    low, high = interval
    return (low, high) if math.isnan(low) else (max(low, 0.0), min(high, 1.0))


def token_scores(
    model: Any,
    input_ids: Tensor,
    targets: Tensor,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Scores:
    """Negative log-likelihood of each target, as token_nll's, and whether it is the likeliest token; both (B, T), 0 and
    False where the target is IGNORED. No gradients; no [B, T, V] tensor is kept."""
    inner = getattr(model, "module", model)
    kept = targets != IGNORED
    wanted = targets[kept]

    def scores(hidden: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        size = max(1, CHUNK_ELEMENTS // inner.config.vocab_size)
        parts = [torch.empty(0, 2, device=hidden.device)]
        for some, target in zip(hidden[kept].split(size), wanted.split(size), strict=True):
            logits = head(some).float()
            own = logits.gather(1, target[:, None])[:, 0]
            parts.append(torch.stack([logits.logsumexp(-1) - own, logits.argmax(-1) == target], 1))
        return torch.cat(parts)

    with _head_returns(inner, scores):
        found = model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        ).logits
    nll = torch.zeros(targets.shape, device=found.device).masked_scatter_(kept, found[:, 0])
    return nll, torch.zeros_like(kept).masked_scatter_(kept, found[:, 1] > 0)


@contextlib.contextmanager
def _head_returns(model: Any, function: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> Iterator[None]:
    """Inside, the model's head returns function(hidden, head): its own forward calls it, so that hooks see that."""
    head = model.get_output_embeddings()
    original = head.forward
    head.forward = lambda hidden: function(hidden, original)
    try:
        yield
    finally:
        head.forward = original


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):  # a model that is lost has infinite perplexity
        return float(np.exp(np.float64(value)))
