"""Hashes of files, remembered so that a large corpus is read for its fingerprint once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import BinaryIO


def hash_file(path: Path, memo_dir: Path | None) -> str:
    """Hex BLAKE2b of the file's bytes. Under `memo_dir` it is remembered for the file's path, size and times
    of change (both: a copy may keep the one, none keeps the other); None remembers nothing."""
    stat = path.stat()
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    name = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
    memo = memo_dir / "hashes" / f"{name}.json" if memo_dir else None
    if memo:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            remembered = json.loads(memo.read_text("utf-8"))
            if remembered["state"] == state:
                return remembered["hash"]
    with open(path, "rb") as file:
        digest = _digest(file)
    if memo:
        with contextlib.suppress(OSError):  # forgetting costs time only
            _remember(memo, {"state": state, "hash": digest})
    return digest


def _digest(file: BinaryIO) -> str:
    hasher = hashlib.blake2b(digest_size=20)
    while chunk := file.read(1 << 22):
        hasher.update(chunk)
    return hasher.hexdigest()


def _remember(memo: Path, record: dict) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=memo.parent, suffix=".tmp")
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.replace(temporary, memo)
