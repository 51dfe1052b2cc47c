"""Documents tokenized once, into one memory-mapped file that any number of processes share.

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
from transformers import PreTrainedTokenizerFast

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
