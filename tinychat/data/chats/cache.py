"""Conversations encoded once, into memory-mapped arrays that any number of processes share.

A cache is a folder `{cache_dir}/chats/{source}-{key}`: ids.bin (tokens, conversation after conversation),
trained.bin (one byte a token: whether it is a target), ends.bin and n_trained.bin (for each conversation, where
it ends and how many targets it has) and meta.json. The key is a hash of rows, tokenizer, template and length.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinychat.config.schema import OnBadRow
from tinychat.data.chats.rows import BadRow, ChatRow, LeftOut
from tinychat.data.chats.sources import ChatSource
from tinychat.data.files.caches import TokenizingProgress, cached, ids_type, mapped, synced_file
from tinychat.errors import UserError
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import NOTHING_TRAINED, EncodedChat, check_trained, try_chats
from tinychat.text.tokenizer import tokenizer_fingerprint

CACHE_VERSION = 1  # raise it when the same rows and tokenizer would give other arrays
CHUNK = 2048  # conversations encoded at once
FILES = ("ids", "trained", "ends", "n_trained")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatCache:
    """The N conversations of one split as tokens, none longer than `length`."""

    all_ids: np.ndarray  # uint16 or uint32 [n_tokens], read-only, on the disk
    all_trained: np.ndarray  # bool [n_tokens]: the token is a target
    starts: np.ndarray  # int64 [N + 1]: conversation i is [starts[i], starts[i + 1])
    row_trained: np.ndarray  # int64 [N]: targets of each conversation
    length: int
    pad_id: int
    n_bad: int  # rows left out because they are no conversations
    n_cut: int  # conversations whose end did not fit: turns left out, or the only reply cut
    n_dropped: int  # rows left out because their prompt fills `length`
    fingerprint: str  # of the source
    tokenizer_fingerprint: str
    path: Path

    def __len__(self) -> int:
        return len(self.row_trained)

    def ids(self, index: int) -> np.ndarray:
        """Tokens of one conversation."""
        return self.all_ids[self.starts[index] : self.starts[index + 1]]

    def trained(self, index: int) -> np.ndarray:
        """Which of them are targets: bool, as long as ids(index)."""
        return self.all_trained[self.starts[index] : self.starts[index + 1]]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens of each conversation."""
        return np.diff(self.starts)

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def n_trained(self) -> int:
        return int(self.row_trained.sum())

    def describe(self) -> str:
        share = self.n_trained / self.n_tokens
        counts = {"cut to the context": self.n_cut, "too long": self.n_dropped, "unusable": self.n_bad}
        notes = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
        return f"{len(self):,} conversations, {self.n_tokens:,} tokens, {share:.0%} of them trained{notes}"


def chat_cache(
    source: ChatSource, tokenizer: PreTrainedTokenizerFast, length: int, cache_dir: Path, progress: bool
) -> ChatCache:
    """The source's conversations as at most `length` tokens each, from the cache or made now. Of several
    processes that ask at once, one makes it and the others wait. `progress` shows a bar or log lines.

    Raises UserError for what the source and the template raise, a prompt that leaves no room for a reply (with
    on_bad_row=fail), no conversation left, and a disk that is full or cannot be written.
    """
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token (pad_token); use another one")
    identity = {
        "version": CACHE_VERSION,
        "fingerprint": source.fingerprint(cache_dir),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "chat_template": tokenizer.chat_template,
        "pad_id": int(tokenizer.pad_token_id),
        "length": length,
    }

    def write(folder: Path) -> dict[str, Any]:
        return _write(source, tokenizer, length, folder, progress)

    return cached(cache_dir / "chats", source.name, identity, _load, write)


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


def _load(folder: Path, meta: dict[str, Any]) -> ChatCache:
    arrays = [mapped(folder / f"{name}.bin", *meta["arrays"][name]) for name in FILES]
    ids, trained, ends, n_trained = arrays
    return ChatCache(
        all_ids=ids,
        all_trained=trained,
        starts=np.concatenate([[0], ends]),
        row_trained=np.array(n_trained),
        path=folder,
        **{key: meta[key] for key in ("length", "pad_id", "n_bad", "n_cut", "n_dropped")},
        **{key: meta[key] for key in ("fingerprint", "tokenizer_fingerprint")},
    )


def _write(
    source: ChatSource, tokenizer: PreTrainedTokenizerFast, length: int, folder: Path, progress: bool
) -> dict[str, Any]:
    """The arrays; returns what meta.json says of them."""
    start = time.monotonic()
    if progress:
        log.info("tokenizing %s: %s", source.name, source.description)
    types = {"ids": ids_type(tokenizer), "trained": "?", "ends": "<i8", "n_trained": "<i8"}
    n_rows = n_tokens = n_cut = n_dropped = 0
    left_out = LeftOut(source.on_bad_row)
    with ExitStack() as stack:
        out = {name: stack.enter_context(synced_file(folder / f"{name}.bin")) for name in FILES}
        shown = stack.enter_context(TokenizingProgress(source.name, source.most_rows, False, progress, "conversations"))
        for chunk in _chunks(source.rows()):
            kept = []
            for row, encoded in zip(chunk, _encode(tokenizer, chunk), strict=True):
                if isinstance(encoded, BadRow):
                    left_out.add(encoded)
                    continue
                encoded = without_untrained(row, encoded)
                if n := _fitting(source, row, encoded, length):
                    kept.append((encoded.ids[:n], encoded.trained[:n]))
                    n_cut += bool(encoded.trained[n:].any())
                else:
                    n_dropped += 1
            if not kept:
                continue
            ends = n_tokens + np.cumsum([len(ids) for ids, _ in kept])
            arrays = {
                "ids": np.concatenate([ids for ids, _ in kept]),
                "trained": np.concatenate([trained for _, trained in kept]),
                "ends": ends,
                "n_trained": np.array([np.count_nonzero(trained[1:]) for _, trained in kept]),
            }
            for name, array in arrays.items():
                out[name].write(array.astype(types[name]).tobytes())
            n_rows, n_tokens = n_rows + len(kept), int(ends[-1])
            shown.update(n_rows, n_tokens, 0)
    if not n_rows:
        long = (
            f"the prompts of {n_dropped} are longer than stage.context_length={length}; raise it" if n_dropped else ""
        )
        why = "; ".join(filter(None, [left_out.reason(), long]))
        raise UserError(f"no conversations left of {source.description}: {why}")
    left_out.warn(source.name)
    _tell(source, n_rows, n_dropped, length, time.monotonic() - start, progress)
    sizes = {"ids": n_tokens, "trained": n_tokens, "ends": n_rows, "n_trained": n_rows}
    return {
        "source": source.name,
        "description": source.description,
        "arrays": {name: (types[name], sizes[name]) for name in FILES},
        "n_bad": source.n_bad + left_out.count,
        "n_cut": n_cut,
        "n_dropped": n_dropped,
    }


def _chunks(rows: Iterable[ChatRow]) -> Iterator[list[ChatRow]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


def _encode(tokenizer: PreTrainedTokenizerFast, rows: list[ChatRow]) -> Iterator[EncodedChat | BadRow]:
    """In place of a row that the template cannot write, or of which it trains nothing, the reason. Raises UserError
    where it leaves out the end token of the first (which is the same for all)."""
    checked = False
    for row, encoded in zip(rows, try_chats(tokenizer, [row.messages for row in rows]), strict=True):
        if isinstance(encoded, Refused):
            yield BadRow(row.place, str(encoded))
        elif not encoded.trained.any():
            yield BadRow(row.place, NOTHING_TRAINED)
        else:
            if not checked:
                check_trained(tokenizer, encoded, row.place)
            checked = True
            yield encoded


def _fitting(source: ChatSource, row: ChatRow, encoded: EncodedChat, length: int) -> int:
    """As fit(). Raises BadRow for 0 with on_bad_row=fail."""
    n = fit(encoded, length)
    if not n and source.on_bad_row is OnBadRow.fail:
        prompt = int(encoded.trained.argmax())
        raise BadRow(
            row.place,
            f"its prompt has {prompt:,} tokens, too many for stage.context_length={length}, which may be raised",
        )
    return n


def _tell(source: ChatSource, n_rows: int, n_dropped: int, length: int, seconds: float, progress: bool) -> None:
    if n_dropped:
        log.warning(
            "%s: %d rows left out, whose prompts leave no room for a reply in stage.context_length=%d",
            *(source.name, n_dropped, length),
        )
    if progress:
        log.info("tokenized %s in %.1f s, %s conversations/s", source.name, seconds, f"{n_rows / seconds:,.0f}")
