"""Documents tokenized once, into one memory-mapped file that any number of processes share.

A cache is a folder `{cache_dir}/tokens/{source}-{key}` with tokens.bin (token ids one after the other,
end-of-text after each document, little-endian) and meta.json. The key is a hash of text, tokenizer and
settings, so that a change of any makes another cache. The folder gets its name when it is whole and on the
disk; until then it has another.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinychat.data.progress import TokenizingProgress
from tinychat.data.sources import TextSource
from tinychat.errors import UserError
from tinychat.text.tokenizer import encode_documents, tokenizer_fingerprint

CACHE_VERSION = 1  # raise it when the same text and tokenizer would give another file
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
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    folder = cache_dir / "tokens" / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', source.name)}-{key}"
    with _disk_errors(cache_dir):
        cache = _load(folder)
        if cache:
            return cache
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock"), source.name):
            cache = _load(folder)
            if cache is None:
                _build(source, tokenizer, folder, identity, progress)
                cache = _load(folder)
    assert cache is not None, f"{folder} was just written"
    return cache


def _load(folder: Path) -> TokenCache | None:
    """The cache in `folder`, or None where it is missing or its token file is not as long as it should be."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        dtype, file = np.dtype(meta["dtype"]), folder / "tokens.bin"
        if file.stat().st_size != meta["n_tokens"] * dtype.itemsize:
            raise ValueError(f"{file.stat().st_size} bytes instead of {meta['n_tokens'] * dtype.itemsize}")
        return TokenCache(
            tokens=np.memmap(file, dtype, mode="r"),
            n_docs=meta["n_docs"],
            n_tokens=meta["n_tokens"],
            n_bytes=meta["n_bytes"],
            fingerprint=meta["fingerprint"],
            tokenizer_fingerprint=meta["tokenizer_fingerprint"],
            path=folder,
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s) and will be made again", folder, error)
        return None


def _build(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, folder: Path, identity: dict, progress: bool
) -> None:
    """Make `folder`. The caller holds its lock, so that leftovers of a process that died may go."""
    for leftover in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    start = time.monotonic()
    if progress:
        log.info("tokenizing %s: %s", source.name, source.description)
    try:
        temporary.mkdir()
        meta = {**identity, "source": source.name, "description": source.description}
        with open(temporary / "tokens.bin", "wb") as file:
            meta.update(_write_tokens(source, tokenizer, file, progress))
            _sync(file)
        with open(temporary / "meta.json", "wb") as file:
            file.write(json.dumps(meta, indent=1).encode())
            _sync(file)
        _sync_folder(temporary)
        if folder.exists():  # a damaged one; who still reads it keeps its file
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    seconds = time.monotonic() - start
    if progress:
        log.info("tokenized %s in %.1f s, %.1f MB/s", source.name, seconds, meta["n_bytes"] / 1e6 / seconds)


def _write_tokens(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, file: BinaryIO, progress: bool
) -> dict[str, int | str]:
    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    n_docs = n_tokens = n_bytes = 0
    in_bytes = source.max_docs is None
    total = source.size_bytes if in_bytes else source.max_docs
    with TokenizingProgress(source.name, total, in_bytes, progress) as shown:
        for chunk in _chunks(source.documents()):
            ids = encode_documents(tokenizer, [text for text, _ in chunk])
            for tokens, (_, ends) in zip(ids, chunk, strict=True):
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


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock file; the system lets go of it when the process ends, however that comes."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is tokenizing %s; waiting for it", name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk_errors(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            there = next(folder for folder in (cache_dir, *cache_dir.absolute().parents) if folder.exists())
            free = shutil.disk_usage(there).free / 1e6
            why = f"the disk is full ({free:,.1f} MB free); free some or"
        else:
            why = f"{error.strerror or error};"
        raise UserError(
            f"paths.cache={cache_dir}: cannot write the token cache: {why} use paths.cache=FOLDER"
        ) from None


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
