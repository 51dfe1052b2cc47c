"""Preferences encoded once, into memory-mapped arrays that any number of processes share.

A cache is a folder `{cache_dir}/preferences/{source}-{key}`: ids.bin (tokens, sequence after sequence: of pair
i the chosen one is sequence 2i, the rejected one 2i + 1), ends.bin and prompts.bin (for each sequence, where it
ends and how many tokens its prompt has), labels.bin (for each, whether the reply is safe, the category and the
severity of harm) and meta.json. The key is a hash of rows, part, tokenizer, template and length.

A reward model reads the last token of a reply, which has to be its end token, as in rollouts. So no reply is
ever cut: of a dialogue that is too long the oldest turns are left out, alike on both sides, and a pair that is
too long still is left out as a whole. What the template writes after the end token is left out too.
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
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinychat.config.schema import OnBadRow
from tinychat.data.chats.rows import BadRow, LeftOut
from tinychat.data.files.caches import TokenizingProgress, cached, ids_type, mapped, synced_file
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.data.preferences.sources import Part, PreferenceSource
from tinychat.errors import UserError
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import NOTHING_TRAINED, EncodedChat, check_trained, try_chats
from tinychat.text.tokenizer import tokenizer_fingerprint

CACHE_VERSION = 1  # raise it when the same rows and tokenizer would give other arrays
CHUNK = 1024  # pairs encoded at once
UNKNOWN = -1  # a label that the data do not give
LABELS = ("safe", "category", "severity")  # columns of labels.bin
log = logging.getLogger(__name__)


class Side(NamedTuple):
    """The tokens of a prompt with one of its replies, up to the reply's end token."""

    ids: np.ndarray  # (T,) int32
    prompt_length: int


@dataclass(frozen=True)
class PreferenceCache:
    """The N pairs of one split or part as 2N sequences, none longer than `length`."""

    all_ids: np.ndarray  # uint16 or uint32 [n_tokens], read-only, on the disk
    starts: np.ndarray  # int64 [2N + 1]: sequence s is [starts[s], starts[s + 1])
    prompt_lengths: np.ndarray  # int64 [2N]: tokens before the reply
    labels: np.ndarray  # int16 [2N, 3]: columns LABELS, UNKNOWN (-1) where there is none; `category` is the pair's
    categories: list[str]  # that the labels number
    length: int
    pad_id: int
    n_bad: int  # rows left out because they are no preferences
    n_cut: int  # pairs whose oldest turns were left out
    n_dropped: int  # pairs left out because a side is longer than `length`
    fingerprint: str  # of the source and part
    tokenizer_fingerprint: str
    path: Path

    def __len__(self) -> int:
        return len(self.prompt_lengths) // 2

    def chosen(self, index: int) -> np.ndarray:
        """Tokens of a pair's prompt and chosen reply, the end token last."""
        return self.all_ids[self.starts[2 * index] : self.starts[2 * index + 1]]

    def rejected(self, index: int) -> np.ndarray:
        """The same with the rejected reply."""
        return self.all_ids[self.starts[2 * index + 1] : self.starts[2 * index + 2]]

    def category(self, index: int) -> str:
        number = int(self.labels[2 * index, LABELS.index("category")])
        return "" if number == UNKNOWN else self.categories[number]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64 [2N]: tokens of each sequence."""
        return np.diff(self.starts)

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    def describe(self) -> str:
        counts = {"with older turns left out": self.n_cut, "too long": self.n_dropped, "unusable": self.n_bad}
        notes = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
        replies = 1 - self.prompt_lengths.sum() / self.n_tokens
        return f"{len(self):,} pairs, {self.n_tokens:,} tokens, {replies:.0%} of them replies{notes}"


def preference_cache(
    source: PreferenceSource,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    cache_dir: Path,
    progress: bool,
    part: Part | None = None,
) -> PreferenceCache:
    """The source's preferences (or one part of them) with at most `length` tokens a side, from the cache or
    made now. Of several processes that ask at once, one makes it and the others wait. `progress` shows a bar or
    log lines.

    Raises UserError for what the source and the template raise, a pair that is too long (with
    on_bad_row=fail), no pair left, and a disk that is full or cannot be written.
    """
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token (pad_token); use another one")
    identity = {
        "version": CACHE_VERSION,
        "fingerprint": source.fingerprint(cache_dir, part),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "chat_template": tokenizer.chat_template,
        "pad_id": int(tokenizer.pad_token_id),
        "length": length,
    }

    def write(folder: Path) -> dict[str, Any]:
        return _write(source, part, tokenizer, length, folder, progress)

    name = f"{source.name}-{part}" if part else source.name
    return cached(cache_dir / "preferences", name, identity, _load, write)


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


def _load(folder: Path, meta: dict[str, Any]) -> PreferenceCache:
    ids, ends, prompts, labels = (
        mapped(folder / f"{name}.bin", *meta["arrays"][name]) for name in ("ids", "ends", "prompts", "labels")
    )
    return PreferenceCache(
        all_ids=ids,
        starts=np.concatenate([[0], ends]),
        prompt_lengths=np.array(prompts),
        labels=np.array(labels).reshape(-1, len(LABELS)),
        path=folder,
        **{key: meta[key] for key in ("categories", "length", "pad_id", "n_bad", "n_cut", "n_dropped")},
        **{key: meta[key] for key in ("fingerprint", "tokenizer_fingerprint")},
    )


def _write(
    source: PreferenceSource,
    part: Part | None,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    folder: Path,
    progress: bool,
) -> dict[str, Any]:
    """The arrays; returns what meta.json says of them."""
    start = time.monotonic()
    if progress:
        log.info("tokenizing %s%s: %s", source.name, f" ({part})" if part else "", source.description)
    types = {"ids": ids_type(tokenizer), "ends": "<i8", "prompts": "<i8", "labels": "<i2"}
    n_pairs = n_tokens = n_cut = n_dropped = 0
    left_out = LeftOut(source.on_bad_row)
    categories: dict[str, int] = {}
    with ExitStack() as stack:
        out = {name: stack.enter_context(synced_file(folder / f"{name}.bin")) for name in types}
        shown = stack.enter_context(TokenizingProgress(source.name, source.max_rows, False, progress, "pairs"))
        for number, chunk in enumerate(_chunks(source.rows(part))):
            if number == 0:
                _check_first(tokenizer, chunk[0])
            sides: list[Side] = []
            labels = []
            for row, pair, shortened in encode_pairs(tokenizer, chunk, length):
                if isinstance(pair, BadRow):
                    left_out.add(pair)
                    continue
                if not _fits(source, row, pair, length):
                    n_dropped += 1
                    continue
                n_cut += shortened
                sides += pair
                labels += _labels(row, categories)
            if not sides:
                continue
            ends = n_tokens + np.cumsum([len(side.ids) for side in sides])
            arrays = {
                "ids": np.concatenate([side.ids for side in sides]),
                "ends": ends,
                "prompts": np.array([side.prompt_length for side in sides]),
                "labels": np.array(labels),
            }
            for name, array in arrays.items():
                out[name].write(array.astype(types[name]).tobytes())
            n_pairs, n_tokens = n_pairs + len(sides) // 2, int(ends[-1])
            shown.update(n_pairs, n_tokens, 0)
    if not n_pairs and left_out.first:
        raise UserError(f"no preferences left of {source.description}: {left_out.reason()}")
    left_out.warn(source.name)
    _tell(source, n_pairs, n_dropped, length, time.monotonic() - start, progress)
    sizes = {"ids": n_tokens, "ends": 2 * n_pairs, "prompts": 2 * n_pairs, "labels": 2 * n_pairs * len(LABELS)}
    return {
        "source": source.name,
        "part": part,
        "description": source.description,
        "arrays": {name: (types[name], sizes[name]) for name in types},
        "categories": list(categories),
        "n_bad": source.n_bad + left_out.count,
        "n_cut": n_cut,
        "n_dropped": n_dropped,
    }


def _chunks(rows: Iterable[PreferenceRow]) -> Iterator[list[PreferenceRow]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


def _check_first(tokenizer: PreTrainedTokenizerFast, row: PreferenceRow) -> None:
    """Raises UserError where the template leaves out the end token, which is the same for all rows."""
    for encoded in try_chats(tokenizer, list(row.conversations())):
        if not isinstance(encoded, Refused) and encoded.trained.any():
            check_trained(tokenizer, encoded, row.place)


def _fits(source: PreferenceSource, row: PreferenceRow, sides: tuple[Side, Side], length: int) -> bool:
    """Raises BadRow instead of False with on_bad_row=fail."""
    longest = max(len(side.ids) for side in sides)
    if longest > length and source.on_bad_row is OnBadRow.fail:
        raise BadRow(
            row.place,
            f"its longer side has {longest:,} tokens, too many for stage.context_length={length}, which may be raised",
        )
    return longest <= length


def _labels(row: PreferenceRow, categories: dict[str, int]) -> list[tuple[int, int, int]]:
    """Of both sides, as labels.bin has them. New categories get the next number."""
    category = categories.setdefault(row.category, len(categories)) if row.category else UNKNOWN
    sides = ((row.chosen_safe, row.chosen_severity), (row.rejected_safe, row.rejected_severity))
    return [
        (UNKNOWN if safe is None else int(safe), category, UNKNOWN if severity is None else severity)
        for safe, severity in sides
    ]


def _tell(source: PreferenceSource, kept: int, n_dropped: int, length: int, seconds: float, progress: bool) -> None:
    """Raises UserError where no pair is left."""
    if not kept:
        raise UserError(
            f"no preferences left of {source.description}: all {n_dropped} pairs are longer than "
            f"stage.context_length={length}; raise it"
        )
    if n_dropped:
        share = n_dropped / (kept + n_dropped)
        log.warning(
            "%s: %d pairs (%.1f %%) left out, longer than stage.context_length=%d",
            *(source.name, n_dropped, 100 * share, length),
        )
    if progress:
        log.info("tokenized %s in %.1f s, %s pairs/s", source.name, seconds, f"{kept / seconds:,.0f}")
