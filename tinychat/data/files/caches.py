"""Folders of derived data that are whole or not there, made once by whichever process comes first.

A folder gets its name when all in it is on the disk; until then it has another. Its name holds a hash of all
that the content depends on, so that a change of any makes another folder. What is made says how far it has come.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinychat.errors import UserError
from tinychat.runtime.manifest import changed_file, checksum, is_whole, sealed
from tinychat.runtime.run_files import sync_folder
from tinychat.text.tokenizer import vocabulary_size

LINE_EVERY = 10.0  # seconds
log = logging.getLogger(__name__)


class TokenizingProgress:
    """A context manager; `update` takes totals so far. `total` counts documents (or what `unit` says) or, with
    `in_bytes`, bytes of the files; None where it is unknown. Silent with `enabled=False`."""

    def __init__(self, title: str, total: int | None, in_bytes: bool, enabled: bool, unit: str = "documents") -> None:
        self.title, self.total, self.in_bytes, self.enabled, self.unit = title, total, in_bytes, enabled, unit
        self._bar: Any = None
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> TokenizingProgress:
        if self.enabled and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(self.title, total=self.total, rate="")
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, docs: int, tokens: int, bytes_read: int) -> None:
        now = time.monotonic()
        rate = f"{tokens / 1e6:.2f} M tokens, {_rate(tokens, now - self._start)}"
        done = bytes_read if self.in_bytes else docs
        if self._bar:
            self._bar.update(self._task, completed=done, rate=rate)
        elif self.enabled and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            share = f"{min(1.0, done / self.total):4.0%}, " if self.total else ""
            log.info("tokenizing %s: %s%s %s, %s", self.title, share, f"{docs:,}", self.unit, rate)


def _rate(tokens: int, seconds: float) -> str:
    per_second = tokens / max(seconds, 1e-9)
    return f"{per_second / 1e6:.2f} M/s" if per_second >= 1e5 else f"{per_second:,.0f}/s"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


META = "meta.json"
Loaded = TypeVar("Loaded")


def cached(
    parent: Path,
    name: str,
    identity: dict[str, Any],
    load: Callable[[Path, dict[str, Any]], Loaded],
    write: Callable[[Path], dict[str, Any]],
) -> Loaded:
    """What `load` makes of the folder `{parent}/{name}-{hash of identity}`, which is made first where it is
    missing or damaged: a file has another length or, unless checksums.verifying(False), another content than was
    written. Of several processes that ask at once, one makes it and the others wait.

    `load(folder, meta)` raises ValueError, KeyError or TypeError where the folder is damaged. `write(folder)`
    fills a new folder and returns what its meta.json holds beside the identity. Raises UserError for what
    `write` raises and for a disk that is full or cannot be written; nothing half-made is left.
    """
    folder = _folder(parent, name, identity)
    with _disk_errors(parent.parent):
        found = _load(folder, load)
        if found is not None:
            return found
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock"), name):
            found = _load(folder, load)
            if found is None:
                _make(folder, identity, write)
                found = _load(folder, load)
    assert found is not None, f"{folder} was just written"
    return found


def if_cached(
    parent: Path, name: str, identity: dict[str, Any], load: Callable[[Path, dict[str, Any]], Loaded]
) -> Loaded | None:
    """What `cached` would load, or None where it would have to be made: for what several ranks make together."""
    return _load(_folder(parent, name, identity), load)


def _folder(parent: Path, name: str, identity: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    return parent / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}-{key}"


@contextlib.contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """A new binary file, on the disk when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def mapped(path: Path, dtype: str, size: int) -> np.memmap:
    """The `size` numbers of a file, read-only. Raises ValueError where the file has another length."""
    expected, there = size * np.dtype(dtype).itemsize, path.stat().st_size
    if there != expected:
        raise ValueError(f"{path.name} has {there} bytes instead of {expected}")
    return np.memmap(path, dtype, mode="r")


def ids_type(tokenizer: PreTrainedTokenizerFast) -> str:
    """The smallest type that holds each of its ids, as numpy writes it."""
    return "<u2" if vocabulary_size(tokenizer) <= 1 << 16 else "<u4"


def _load(folder: Path, load: Callable[[Path, dict[str, Any]], Loaded]) -> Loaded | None:
    """None where the folder is missing or damaged."""
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        if not is_whole(meta):
            raise ValueError(f"{META} is not as it was written")
        if "checksums" not in meta:
            raise ValueError("it has no checksums")
        if name := changed_file(folder, meta["checksums"]):
            raise ValueError(f"{name} is not as it was written")
        return load(folder, meta)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IsADirectoryError) as error:
        log.warning("%s is damaged (%s) and will be made again", folder, error)
        return None


def _make(folder: Path, identity: dict[str, Any], write: Callable[[Path], dict[str, Any]]) -> None:
    """Make `folder`. The caller holds its lock, so that leftovers of a process that died may go."""
    for leftover in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        meta = {**identity, **write(temporary)}
        meta["checksums"] = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
        with synced_file(temporary / META) as file:
            file.write(json.dumps(sealed(meta), indent=1).encode())
        sync_folder(temporary)
        if folder.exists():  # a damaged one; who still reads it keeps its file
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
