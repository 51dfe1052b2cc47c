"""Batches of preference pairs, padded on the right, in a seeded order that can be entered anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tinychat.data.chats.batches import padded_width
from tinychat.data.preferences.cache import LABELS, UNKNOWN, PreferenceCache
from tinychat.errors import UserError


class SeededOrder:
    """Endless epochs over `count` items, each epoch in an order of its own that depends on seed and epoch
    alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._orders: dict[int, np.ndarray] = {}

    def items(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """A rank's share, in order, of the items of a global batch: int64 [B / world_size], those at [rank * B
        / world_size, (rank + 1) * B / world_size). Raises UserError where B does not divide."""
        if batch_size % world_size:
            raise UserError(
                f"stage.batch_size={batch_size} does not divide over {world_size} ranks; "
                f"use {max(1, batch_size // world_size) * world_size} or another multiple of {world_size}"
            )
        share = batch_size // world_size
        first = step * batch_size + rank * share
        return np.array([self._item(index) for index in range(first, first + share)], dtype=np.int64)

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Epochs gone through before `step` (0-based), with the fraction."""
        return step * batch_size / self.count

    def _item(self, index: int) -> int:
        epoch, position = divmod(index, self.count)
        if epoch not in self._orders:  # the latest two are kept, as a batch may lie across an epoch's end
            random = np.random.Generator(np.random.PCG64([self.seed % 2**64, epoch]))
            self._orders = dict([*self._orders.items(), (epoch, random.permutation(self.count))][-2:])
        return int(self._orders[epoch][position])


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
    """Batches of up to batch_size pairs each, as collate_pairs gives them, the longest first, so that there is
    little padding and the first batch shows whether memory suffices.

    Over all ranks every pair comes exactly once, and each rank gets the same number of batches: where they do
    not divide, some ranks' last is one pair whose `pair` is -1, not to be counted. `max_pairs` takes that many,
    at even distances.
    """
    longest = cache.lengths.reshape(-1, 2).max(axis=1)
    pairs = np.arange(len(cache))
    if max_pairs is not None and max_pairs < len(pairs):
        pairs = pairs[np.arange(max_pairs) * len(pairs) // max_pairs]
    pairs = pairs[np.argsort(-longest[pairs], kind="stable")]
    groups = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    for index in range(rank, -(-len(groups) // world_size) * world_size, world_size):
        group = groups[index] if index < len(groups) else pairs[-1:]
        batch = collate_pairs(cache, group, padded_width(int(longest[group].max()), cache.length))
        if index >= len(groups):
            batch["pair"].fill_(UNKNOWN)
        yield batch
