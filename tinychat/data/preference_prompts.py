"""Prompts alone, for reinforcement learning: those of any source of preferences or conversations."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from transformers import PreTrainedTokenizerFast

from tinychat.data.chat_rows import BadRow, ChatRow, LeftOut, Message
from tinychat.data.chat_sources import ChatSource, chat_source
from tinychat.data.preference_batches import SeededOrder
from tinychat.data.preference_rows import PreferenceRow
from tinychat.data.preference_sources import SOURCES, PreferenceSource, preference_source
from tinychat.data.prompt_files import PromptFiles, PromptRow, prompt_files
from tinychat.data.splits import Split
from tinychat.errors import UserError
from tinychat.schema import DataConfig, OnBadRow, Source
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import try_prompts

__all__ = ["PromptBatch", "PromptBatches", "PromptRow", "PromptSource", "prompt_source"]
OneRow = TypeVar("OneRow", PromptRow, ChatRow)
Shape = Literal["preferences", "conversations"]
READING_VERSION = 2  # raise it when the same rows would give other prompts
log = logging.getLogger(__name__)


@dataclass
class PromptSource:
    """The different prompts of one split."""

    rows_of: PreferenceSource | ChatSource | PromptFiles
    n_duplicates: int = 0  # rows left out by the latest rows(), whole after its end
    first_duplicate: str = ""  # where the first of them stands

    @property
    def name(self) -> str:
        return self.rows_of.name

    @property
    def description(self) -> str:
        return f"the prompts of {self.rows_of.description}"

    @property
    def on_bad_row(self) -> OnBadRow:
        return self.rows_of.on_bad_row

    def rows(self) -> Iterator[PromptRow]:
        """Each prompt once for all that a reply to it is judged by, in the order of the first row that has it. Raises
        what the source's rows() do."""
        self.n_duplicates, self.first_duplicate = 0, ""
        seen: set[bytes] = set()
        for row in self.rows_of.rows():
            prompt = _prompt(row)
            key = hashlib.blake2b(json.dumps(_identity(row, prompt)).encode(), digest_size=16).digest()
            if key in seen:
                self.n_duplicates += 1
                self.first_duplicate = self.first_duplicate or row.place
                continue
            seen.add(key)
            yield prompt
        if self.n_duplicates:
            what = "rows left out, whose prompt an earlier row has"
            log.info("%s: %d %s; the first at %s", self.name, self.n_duplicates, what, self.first_duplicate)

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what rows() yields."""
        return hashlib.sha256(f"prompts {READING_VERSION}\0{self.rows_of.fingerprint(memo_dir)}".encode()).hexdigest()


def prompt_source(config: DataConfig, split: Split, shape: Shape | None = None) -> PromptSource:
    """The prompts of one split, found but not yet read: of preferences, of conversations (without their last
    reply) or of a user's own files. `shape` matters where a source has both (tinyworld); None takes its
    preferences. Raises UserError as preference_source, chat_source and prompt_files do."""
    if config.source is Source.prompts:
        return PromptSource(prompt_files(config, split))
    if shape is None:
        shape = "preferences" if config.source in SOURCES else "conversations"
    find: Callable[[DataConfig, Split], PreferenceSource | ChatSource]
    find = preference_source if shape == "preferences" else chat_source
    return PromptSource(find(config, split))


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


def _prompt(row: PreferenceRow | ChatRow | PromptRow) -> PromptRow:
    if isinstance(row, PromptRow):
        return row
    if isinstance(row, PreferenceRow):
        return PromptRow(row.prompt, row.place, row.category, row.harmful, request=row.request)
    reference = row.messages[-1]["content"]
    return PromptRow(row.messages[:-1], row.place, family=row.family, answer=row.answer, reference=reference)


def _identity(row: PreferenceRow | ChatRow | PromptRow, prompt: PromptRow) -> list[Any]:
    """What makes two rows one prompt. All that a user's own row of prompts says counts; of others what a verifier
    reads: that two pairs have other replies, or two conversations without a checkable answer, changes nothing."""
    if isinstance(row, PromptRow):
        return [prompt.messages, prompt.answer, prompt.reference, prompt.category, prompt.harmful]
    return [prompt.messages, prompt.answer, prompt.reference if prompt.answer else ""]
