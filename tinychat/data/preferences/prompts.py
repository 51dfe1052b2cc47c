"""Prompts as batches for rollouts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerFast

from tinychat.config.schema import OnBadRow
from tinychat.data.chats.rows import BadRow, ChatRow, LeftOut, Message
from tinychat.data.preferences.batches import SeededOrder
from tinychat.data.preferences.prompt_files import PromptRow
from tinychat.data.preferences.prompt_sources import PromptSource, prompt_source
from tinychat.errors import UserError
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import try_prompts

__all__ = ["PromptBatch", "PromptBatches", "PromptRow", "PromptSource", "prompt_source"]
OneRow = TypeVar("OneRow", PromptRow, ChatRow)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptBatch:
    """B prompts of one step, in order."""

    rows: list[PromptRow]
    ids: list[list[int]]  # the tokens of each, ending where the reply begins
    indices: list[int]  # of each in PromptBatches.rows


class PromptBatches:
    """Prompts for rollouts as a pure function of the step: each once an epoch, in a seeded order, the same for
    any number of ranks."""

    def __init__(
        self,
        rows: Iterable[PromptRow],
        tokenizer: PreTrainedTokenizerFast,
        context_length: int,
        response_length: int,
        seed: int,
        on_long: OnBadRow = OnBadRow.fail,
    ) -> None:
        """`on_long`: whether prompts that leave less than `response_length` tokens of the context, and those that the
        template refuses, end the job or are left out with a warning (the source's on_bad_row). Raises UserError for
        those, which counts them and names the longest, where no prompt is left, and for a response as long as the
        context."""
        room = context_length - response_length
        if response_length < 1 or room < 1:
            raise UserError(
                f"stage.response_length={response_length}: at least 1, and less than the context of {context_length} "
                "tokens, which prompt and response share"
            )
        rows = list(rows)
        if not rows:
            raise UserError(
                "there are no prompts: the prompt set is empty; give data with at least one (data.path=...)"
            )
        left_out = LeftOut(on_long)
        rows, ids = with_prompts(tokenizer, rows, [row.messages for row in rows], left_out)
        if not rows:
            raise UserError(f"there are no prompts left: {left_out.reason()}")
        left_out.warn("prompts")
        fitting = [index for index, prompt in enumerate(ids) if len(prompt) <= room]
        if len(fitting) < len(rows):
            what = _too_long(rows, ids, context_length, response_length)
            if on_long is OnBadRow.fail or not fitting:
                skip = "" if not fitting else ", or leave them out: data.on_bad_row=skip"
                raise UserError(f"{what}; lower stage.response_length, take a model with a longer context{skip}")
            log.warning("%s; left out", what)
        self.rows, self.ids = [rows[index] for index in fitting], [ids[index] for index in fitting]
        self.n_dropped = len(rows) - len(fitting)
        self._order = SeededOrder(len(self.rows), seed)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.ids))

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Epochs gone through before `step` (0-based), with the fraction."""
        return self._order.epoch_of(step, batch_size)

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> PromptBatch:
        """Prompts [rank * B / world_size, (rank + 1) * B / world_size) of the step's B = batch_size."""
        indices = self._order.items(step, batch_size, rank, world_size).tolist()
        return PromptBatch([self.rows[index] for index in indices], [self.ids[index] for index in indices], indices)


def with_prompts(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[OneRow], prompts: list[list[Message]], left_out: LeftOut
) -> tuple[list[OneRow], list[list[int]]]:
    """The rows whose prompts (messages that a reply is to follow) the template can write, and the tokens of those; the
    others go to `left_out`."""
    kept, ids = [], []
    for row, prompt in zip(rows, try_prompts(tokenizer, prompts), strict=True):
        if isinstance(prompt, Refused):
            left_out.add(BadRow(row.place, str(prompt)))
        else:
            kept.append(row)
            ids.append(prompt)
    return kept, ids


def _too_long(rows: list[PromptRow], ids: list[list[int]], context_length: int, response_length: int) -> str:
    room = context_length - response_length
    count, longest = sum(len(prompt) > room for prompt in ids), max(range(len(ids)), key=lambda index: len(ids[index]))
    return (
        f"{count:,} of {len(rows):,} prompts are longer than the {room} tokens that a context of {context_length} "
        f"leaves beside stage.response_length={response_length}; the longest has "
        f"{len(ids[longest]):,} tokens ({rows[longest].place})"
    )
