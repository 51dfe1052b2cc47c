"""Loss and perplexity of a model on a stream of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from tinychat.data.documents.tokens import TokenCache
from tinychat.errors import UserError
from tinychat.models.logprobs import IGNORED
from tinychat.runtime.world import World

# (input_ids [B, T], targets [B, T]) -> negative log-likelihoods [B, T] in nats, 0 where the target is IGNORED
NllFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@torch.no_grad()
def perplexity(
    nll_fn: NllFunction,
    cache: TokenCache,
    context_length: int,
    batch_size: int,
    world: World,
    max_tokens: int | None = None,
) -> dict[str, float]:
    """Predict each token after the first exactly once, in windows of `context_length` tokens that do not
    overlap; but not what stands before each document (cache.beginning), which is given in generation too.

    batch_size: windows per call on one rank. max_tokens: predict only the first so many; None: all. The
    result depends on neither batch size nor number of ranks, and every rank calls nll_fn equally often
    (sharded models need that; a rank with nothing left gets one window without targets). A token at the start
    of a window sees little before it, so a longer context gives a lower loss.

    Returns eval/loss (nats per token), eval/ppl = exp(loss), eval/bits_per_byte (the loss in bits, divided by
    this tokenizer's bytes per token on this text: comparable between tokenizers), eval/tokens (predicted).
    Raises UserError for fewer than two tokens.
    """
    if cache.n_tokens < 2:
        raise UserError(f"the text to evaluate on has {cache.n_tokens} tokens, at least 2 are needed: {cache.path}")
    last = min(max_tokens or cache.n_tokens, cache.n_tokens - 1)
    windows = -(-last // context_length)
    predicted = last - int(np.isin(cache.tokens[1 : last + 1], cache.beginning).sum()) if cache.beginning else last
    given = torch.tensor(cache.beginning, dtype=torch.int64)
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for start in range(0, windows, batch_size * world.size):
        first = start + world.rank * batch_size
        end = max(first + 1, min(first + batch_size, windows))
        rows = [window(cache.tokens, row, context_length, last) for row in range(first, end)]
        inputs, targets = (torch.stack(part) for part in zip(*rows, strict=True))
        targets = targets.masked_fill(torch.isin(targets, given), IGNORED)
        total += nll_fn(inputs.to(world.device), targets.to(world.device)).sum(dtype=torch.float64)
    loss = world.sum(total.item())[0] / max(predicted, 1)
    counted = cache.n_tokens - cache.n_docs * len(cache.beginning)
    with np.errstate(over="ignore"):  # a model that is lost has infinite perplexity
        ppl = float(np.exp(np.float64(loss)))
    return {
        "eval/loss": loss,
        "eval/ppl": ppl,
        "eval/bits_per_byte": loss / math.log(2) * counted / max(cache.n_bytes, 1),
        "eval/tokens": float(predicted),
    }


def window(tokens: np.ndarray, index: int, context_length: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets [context_length] of the `index`-th window over tokens 0 ... last. Past the end
    targets are IGNORED (and inputs 0, which no counted position can see)."""
    start = index * context_length
    piece = torch.from_numpy(tokens[start : min(start + context_length, last) + 1].astype(np.int64))
    inputs = torch.zeros(context_length, dtype=torch.int64)
    targets = torch.full((context_length,), IGNORED, dtype=torch.int64)
    counted = max(len(piece) - 1, 0)
    inputs[:counted], targets[:counted] = piece[:-1], piece[1:]
    return inputs, targets
