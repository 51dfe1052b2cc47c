"""Conversations encoded once: tinychat.data.files.encoded with one sequence a conversation.

Beside ids.bin and ends.bin there are trained.bin (one byte a token: whether it is a target) and n_trained.bin (how many
targets each conversation has).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinychat.data.chats.rows import BadRow, ChatRow
from tinychat.data.chats.sources import ChatSource
from tinychat.data.files.encoded import Encoded, EncodedRows, Kind, TooLong, common_fields, encoded_cache
from tinychat.errors import UserError
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import NOTHING_TRAINED, EncodedChat, check_trained, try_chats

CHATS = Kind(
    folder="chats",
    version=1,
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
