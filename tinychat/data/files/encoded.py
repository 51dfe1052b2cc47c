"""Rows encoded once as sequences of tokens, into memory-mapped arrays that any number of processes share.

A cache is a folder `{cache_dir}/{kind}/{source}-{key}`: ids.bin (tokens, sequence after sequence), ends.bin (where each
sequence ends), a file for each further array that the kind of rows has, and meta.json. The key is a hash of rows,
tokenizer, template and length.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinychat.config.schema import OnBadRow
from tinychat.data.chats.rows import BadRow, LeftOut
from tinychat.data.files.caches import TokenizingProgress, cached, ids_type, mapped, synced_file
from tinychat.errors import UserError
from tinychat.text.tokenizer import tokenizer_fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedRows:
    """The sequences of one split or part, none longer than `length`."""

    all_ids: np.ndarray  # uint16 or uint32 [n_tokens], read-only, on the disk
    starts: np.ndarray  # int64 [sequences + 1]: sequence s is [starts[s], starts[s + 1])
    length: int
    pad_id: int
    n_bad: int  # rows left out because they cannot be used
    n_cut: int  # rows of which a part was left out, so that they fit
    n_dropped: int  # rows left out because they are too long even so
    fingerprint: str  # of the source
    tokenizer_fingerprint: str
    path: Path

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64 [sequences]: tokens of each."""
        return np.diff(self.starts)

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    def notes(self, cut: str) -> str:
        """For a description: how many rows were cut, in which way, or left out; "" where none was."""
        counts = {cut: self.n_cut, "too long": self.n_dropped, "unusable": self.n_bad}
        return "".join(f", {count:,} {what}" for what, count in counts.items() if count)


class Source(Protocol):
    """Where rows come from."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def on_bad_row(self) -> OnBadRow: ...

    @property
    def n_bad(self) -> int: ...


@dataclass(frozen=True)
class Encoded:
    """One row."""

    ids: list[np.ndarray]  # its sequences
    arrays: dict[str, Any]  # its part of each further array
    cut: bool = False  # a part of it was left out


class TooLong(BadRow):
    """A row that does not fit, with the reason."""


Row = TypeVar("Row")
Cache = TypeVar("Cache", bound=EncodedRows)


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of rows."""

    folder: str  # below the folder of all caches
    version: int  # raised when the same rows and tokenizer would give other arrays
    chunk: int  # rows encoded at once
    types: dict[str, str]  # numpy type of each array but ids
    units: str  # what a row is
    too_long: str  # what is wrong with one that does not fit, before the name of the key


@dataclass
class _Written:
    """Counts of what has been written."""

    types: dict[str, str]
    rows: int = 0
    cut: int = 0
    dropped: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    def arrays(self, kept: list[Encoded]) -> dict[str, np.ndarray]:
        """Of one chunk, counted."""
        ids = [sequence for one in kept for sequence in one.ids]
        made = {"ids": np.concatenate(ids), "ends": self.sizes.get("ids", 0) + np.cumsum([len(one) for one in ids])}
        made |= {name: np.concatenate([one.arrays[name] for one in kept]) for name in kept[0].arrays}
        for name, array in made.items():
            self.sizes[name] = self.sizes.get(name, 0) + array.size
        self.rows += len(kept)
        self.cut += sum(one.cut for one in kept)
        return made


def encoded_cache(
    kind: Kind,
    name: str,
    source: Source,
    rows: Callable[[], Iterable[Row]],
    encode: Callable[[list[Row]], Iterator[Encoded | BadRow]],
    made: Callable[[Path, dict[str, Any], dict[str, np.ndarray]], Cache],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    fingerprint: str,
    cache_dir: Path,
    progress: bool,
    facts: Callable[[], dict[str, Any]] = dict,
    most_rows: int | None = None,
) -> Cache:
    """The rows as at most `length` tokens a sequence, from the cache or made now. Of several processes that ask at
    once, one makes it and the others wait. `progress` shows a bar or log lines.

    encode: rows -> for each, in order, what it became; a BadRow ends the job or is left out, as source.on_bad_row says.
    made: folder, meta.json, arrays -> the cache. facts: what meta.json says beside. most_rows: how many there may be.

    Raises UserError for what the source and `encode` raise, no row left, and a disk that is full or cannot be written.
    """
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token (pad_token); use another one")
    identity = {
        "version": kind.version,
        "fingerprint": fingerprint,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "chat_template": tokenizer.chat_template,
        "pad_id": int(tokenizer.pad_token_id),
        "length": length,
    }

    def load(folder: Path, meta: dict[str, Any]) -> Cache:
        arrays: dict[str, np.ndarray] = {
            name: mapped(folder / f"{name}.bin", *meta["arrays"][name]) for name in ("ids", *kind.types)
        }
        return made(folder, meta, arrays)

    def write(folder: Path) -> dict[str, Any]:
        start = time.monotonic()
        if progress:
            log.info("tokenizing %s: %s", name, source.description)
        done = _Written({"ids": ids_type(tokenizer), **kind.types})
        left_out = LeftOut(source.on_bad_row)
        with ExitStack() as stack:
            out = {name: stack.enter_context(synced_file(folder / f"{name}.bin")) for name in done.types}
            shown = stack.enter_context(TokenizingProgress(name, most_rows, False, progress, kind.units))
            for chunk in _chunks(rows(), kind.chunk):
                if kept := list(_usable(encode(chunk), left_out, done)):
                    for array, values in done.arrays(kept).items():
                        out[array].write(values.astype(done.types[array]).tobytes())
                    shown.update(done.rows, done.sizes["ids"], 0)
        _tell(kind, name, source, done, left_out, length)
        if progress:
            seconds = time.monotonic() - start
            log.info("tokenized %s in %.1f s, %s %s/s", name, seconds, f"{done.rows / seconds:,.0f}", kind.units)
        return {
            "source": source.name,
            "description": source.description,
            "arrays": {name: (done.types[name], done.sizes[name]) for name in done.types},
            "n_bad": source.n_bad + left_out.count,
            "n_cut": done.cut,
            "n_dropped": done.dropped,
            **facts(),
        }

    return cached(cache_dir / kind.folder, name, identity, load, write)


def common_fields(folder: Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Those of EncodedRows."""
    names = ("length", "pad_id", "n_bad", "n_cut", "n_dropped", "fingerprint", "tokenizer_fingerprint")
    starts = np.concatenate([[0], arrays["ends"]])
    return {"all_ids": arrays["ids"], "starts": starts, "path": folder, **{name: meta[name] for name in names}}


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _usable(found: Iterator[Encoded | BadRow], left_out: LeftOut, done: _Written) -> Iterator[Encoded]:
    for one in found:
        if isinstance(one, Encoded):
            yield one
        elif isinstance(one, TooLong) and left_out.on_bad_row is not OnBadRow.fail:
            done.dropped += 1
        else:
            left_out.add(one)


def _tell(kind: Kind, name: str, source: Source, done: _Written, left_out: LeftOut, length: int) -> None:
    """Say how many rows were left out. Raises UserError where none is left."""
    too_long = f"left out, {kind.too_long} stage.context_length={length}"
    if not done.rows:
        long = f"{done.dropped} {too_long}; raise it" if done.dropped else ""
        why = "; ".join(filter(None, [left_out.reason(), long]))
        raise UserError(f"no {kind.units} left of {source.description}: {why}")
    left_out.warn(source.name)
    if done.dropped:
        share = 100 * done.dropped / (done.dropped + done.rows)
        log.warning("%s: %d %s (%.1f %%) %s", name, done.dropped, kind.units, share, too_long)
