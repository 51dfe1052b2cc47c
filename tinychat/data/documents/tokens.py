"""Documents as one stream of tokens: tokenized once into a memory-mapped file that any number of processes share, and
cut into blocks of the context's length, in a seeded order that can be entered anywhere.

A cache is a folder `{cache_dir}/tokens/{source}-{key}` with tokens.bin (token ids one after the other, little-endian;
each document after what its tokenizer puts before a text, and before an end of text) and meta.json. The key is a
hash of text, tokenizer and settings.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tinychat.data.batching import Epochs, share_of
from tinychat.data.documents.sources import TextSource
from tinychat.data.files.caches import TokenizingProgress, cached, ids_type, mapped, synced_file
from tinychat.errors import UserError
from tinychat.text.tokenizer import encode_documents, text_beginning, tokenizer_fingerprint

CACHE_VERSION = 2  # raise it when the same text and tokenizer would give another file
CHUNK = 1 << 22  # characters tokenized at once: enough for many threads, some hundred megabytes of memory
LONGEST = 1 << 20  # characters: a longer document is tokenized in parts, cut at line ends
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCache:
    """One split, tokenized."""

    tokens: np.memmap  # uint16 or uint32 [n_tokens], read-only
    n_docs: int
    n_tokens: int  # ends of text included
    n_bytes: int  # of the documents' UTF-8 text
    fingerprint: str  # of the source
    tokenizer_fingerprint: str
    path: Path
    beginning: tuple[int, ...] = ()  # before each document; (): nothing but the end of text of the one before

    def describe(self) -> str:
        per_token = self.n_bytes / self.n_tokens
        return f"{self.n_docs:,} documents, {self.n_tokens:,} tokens, {per_token:.2f} bytes of text per token"


def token_cache(source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, progress: bool) -> TokenCache:
    """The source's tokens, from the cache or made now. Of several processes that ask at once, one makes it
    and the others wait. `progress` shows a bar or log lines.

    Raises UserError for what the source raises, a tokenizer without an end-of-text token, and a disk that is
    full or cannot be written; nothing half-made is left.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token (eos_token), which parts documents; use another one")
    identity = {
        "version": CACHE_VERSION,
        "fingerprint": source.fingerprint(cache_dir),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "eos_token_id": int(tokenizer.eos_token_id),
        "beginning": _beginning(tokenizer),
    }
    return cached(
        cache_dir / "tokens",
        source.name,
        identity,
        load=_load,
        write=lambda folder: _write(source, tokenizer, folder, progress),
    )


def _load(folder: Path, meta: dict[str, Any]) -> TokenCache:
    return TokenCache(
        tokens=mapped(folder / "tokens.bin", meta["dtype"], meta["n_tokens"]),
        n_docs=meta["n_docs"],
        n_tokens=meta["n_tokens"],
        n_bytes=meta["n_bytes"],
        fingerprint=meta["fingerprint"],
        tokenizer_fingerprint=meta["tokenizer_fingerprint"],
        path=folder,
        beginning=tuple(meta["beginning"]),
    )


def _beginning(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What is written before each document: nothing where texts begin with the end of text, which is there already."""
    before = text_beginning(tokenizer)
    return [] if before == [tokenizer.eos_token_id] else before


def _write(source: TextSource, tokenizer: PreTrainedTokenizerFast, folder: Path, progress: bool) -> dict[str, Any]:
    """tokens.bin; returns what meta.json says of it."""
    start = time.monotonic()
    if progress:
        log.info("tokenizing %s: %s", source.name, source.description)
    meta: dict[str, Any] = {"source": source.name, "description": source.description}
    with synced_file(folder / "tokens.bin") as file:
        meta.update(_write_tokens(source, tokenizer, file, progress))
    seconds = time.monotonic() - start
    if progress:
        log.info("tokenized %s in %.1f s, %.1f MB/s", source.name, seconds, meta["n_bytes"] / 1e6 / seconds)
    return meta


def _write_tokens(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, file: BinaryIO, progress: bool
) -> dict[str, int | str]:
    dtype = np.dtype(ids_type(tokenizer))
    n_docs = n_tokens = n_bytes = 0
    before, begins = _beginning(tokenizer), True
    in_bytes = source.max_docs is None
    total = source.size_bytes if in_bytes else source.max_docs
    with TokenizingProgress(source.name, total, in_bytes, progress) as shown:
        for chunk in _chunks(source.documents()):
            ids = encode_documents(tokenizer, [text for text, _ in chunk])
            for tokens, (_, ends) in zip(ids, chunk, strict=True):
                if begins:
                    tokens[:0] = before
                begins = ends
                if ends:
                    tokens.append(tokenizer.eos_token_id)
            count = sum(map(len, ids))
            file.write(np.fromiter(itertools.chain.from_iterable(ids), dtype, count).tobytes())
            n_docs += sum(ends for _, ends in chunk)
            n_tokens += count
            n_bytes += sum(len(text.encode()) for text, _ in chunk)
            shown.update(n_docs, n_tokens, source.meter.bytes_read)
    return {"dtype": dtype.str, "n_docs": n_docs, "n_tokens": n_tokens, "n_bytes": n_bytes}


def _chunks(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Some CHUNK characters at a time: texts, and whether a document ends with each."""
    chunk: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        for part in _parts(document):
            chunk.append(part)
            size += len(part[0])
            if size >= CHUNK:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _parts(document: str) -> Iterator[tuple[str, bool]]:
    start = 0
    while len(document) - start > LONGEST:
        line_end = document.rfind("\n", start, start + LONGEST)
        stop = line_end if line_end > start else start + LONGEST
        yield document[start:stop], False
        start = stop
    yield document[start:], True


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
