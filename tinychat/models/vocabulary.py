"""Which rows of an output head are tokens. A model has more rows than its tokenizer has tokens where their number was
rounded up, and where the tokenizer's ids have holes; what is no token must never be drawn, nor have a probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# In place of the logits of holes: a probability of 0 in fp32, and in every type finite, as 0 · inf is no number.
CLOSED = -3e4


@dataclass(frozen=True)
class Vocabulary:
    """The ids below `size` without `holes`; a size of None: all rows."""

    size: int | None = None
    holes: tuple[int, ...] = ()

    def of_logits(self, logits: Tensor) -> Tensor:
        """(n, V) -> (n, size), with the probabilities of tokens alone."""
        logits = logits[:, : self.size]
        if self.holes:
            logits = logits.index_fill(1, self._closed(logits), CLOSED)
        return logits

    def close(self, logits: Tensor) -> Tensor:
        """Of logits (n, size) that nobody else reads the same, in place."""
        return logits.index_fill_(1, self._closed(logits), CLOSED) if self.holes else logits

    def _closed(self, like: Tensor) -> Tensor:
        return torch.tensor(self.holes, device=like.device)


WHOLE = Vocabulary()


def vocabulary(tokenizer: Any) -> Vocabulary:
    """Of a tokenizer."""
    ids = set(tokenizer.get_vocab().values())
    size = max(ids, default=-1) + 1
    return Vocabulary(size, tuple(sorted(set(range(size)) - ids)))
