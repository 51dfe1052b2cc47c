"""Conversations as tokens: encoded once (tinychat.data.files.encoded, one sequence a conversation), and in batches,
packed side by side or padded, in a seeded order that can be entered anywhere.

Beside ids.bin and ends.bin a cache has trained.bin (one byte a token: whether it is a target) and n_trained.bin (how
many targets each conversation has).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tinychat.data.batching import Epochs, padded_width, share_of, shared_groups
from tinychat.data.chats.rows import BadRow, ChatRow
from tinychat.data.chats.sources import ChatSource
from tinychat.data.files.encoded import Encoded, EncodedRows, Kind, TooLong, common_fields, encoded_cache
from tinychat.errors import UserError
from tinychat.models.logprobs import IGNORED
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import NOTHING_TRAINED, EncodedChat, check_trained, try_chats

CHATS = Kind(
    folder="chats",
    version=2,
    chunk=2048,
    types={"trained": "?", "ends": "<i8", "n_trained": "<i8"},
    units="conversations",
    too_long="whose prompts leave no room for a reply in",
)


@dataclass(frozen=True)
class ChatCache(EncodedRows):
    """The N conversations of one split: sequence i is conversation i. n_cut: those whose end did not fit, so that turns
    were left out, or the only reply cut; n_dropped: those whose prompt fills `length`."""

    all_trained: np.ndarray  # bool [n_tokens]: the token is a target
    row_trained: np.ndarray  # int64 [N]: targets of each conversation

    def __len__(self) -> int:
        return len(self.row_trained)

    def ids(self, index: int) -> np.ndarray:
        """Tokens of one conversation."""
        return self.all_ids[self.starts[index] : self.starts[index + 1]]

    def trained(self, index: int) -> np.ndarray:
        """Which of them are targets: bool, as long as ids(index)."""
        return self.all_trained[self.starts[index] : self.starts[index + 1]]

    def prompt(self, index: int) -> list[int]:
        """What stands before the last reply that is trained."""
        starts, _ = _reply_spans(self.trained(index))
        return self.ids(index)[: starts[-1]].tolist()

    @property
    def n_trained(self) -> int:
        return int(self.row_trained.sum())

    def describe(self) -> str:
        share = self.n_trained / self.n_tokens
        notes = self.notes("cut to the context")
        return f"{len(self):,} conversations, {self.n_tokens:,} tokens, {share:.0%} of them trained{notes}"


def chat_cache(
    source: ChatSource, tokenizer: PreTrainedTokenizerFast, length: int, cache_dir: Path, progress: bool
) -> ChatCache:
    """The source's conversations as at most `length` tokens each. Raises UserError as encoded_cache, and with
    on_bad_row=fail for a prompt that leaves no room for a reply."""
    return encoded_cache(
        CHATS,
        source.name,
        source,
        rows=source.rows,
        encode=lambda rows: _encode(tokenizer, rows, length),
        made=lambda folder, meta, arrays: ChatCache(
            **common_fields(folder, meta, arrays),
            all_trained=arrays["trained"],
            row_trained=np.array(arrays["n_trained"]),
        ),
        tokenizer=tokenizer,
        length=length,
        fingerprint=source.fingerprint(cache_dir),
        cache_dir=cache_dir,
        progress=progress,
        most_rows=source.most_rows,
    )


def fit(encoded: EncodedChat, length: int) -> int:
    """How many of a conversation's tokens to keep so that they are at most `length`: through the last whole
    reply that fits; where not even the first does, as much of that as fits; 0 where its prompt leaves no room
    for a token of it. Tokens after the last reply teach nothing and are not needed.
    """
    if len(encoded.ids) <= length:
        return len(encoded.ids)
    starts, ends = _reply_spans(encoded.trained)
    whole = ends[ends <= length]
    if len(whole):
        return int(whole[-1])
    return length if starts[0] < length else 0


def without_untrained(row: ChatRow, encoded: EncodedChat) -> EncodedChat:
    """The conversation without the targets of replies that are context alone. Raises UserError where the template's
    targets do not tell the replies apart."""
    if not row.untrained:
        return encoded
    replies = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
    starts, ends = _reply_spans(encoded.trained)
    if len(starts) != len(replies):
        raise UserError(
            f"{row.place}: replies {len(replies)}, of which some have weight 0, but the template's targets are "
            f"{len(starts)} stretches; use template=instruct or chatml"
        )
    trained = encoded.trained.copy()
    for start, end, index in zip(starts, ends, replies, strict=True):
        if index in row.untrained:
            trained[start:end] = False
    return replace(encoded, trained=trained)


def _reply_spans(trained: np.ndarray) -> np.ndarray:
    """(2, replies): where each stretch of targets starts, and where it ends."""
    edges = np.diff(np.concatenate([[False], trained, [False]]).astype(np.int8))
    return np.flatnonzero(edges).reshape(-1, 2).T


def _encode(tokenizer: PreTrainedTokenizerFast, rows: list[ChatRow], length: int) -> Iterator[Encoded | BadRow]:
    """In place of a row that the template cannot write, of which it trains nothing, or that is too long, the reason.
    Raises UserError where it leaves out the end token of the first (which is the same for all)."""
    checked = False
    for row, encoded in zip(rows, try_chats(tokenizer, [row.messages for row in rows]), strict=True):
        if isinstance(encoded, Refused):
            yield BadRow(row.place, str(encoded))
            continue
        if not encoded.trained.any():
            yield BadRow(row.place, NOTHING_TRAINED)
            continue
        if not checked:
            check_trained(tokenizer, encoded, row.place)
        checked = True
        encoded = without_untrained(row, encoded)
        n = fit(encoded, length)
        if not n:
            prompt = int(encoded.trained.argmax())
            yield TooLong(
                row.place,
                f"its prompt has {prompt:,} tokens, too many for stage.context_length={length}, which may be raised",
            )
            continue
        trained = encoded.trained[:n]
        counted = {"trained": trained, "n_trained": [np.count_nonzero(trained[1:])]}
        yield Encoded([encoded.ids[:n]], counted, cut=bool(encoded.trained[n:].any()))


WINDOW = 256  # rows packed longest first; the wider, the fuller the bins and the less random what meets in one


@dataclass(frozen=True)
class Epoch:
    """One epoch's sequences in their order: sequence i holds rows[starts[i] : starts[i + 1]]."""

    first: int  # sequences of all epochs before
    rows: np.ndarray  # int64 [N], each conversation once
    starts: np.ndarray  # int64 [sequences + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def end(self) -> int:
        """Sequences of all epochs through this one."""
        return self.first + len(self)


class Held(NamedTuple):
    """What the global batch of a step holds."""

    tokens: int  # that are no padding
    trained: np.ndarray  # int64 [conversations], of the tokens of each


class ChatBatches:
    """Training batches as a pure function of the step.

    Each epoch goes through all conversations once, in a seeded order: packed, several to a sequence and never
    split, or one to a sequence. What a step holds depends on the step, the batch size and the seed alone, so a
    resumed run goes on exactly, and any number of ranks share the same global batch. Packing gives every epoch
    its own number of sequences; entering at a late step packs the epochs before it, some microseconds a row.
    """

    def __init__(self, cache: ChatCache, length: int, packing: bool, seed: int) -> None:
        """`length`: tokens of a packed sequence, and the most of a padded one. Raises UserError where a
        conversation is longer."""
        self.cache, self.length, self.packing = cache, length, packing
        self._lengths, self._trained = cache.lengths, cache.row_trained
        if (longest := int(self._lengths.max())) > length:
            raise UserError(f"stage.context_length={length}: a conversation has {longest} tokens; raise it to that")
        self._ends: list[int] = []  # for each epoch packed so far, sequences through its end
        self._epochs = Epochs(seed, self._draw)

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Epochs gone through before `step` (0-based), with the fraction."""
        number, epoch = self._find(step * batch_size)
        return number + (step * batch_size - epoch.first) / len(epoch)

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        """Sequences [rank * B / world_size, (rank + 1) * B / world_size) of the global batch of B = batch_size.

        Returns int64 tensors [B / world_size, T], as collate does; T is `length` with packing, else that of
        the longest conversation of the global batch, rounded up to a multiple of 8.
        """
        mine = share_of(batch_size, rank, world_size)
        sequences = self.sequences(step, batch_size)
        width = self.length
        if not self.packing:
            width = padded_width(max(int(self._lengths[rows].max()) for rows in sequences), self.length)
        return collate(self.cache, sequences[mine.start : mine.stop], width)

    def held(self, step: int, batch_size: int) -> Held:
        """What the step's global batch holds, over all ranks."""
        rows = np.concatenate(self.sequences(step, batch_size))
        return Held(int(self._lengths[rows].sum()), self._trained[rows])

    def sequences(self, step: int, batch_size: int) -> list[np.ndarray]:
        """The conversations, by their numbers, of each sequence of the global batch."""
        found = []
        for sequence in range(step * batch_size, (step + 1) * batch_size):
            _, epoch = self._find(sequence)
            start, end = epoch.starts[sequence - epoch.first : sequence - epoch.first + 2]
            found.append(epoch.rows[start:end])
        return found

    def _find(self, sequence: int) -> tuple[int, Epoch]:
        """The epoch, and its number, that a sequence (0-based, counted over all epochs) lies in."""
        while not self._ends or sequence >= self._ends[-1]:
            self._ends.append(self._epochs[len(self._ends)].end)
        number = int(np.searchsorted(self._ends, sequence, side="right"))
        return number, self._epochs[number]

    def _draw(self, random: np.random.Generator, number: int) -> Epoch:
        """All epochs before it have been packed."""
        rows = random.permutation(len(self.cache))
        starts = np.arange(len(rows) + 1)
        if self.packing:
            bins = pack(self._lengths, self.length, rows)
            bins = [bins[index] for index in random.permutation(len(bins))]
            rows = np.array([row for one in bins for row in one])
            starts = np.cumsum([0, *map(len, bins)])
        return Epoch(self._ends[number - 1] if number else 0, rows, starts)


def pack(lengths: np.ndarray, length: int, order: np.ndarray) -> list[list[int]]:
    """Rows in bins of `length` tokens at most: WINDOW rows of `order` at a time, longest first, each into the
    fullest bin that has room for it (best fit)."""
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # [free]: bins with so many tokens free
    rooms = 0  # bit `free` is set where with_room[free] is not empty
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        window = window[np.argsort(-lengths[window], kind="stable")]
        for row, size in zip(window.tolist(), lengths[window].tolist(), strict=True):
            if fitting := rooms >> size:
                free = size + (fitting & -fitting).bit_length() - 1  # the lowest bit that is set
                index = with_room[free].pop()
                if not with_room[free]:
                    rooms ^= 1 << free
                bins[index].append(row)
            else:
                free, index = length, len(bins)
                bins.append([row])
            if left := free - size:
                with_room[left].append(index)
                rooms |= 1 << left
    return bins


class Conversations(Protocol):
    """N conversations as tokens, one after the other: of a cache, or made while training."""

    @property
    def all_ids(self) -> np.ndarray: ...
    @property
    def all_trained(self) -> np.ndarray: ...
    @property
    def starts(self) -> np.ndarray: ...  # [N + 1]
    @property
    def lengths(self) -> np.ndarray: ...  # [N]
    @property
    def pad_id(self) -> int: ...


def collate(cache: Conversations, sequences: Sequence[np.ndarray], width: int) -> dict[str, torch.Tensor]:
    """Conversations by row number, several to a sequence, as int64 tensors [B, T = width]:

    - input_ids: all tokens of each, one after the other; then padding.
    - targets: the token after this one where it is trained and of the same conversation, else -100.
    - position_ids: from 0 in each conversation; 0 in padding.
    - segments: the conversation's number in the sequence, from 1; 0 in padding.
    """
    counts = [len(rows) for rows in sequences]
    rows = np.concatenate(sequences)
    sizes = cache.lengths[rows]
    ends = np.cumsum(sizes)
    first: np.ndarray = np.repeat(np.cumsum([0, *counts])[:-1], counts)  # in the sequence of each
    column = (ends - sizes) - (ends - sizes)[first]  # where it begins in its sequence

    def per_token(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, sizes)

    position = np.arange(ends[-1]) - per_token(ends - sizes)
    source = per_token(cache.starts[rows]) + position
    following = np.where(position + 1 < per_token(sizes), source + 1, source)
    is_target = (following > source) & cache.all_trained[following]
    there = per_token(np.repeat(np.arange(len(counts)), counts)), per_token(column) + position
    filled = {
        "input_ids": (cache.pad_id, cache.all_ids[source]),
        "targets": (IGNORED, np.where(is_target, cache.all_ids[following].astype(np.int64), IGNORED)),
        "position_ids": (0, position),
        "segments": (0, per_token(np.arange(len(rows)) - first + 1)),
    }
    batch = {}
    for name, (padding, values) in filled.items():
        array: np.ndarray = np.full((len(sequences), width), padding, np.int64)
        array[there] = values
        batch[name] = torch.from_numpy(array)
    return batch


def eval_batches(
    cache: ChatCache, batch_size: int, rank: int = 0, world_size: int = 1, max_rows: int | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches of up to batch_size conversations each, as collate gives them, shared among the ranks as
    shared_groups says: what does not count has no targets. `max_rows` takes that many conversations."""
    for group, counts in shared_groups(cache.lengths, batch_size, rank, world_size, max_rows):
        batch = collate(cache, list(group[:, None]), padded_width(int(cache.lengths[group].max()), cache.length))
        if not counts:
            batch["targets"].fill_(IGNORED)
        yield batch
