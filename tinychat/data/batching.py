"""What batches of documents, conversations, pairs and prompts share: epochs in a seeded order that can be entered
anywhere, the ranks' shares of a batch, and the groups of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np

from tinychat.errors import UserError

CACHED = 590_000  # numbers of a layer's states, tokens times width: more no longer stay in a core's caches
MULTIPLE = 8  # padded batches are as wide as a multiple of it, which suits the matrix kernels
Drawn = TypeVar("Drawn")


class Epochs(Generic[Drawn]):
    """What is drawn for each epoch, with a generator of its own that depends on the seed and the epoch alone: so a
    resumed run goes on exactly."""

    def __init__(self, seed: int, draw: Callable[[np.random.Generator, int], Drawn]) -> None:
        """draw: (generator, number of the epoch) -> what is kept of it."""
        self._seed, self._draw = seed, draw
        self._kept: dict[int, Drawn] = {}

    def __getitem__(self, number: int) -> Drawn:
        """The latest two are kept, as a batch may lie across an epoch's end."""
        if number not in self._kept:
            random = np.random.Generator(np.random.PCG64([self._seed % 2**64, number]))
            self._kept = dict([*self._kept.items(), (number, self._draw(random, number))][-2:])
        return self._kept[number]


class SeededOrder:
    """Endless epochs over `count` items, each epoch in an order of its own."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._orders = Epochs(seed, lambda random, _: random.permutation(count))

    def items(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """A rank's share (see share_of), in order, of the items of a global batch: int64 [B / world_size]."""
        places = share_of(batch_size, rank, world_size)
        numbers = (divmod(step * batch_size + place, self.count) for place in places)
        return np.array([self._orders[epoch][position] for epoch, position in numbers], dtype=np.int64)

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Epochs gone through before `step` (0-based), with the fraction."""
        return step * batch_size / self.count


def share_of(batch_size: int, rank: int, world_size: int) -> range:
    """The places [rank * B / world_size, (rank + 1) * B / world_size) of a global batch of B = batch_size. Raises
    UserError where it does not divide."""
    if batch_size % world_size:
        raise UserError(
            f"stage.batch_size={batch_size} does not divide over {world_size} ranks; "
            f"use {max(1, batch_size // world_size) * world_size} or another multiple of {world_size}"
        )
    share = batch_size // world_size
    return range(rank * share, (rank + 1) * share)


def padded_width(longest: int, most: int) -> int:
    """The longest length, rounded up to a multiple of 8, but at most `most`."""
    return min(-(-longest // MULTIPLE) * MULTIPLE, most)


def rows_at_once(length: int, most: int, width: int, device_type: str) -> int:
    """So many sequences of `length` tokens, at least one and at most `most`, a model of this width reads together best
    where no gradient is wanted: on a CPU no more than its caches hold, elsewhere all."""
    return max(1, min(most, CACHED // (width * length))) if device_type == "cpu" else most


def shared_groups(
    lengths: np.ndarray, batch_size: int, rank: int, world_size: int, most: int | None = None
) -> Iterator[tuple[np.ndarray, bool]]:
    """(items of up to batch_size, whether they count), the longest first, so that there is little padding and the first
    batch shows whether memory suffices.

    lengths: [N], of each item. Over all ranks every item comes exactly once, and each rank gets the same number of
    groups: where they do not divide, some ranks' last is one item that does not count. `most`: that many items are
    taken, at even distances.
    """
    items = np.arange(len(lengths))
    if most is not None and most < len(items):
        items = items[np.arange(most) * len(items) // most]
    items = items[np.argsort(-lengths[items], kind="stable")]
    groups = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    for index in range(rank, -(-len(groups) // world_size) * world_size, world_size):
        yield (groups[index], True) if index < len(groups) else (items[-1:], False)
