"""How well a reward model tells the chosen from the rejected reply of held-out pairs, and safe from unsafe replies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.evaluation.replies import with_interval
from tinychat.evaluation.statistics import Bin, calibration, expected_calibration_error, wilson
from tinychat.models.reward import raw_scores
from tinychat.runtime.world import World

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
    """Scores of all ranks' batches (see data.preferences.batches.eval_pairs), each pair once.

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


def accuracy_table(found: PairScores, categories: Sequence[str]) -> list[list[Any]]:
    """Rows [category, pairs, right, accuracy, 95 % from, to, margin], the most frequent first; [] without any."""
    rows: list[list[Any]] = []
    for number, name in enumerate(categories):
        inside = found.category == number
        if count := int(inside.sum()):
            right = float(found.right[inside].sum())
            margin = float((found.scores[inside, 0] - found.scores[inside, 1]).mean())
            rows.append([name, count, right, right / count, *wilson(round(right), count), margin])
    return sorted(rows, key=lambda row: (-row[1], row[0]))


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
