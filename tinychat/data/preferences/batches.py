"""Batches of preference pairs, padded on the right, in a seeded order that can be entered anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tinychat.data.batching import SeededOrder, padded_width, shared_groups
from tinychat.data.preferences.cache import LABELS, UNKNOWN, PreferenceCache


class PreferenceBatches:
    """Training batches as a pure function of the step.

    Each epoch goes through all pairs once, in a seeded order. What a step holds depends on the step, the batch
    size and the seed alone, so a resumed run goes on exactly, and any number of ranks share the same global
    batch.
    """

    def __init__(self, cache: PreferenceCache, seed: int) -> None:
        self.cache = cache
        self._order = SeededOrder(len(cache), seed)

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Epochs gone through before `step` (0-based), with the fraction."""
        return self._order.epoch_of(step, batch_size)

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        """A rank's share of the step's global batch of `batch_size` pairs, as collate_pairs gives it; T is that
        of the longest sequence of the global batch, rounded up to a multiple of 8."""
        longest = self._lengths(step, batch_size).max()
        pairs = self._order.items(step, batch_size, rank, world_size)
        return collate_pairs(self.cache, pairs, padded_width(int(longest), self.cache.length))

    def tokens(self, step: int, batch_size: int) -> int:
        """Tokens that are no padding of the step's global batch, both sides."""
        return int(self._lengths(step, batch_size).sum())

    def _lengths(self, step: int, batch_size: int) -> np.ndarray:
        return self.cache.lengths.reshape(-1, 2)[self._order.items(step, batch_size)]


def collate_pairs(cache: PreferenceCache, pairs: np.ndarray, width: int) -> dict[str, torch.Tensor]:
    """B pairs by number as 2B rows, each chosen row (2i) before its rejected one (2i + 1), so that any even
    slice of the rows holds whole pairs and `scores.view(-1, 2)` is [chosen, rejected]:

    - input_ids: int64 [2B, T = width], padded on the right.
    - attention_mask: bool [2B, T], false in padding.
    - response_mask: bool [2B, T], true on the reply, its end token included.
    - last: int64 [2B], the place of the last token that is no padding, the end token.
    - safe, category, severity: int64 [2B], labels of the reply (`category`, an index of cache.categories, of
      the pair); -1 where unknown.
    - pair: int64 [2B], the pair's number in the cache.
    """
    rows: np.ndarray = (2 * pairs[:, None] + np.arange(2)).ravel()
    sizes = cache.lengths[rows]
    place = np.arange(width)
    real = place < sizes[:, None]
    ids: np.ndarray = np.full((len(rows), width), cache.pad_id, np.int64)
    ids[real] = cache.all_ids[(cache.starts[rows][:, None] + place)[real]]
    batch = {
        "input_ids": ids,
        "attention_mask": real,
        "response_mask": real & (place >= cache.prompt_lengths[rows][:, None]),
        "last": sizes - 1,
        "pair": rows // 2,
        **{name: cache.labels[rows, column].astype(np.int64) for column, name in enumerate(LABELS)},
    }
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def eval_pairs(
    cache: PreferenceCache, batch_size: int, rank: int = 0, world_size: int = 1, max_pairs: int | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of up to batch_size pairs each, as collate_pairs gives them, shared among the ranks as shared_groups
    says: the `pair` of what does not count is UNKNOWN. `max_pairs` takes that many pairs."""
    longest = cache.lengths.reshape(-1, 2).max(axis=1)
    for group, counts in shared_groups(longest, batch_size, rank, world_size, max_pairs):
        batch = collate_pairs(cache, group, padded_width(int(longest[group].max()), cache.length))
        if not counts:
            batch["pair"].fill_(UNKNOWN)
        yield batch
