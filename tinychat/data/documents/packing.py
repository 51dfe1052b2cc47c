"""Blocks of the context's length, cut from one stream of tokens, in a seeded order that can be entered
anywhere."""

from __future__ import annotations

import numpy as np
import torch

from tinychat.data.batching import Epochs, share_of
from tinychat.errors import UserError


def document_segments(input_ids: torch.Tensor, begin_id: int) -> dict[str, torch.Tensor]:
    """Which document each token belongs to, so that it sees no other: `segments` and `position_ids` of token_nll.

    input_ids: (B, T), documents that each begin with begin_id (text_beginning's first): where that is the end of text,
    the end of a document is the first token of the next. Returns int64 (B, T): `segments` from 1 on, `position_ids`
    from 0 in each document and in the piece of one with which a row may begin.
    """
    begins = input_ids == begin_id
    position = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return {
        "segments": begins.cumsum(1) + 1,
        "position_ids": position - torch.where(begins, position, 0).cummax(1).values,
    }


class PackedBlocks:
    """Training batches as a pure function of the step.

    The stream is taken as a ring of N tokens. In each epoch it is cut into n_blocks = N // context_length
    blocks from a seeded offset on, and the blocks come in a seeded order: every token is a target once an
    epoch, but for the fewer than context_length that fill no block, other ones each time. The rows of a step
    depend on the step, the batch size and the seed alone, so a resumed run goes on exactly, and any number of
    ranks share the same global batch.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, seed: int, in_order: bool = False) -> None:
        """`tokens`: [N], any integer type, a memmap stays on the disk. `in_order`: the first epoch reads the
        stream from its beginning to its end, for text that is a curriculum. Raises UserError where they
        fill no block."""
        if len(tokens) <= context_length:
            raise UserError(
                f"the training text has {len(tokens):,} tokens, too few for a block of stage.context_length="
                f"{context_length}; give more text or a context of at most {max(1, len(tokens) - 1)}"
            )
        self.tokens, self.context_length, self.in_order = tokens, context_length, in_order
        self.n_blocks = len(tokens) // context_length
        self._orders = Epochs(seed, self._draw)

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Epochs gone through before `step` (0-based), with the fraction."""
        return step * batch_size / self.n_blocks

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        """Rows [rank * B / world_size, (rank + 1) * B / world_size) of the global batch of B = batch_size
        sequences.

        Returns int64 `input_ids` and `targets`, each [B / world_size, T]; targets[b, t] follows input_ids[b,
        t].
        """
        places = share_of(batch_size, rank, world_size)
        block: np.ndarray = np.empty((len(places), self.context_length + 1), np.int64)
        for row, place in zip(block, places, strict=True):
            self._read(self._start(step * batch_size + place), row)
        both = torch.from_numpy(block)
        return {"input_ids": both[:, :-1].contiguous(), "targets": both[:, 1:].contiguous()}

    def _start(self, sample: int) -> int:
        """Where in the stream the sample (0-based, counted over all epochs) begins."""
        epoch, position = divmod(sample, self.n_blocks)
        offset, order = self._orders[epoch]
        return (offset + int(order[position]) * self.context_length) % len(self.tokens)

    def _draw(self, random: np.random.Generator, epoch: int) -> tuple[int, np.ndarray]:
        """The epoch's offset and permutation."""
        drawn = int(random.integers(len(self.tokens))), random.permutation(self.n_blocks)
        return (0, np.arange(self.n_blocks)) if self.in_order and epoch == 0 else drawn

    def _read(self, start: int, row: np.ndarray) -> None:
        there = self.tokens[start : start + len(row)]
        row[: len(there)] = there
        row[len(there) :] = self.tokens[: len(row) - len(there)]
