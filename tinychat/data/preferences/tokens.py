"""Preferences as tokens: encoded once (tinychat.data.files.encoded, two sequences a pair, the chosen one of pair i at
2i, the rejected one at 2i + 1), and in batches, padded on the right, in a seeded order that can be entered anywhere.

Beside ids.bin and ends.bin a cache has prompts.bin (for each sequence, how many tokens its prompt has) and labels.bin
(for each, whether the reply is safe, the category and the severity of harm).

A reward model reads the last token of a reply, which has to be its end token, as in rollouts. So no reply is
ever cut: of a dialogue that is too long the oldest turns are left out, alike on both sides, and a pair that is
too long still is left out as a whole. What the template writes after the end token is left out too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tinychat.data.batching import SeededOrder, padded_width, shared_groups
from tinychat.data.chats.rows import BadRow
from tinychat.data.files.encoded import Encoded, EncodedRows, Kind, TooLong, common_fields, encoded_cache
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.data.preferences.sources import Part, PreferenceSource
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import NOTHING_TRAINED, EncodedChat, check_trained, try_chats

PAIRS = Kind(
    folder="preferences",
    version=2,
    chunk=1024,
    types={"ends": "<i8", "prompts": "<i8", "labels": "<i2"},
    units="pairs",
    too_long="longer than",
)
UNKNOWN = -1  # a label that the data do not give
LABELS = ("safe", "category", "severity")  # columns of labels.bin


class Side(NamedTuple):
    """The tokens of a prompt with one of its replies, up to the reply's end token."""

    ids: np.ndarray  # (T,) int32
    prompt_length: int


@dataclass(frozen=True)
class PreferenceCache(EncodedRows):
    """The N pairs of one split or part as 2N sequences. n_cut: pairs whose oldest turns were left out; n_dropped: pairs
    of which a side is longer than `length`."""

    prompt_lengths: np.ndarray  # int64 [2N]: tokens before the reply
    labels: np.ndarray  # int16 [2N, 3]: columns LABELS, UNKNOWN (-1) where there is none; `category` is the pair's
    categories: list[str]  # that the labels number

    def __len__(self) -> int:
        return len(self.prompt_lengths) // 2

    def describe(self) -> str:
        replies = 1 - self.prompt_lengths.sum() / self.n_tokens
        notes = self.notes("with older turns left out")
        return f"{len(self):,} pairs, {self.n_tokens:,} tokens, {replies:.0%} of them replies{notes}"


def preference_cache(
    source: PreferenceSource,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    cache_dir: Path,
    progress: bool,
    part: Part | None = None,
) -> PreferenceCache:
    """The source's preferences (or one part of them) with at most `length` tokens a side. Raises UserError as
    encoded_cache, and with on_bad_row=fail for a pair that is too long."""
    categories: dict[str, int] = {}

    def encode(rows: list[PreferenceRow]) -> Iterator[Encoded | BadRow]:
        _check_first(tokenizer, rows[0])
        for row, sides, shortened in encode_pairs(tokenizer, rows, length):
            if isinstance(sides, BadRow):
                yield sides
            elif (longest := max(len(side.ids) for side in sides)) > length:
                yield TooLong(
                    row.place,
                    f"its longer side has {longest:,} tokens, too many for stage.context_length={length}, which may be "
                    "raised",
                )
            else:
                prompts = [side.prompt_length for side in sides]
                arrays = {"prompts": prompts, "labels": np.ravel(_labels(row, categories))}
                yield Encoded([side.ids for side in sides], arrays, shortened)

    return encoded_cache(
        PAIRS,
        f"{source.name}-{part}" if part else source.name,
        source,
        rows=lambda: source.rows(part),
        encode=encode,
        made=lambda folder, meta, arrays: PreferenceCache(
            **common_fields(folder, meta, arrays),
            prompt_lengths=np.array(arrays["prompts"]),
            labels=np.array(arrays["labels"]).reshape(-1, len(LABELS)),
            categories=meta["categories"],
        ),
        tokenizer=tokenizer,
        length=length,
        fingerprint=source.fingerprint(cache_dir, part),
        cache_dir=cache_dir,
        progress=progress,
        facts=lambda: {"part": part, "categories": list(categories)},
        most_rows=source.max_rows,
    )


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast, rows: list[PreferenceRow], length: int
) -> Iterator[tuple[PreferenceRow, tuple[Side, Side] | BadRow, bool]]:
    """Each row, its chosen and its rejected side, and whether the oldest turns were left out so that both have
    at most `length` tokens. Where they are too long even so, they come as they are; in place of sides that the template
    cannot write, the reason."""
    done: dict[int, tuple[tuple[Side, Side] | BadRow, bool]] = {}
    pending = dict(enumerate(rows))
    shortened = False
    while pending:
        chats = list(try_chats(tokenizer, [chat for row in pending.values() for chat in row.conversations()]))
        for index, chosen, rejected in zip(list(pending), chats[::2], chats[1::2], strict=True):
            row = pending.pop(index)
            first, second = _side(chosen, row.place), _side(rejected, row.place)
            if isinstance(first, BadRow):
                done[index] = first, shortened
                continue
            if isinstance(second, BadRow):
                done[index] = second, shortened
                continue
            sides = first, second
            shorter = None if max(len(side.ids) for side in sides) <= length else _without_oldest_turn(row)
            if shorter:
                pending[index] = shorter
            else:
                done[index] = sides, shortened
        shortened = True
    for index, row in enumerate(rows):
        yield row, *done[index]


def _side(encoded: EncodedChat | Refused, place: str) -> Side | BadRow:
    """Where the template cannot write it, or trains nothing of the reply, the reason."""
    if isinstance(encoded, Refused):
        return BadRow(place, str(encoded))
    if not encoded.trained.any():
        return BadRow(place, NOTHING_TRAINED)
    end = len(encoded.ids) - int(encoded.trained[::-1].argmax())
    return Side(encoded.ids[:end], encoded.prompt_length)


def _without_oldest_turn(row: PreferenceRow) -> PreferenceRow | None:
    """The row without its first user message and the reply to that; None where it has but one turn."""
    first = next(index for index, message in enumerate(row.prompt) if message["role"] == "user")
    if len(row.prompt) == first + 1:
        return None
    return replace(row, prompt=[*row.prompt[:first], *row.prompt[first + 2 :]])


def _check_first(tokenizer: PreTrainedTokenizerFast, row: PreferenceRow) -> None:
    """Raises UserError where the template leaves out the end token, which is the same for all rows."""
    for encoded in try_chats(tokenizer, list(row.conversations())):
        if not isinstance(encoded, Refused) and encoded.trained.any():
            check_trained(tokenizer, encoded, row.place)


def _labels(row: PreferenceRow, categories: dict[str, int]) -> list[tuple[int, int, int]]:
    """Of both sides, as labels.bin has them. New categories get the next number."""
    category = categories.setdefault(row.category, len(categories)) if row.category else UNKNOWN
    sides = ((row.chosen_safe, row.chosen_severity), (row.rejected_safe, row.rejected_severity))
    return [
        (UNKNOWN if safe is None else int(safe), category, UNKNOWN if severity is None else severity)
        for safe, severity in sides
    ]


@dataclass(frozen=True)
class Usable:
    """Which pairs of a cache a policy can learn from: those that say anything."""

    pairs: np.ndarray  # int64, their numbers in the cache
    n_equal: int  # left out: both sides are the same tokens
    n_bare: int  # left out: of a side there is no reply, only its prompt

    def left_out(self) -> str:
        """In words; "" where none is."""
        counts = {"the same tokens on both sides": self.n_equal, "a side without a reply": self.n_bare}
        return ", ".join(f"{count:,} with {what}" for what, count in counts.items() if count)


def usable_pairs(cache: PreferenceCache) -> Usable:
    lengths, prompts = cache.lengths.reshape(-1, 2), cache.prompt_lengths.reshape(-1, 2)
    bare = (prompts >= lengths).any(1)
    equal: np.ndarray = np.zeros(len(cache), bool)
    for pair in np.flatnonzero(~bare & (lengths[:, 0] == lengths[:, 1])):
        begin, middle, end = cache.starts[2 * pair : 2 * pair + 3]
        equal[pair] = np.array_equal(cache.all_ids[begin:middle], cache.all_ids[middle:end])
    return Usable(np.flatnonzero(~bare & ~equal), int(equal.sum()), int(bare.sum()))


class PreferenceBatches:
    """Training batches as a pure function of the step.

    Each epoch goes through all pairs once, in a seeded order. What a step holds depends on the step, the batch
    size and the seed alone, so a resumed run goes on exactly, and any number of ranks share the same global
    batch.
    """

    def __init__(self, cache: PreferenceCache, seed: int, pairs: np.ndarray | None = None) -> None:
        """pairs: numbers of those that there are to learn from; None: all of the cache."""
        self.cache = cache
        self._pairs: np.ndarray = np.arange(len(cache)) if pairs is None else pairs
        self._order = SeededOrder(len(self._pairs), seed)

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Epochs gone through before `step` (0-based), with the fraction."""
        return self._order.epoch_of(step, batch_size)

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        """A rank's share of the step's global batch of `batch_size` pairs, as collate_pairs gives it; T is that
        of the longest sequence of the global batch, rounded up to a multiple of 8."""
        longest = self._lengths(step, batch_size).max()
        pairs = self._pairs[self._order.items(step, batch_size, rank, world_size)]
        return collate_pairs(self.cache, pairs, padded_width(int(longest), self.cache.length))

    def micro_batches(
        self, step: int, batch_size: int, size: int, rank: int = 0, world_size: int = 1
    ) -> list[dict[str, torch.Tensor]]:
        """A rank's share of the step's global batch as micro-batches of `size` pairs (or fewer where the share is
        smaller), each no wider than its own longest sequence needs. Pairs of like length come together and every rank
        gets long ones and short ones, so that there is little padding and nobody waits."""
        pairs = self._pairs[self._order.items(step, batch_size)]
        longest = self.cache.lengths.reshape(-1, 2)[pairs].max(axis=1)
        own = np.argsort(-longest, kind="stable")[rank::world_size]
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        return [
            collate_pairs(self.cache, pairs[part], padded_width(int(longest[part].max()), self.cache.length))
            for part in parts
        ]

    def tokens(self, step: int, batch_size: int) -> int:
        """Tokens that are no padding of the step's global batch, both sides."""
        return int(self._lengths(step, batch_size).sum())

    def _lengths(self, step: int, batch_size: int) -> np.ndarray:
        return self.cache.lengths.reshape(-1, 2)[self._pairs[self._order.items(step, batch_size)]]


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
    return collate_replies(cache, (2 * pairs[:, None] + np.arange(2)).ravel(), width)


def collate_replies(cache: PreferenceCache, rows: np.ndarray, width: int) -> dict[str, torch.Tensor]:
    """As collate_pairs, of single replies: row 2i is the chosen one of pair i, row 2i + 1 its rejected one."""
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


def replies_by_length(
    cache: PreferenceCache, rows_of: Callable[[int], int]
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """All replies once, the longest first, as collate_replies gives them and with their rows. rows_of: width of a
    batch, padding included -> how many it has."""
    order = np.argsort(-cache.lengths, kind="stable")
    while len(order):
        width = padded_width(int(cache.lengths[order[0]]), cache.length)
        fits = rows_of(width)
        yield order[:fits], collate_replies(cache, order[:fits], width)
        order = order[fits:]


def eval_pairs(
    cache: PreferenceCache,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    max_pairs: int | None = None,
    pairs: np.ndarray | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of up to batch_size pairs each, as collate_pairs gives them, shared among the ranks as shared_groups
    says: the `pair` of what does not count is UNKNOWN. `max_pairs` takes that many pairs, of
    those in `pairs` (numbers; None: all)."""
    numbers = np.arange(len(cache)) if pairs is None else pairs
    longest = cache.lengths.reshape(-1, 2).max(axis=1)
    for places, counts in shared_groups(longest[numbers], batch_size, rank, world_size, max_pairs):
        group = numbers[places]
        batch = collate_pairs(cache, group, padded_width(int(longest[group].max()), cache.length))
        if not counts:
            batch["pair"].fill_(UNKNOWN)
        yield batch
