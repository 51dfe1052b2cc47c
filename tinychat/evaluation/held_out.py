"""How well a model does on held-out data that are given, without generating anything: loss and perplexity on tokens;
and how well a reward model tells the chosen from the rejected reply of pairs, and safe from unsafe replies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.data.documents.tokens import TokenCache
from tinychat.errors import UserError
from tinychat.evaluation.replies import with_interval
from tinychat.evaluation.statistics import Bin, calibration, expected_calibration_error, wilson
from tinychat.models.logprobs import IGNORED
from tinychat.models.reward import raw_scores
from tinychat.runtime.heartbeat import Heartbeat
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
    heart = Heartbeat("held-out text", last, "tokens")
    for start in range(0, windows, batch_size * world.size):
        first = start + world.rank * batch_size
        end = max(first + 1, min(first + batch_size, windows))
        rows = [window(cache.tokens, row, context_length, last) for row in range(first, end)]
        inputs, targets = (torch.stack(part) for part in zip(*rows, strict=True))
        targets = targets.masked_fill(torch.isin(targets, given), IGNORED)
        total += nll_fn(inputs.to(world.device), targets.to(world.device)).sum(dtype=torch.float64)
        heart.at(min(last, (start + batch_size * world.size) * context_length))
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


UNKNOWN = -1  # a label that is not given; the number of a pair that is not to be counted


@dataclass(frozen=True)
class PairScores:
    """What a reward model gave N pairs, in the order of their numbers; index 0 is chosen, 1 rejected."""

    scores: np.ndarray  # float64 (N, 2): the head's output
    safe: np.ndarray  # int (N, 2): 1 safe, 0 unsafe, UNKNOWN
    category: np.ndarray  # int (N,): number of the category, UNKNOWN

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def right(self) -> np.ndarray:
        """(N,): 1 where the chosen reply scores higher, 0.5 for a tie, 0."""
        return (np.sign(self.scores[:, 0] - self.scores[:, 1]) + 1) / 2


@torch.no_grad()
def score_pairs(model: Any, batches: Iterable[dict[str, Tensor]], world: World) -> PairScores:
    """Scores of all ranks' batches (see data.preferences.tokens.eval_pairs), each pair once.

    Every rank calls this, with the same number of batches; pairs with the number UNKNOWN are left out.
    """
    rows: list[list[float]] = []
    for batch in batches:
        ids, real = batch["input_ids"].to(world.device), batch["attention_mask"].to(world.device)
        scores = raw_scores(model, ids, real).double().cpu().view(-1, 2)
        kept = batch["pair"][::2] != UNKNOWN
        numbers = [batch["pair"][::2, None], batch["safe"].view(-1, 2), batch["category"][::2, None]]
        rows += torch.cat([*(number.double() for number in numbers), scores], 1)[kept].tolist()
    gathered = sorted(row for part in world.gather_objects(rows) for row in part)
    table = np.array(gathered, dtype=np.float64).reshape(-1, 6)
    labels = table[:, :4].astype(np.int64)
    return PairScores(table[:, 4:], labels[:, 1:3], labels[:, 3])


def preference_metrics(found: PairScores) -> dict[str, float]:
    """eval/reward_accuracy (a tie counts half) and eval/safety_accuracy with their 95 % bounds, eval/reward_margin.

    eval/safety_accuracy: over the labelled replies, the share that scores above 0 where they are safe and not where
    they are unsafe; left out where none is labelled.
    """
    n, right = len(found), found.right
    metrics = with_interval("eval/reward_accuracy", float(right.mean()), wilson(round(right.sum()), n))
    metrics["eval/reward_margin"] = float((found.scores[:, 0] - found.scores[:, 1]).mean())
    known = found.safe != UNKNOWN
    if count := int(known.sum()):
        hits = int(_told_right(found)[known].sum())
        metrics |= with_interval("eval/safety_accuracy", hits / count, wilson(hits, count))
    return metrics


def pair_calibration(found: PairScores) -> tuple[list[Bin], float]:
    """Of the probability σ(difference of scores) that the reply with the higher score is the chosen one, 0.5 to 1; and
    the expected calibration error."""
    difference = np.abs(found.scores[:, 0] - found.scores[:, 1])
    bins = calibration(_logistic(difference), found.right, low=0.5)
    return bins, expected_calibration_error(bins)


def reply_calibration(scores: np.ndarray, labels: np.ndarray) -> tuple[list[Bin], float]:
    """Of the probability σ(score) that a reply has label 1, over single replies (M,), (M,)."""
    bins = calibration(_logistic(scores), labels.astype(np.float64))
    return bins, expected_calibration_error(bins)


ACCURACY_COLUMNS = ["category", "pairs", "right", "accuracy", "95 % from", "to", "margin"]
ACCURACY_COLUMNS += ["labelled replies", "told right", "their accuracy", "95 % from ", "to "]


def accuracy_table(found: PairScores, categories: Sequence[str]) -> list[list[Any]]:
    """ACCURACY_COLUMNS by category, the most frequent first; [] without any. The last five are of single replies with a
    safety label, None where there is none."""
    rows: list[list[Any]] = []
    for number, name in enumerate(categories):
        inside = found.category == number
        if count := int(inside.sum()):
            right = float(found.right[inside].sum())
            margin = float((found.scores[inside, 0] - found.scores[inside, 1]).mean())
            known = inside[:, None] & (found.safe != UNKNOWN)
            n, hits = int(known.sum()), int(_told_right(found)[known].sum())
            replies = [n, hits, hits / n, *wilson(hits, n)] if n else [None] * 5
            rows.append([name, count, right, right / count, *wilson(round(right), count), margin, *replies])
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def with_categories(
    found: PairScores, known: Sequence[str], of_pair: Callable[[int], str]
) -> tuple[PairScores, list[str]]:
    """The scores of all N pairs of some data with a category for each, and what these are called: the data's own
    (`known`), else of_pair(number), "none" where that is "". One that two call alike is one."""
    own = [
        known[number] if number != UNKNOWN else of_pair(pair) or "none" for pair, number in enumerate(found.category)
    ]
    names = list(dict.fromkeys(own))
    return replace(found, category=np.array([names.index(name) for name in own])), names


def safety_table(found: PairScores) -> list[list[Any]]:
    """Rows [label, replies, told right, accuracy, 95 % from, to] for safe and unsafe replies; [] without labels."""
    rows: list[list[Any]] = []
    for name, label in (("safe", 1), ("unsafe", 0)):
        inside = found.safe == label
        if count := int(inside.sum()):
            hits = int(_told_right(found)[inside].sum())
            rows.append([name, count, hits, hits / count, *wilson(hits, count)])
    return rows


def _told_right(found: PairScores) -> np.ndarray:
    return (found.scores > 0) == (found.safe == 1)


def _logistic(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x)).sigmoid().numpy()
