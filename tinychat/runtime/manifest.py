"""manifest.json of a checkpoint: its score, and size and checksum of every file, so that damage is noticed;
and checksums of other files: one that is not as it was written is noticed when it is opened."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from tinychat.runtime import run_files
from tinychat.runtime.run_files import NUMBER, Unreadable, cannot, if_readable, write_text_atomic

CHUNK = 1 << 22  # bytes read at once
SEAL = "checksum"  # of a JSON file, in it: that of all the rest

_enabled = True
_known: dict[tuple[str, int, int, int], str] = {}  # what this process has read already


@contextlib.contextmanager
def verifying(enabled: bool) -> Iterator[None]:
    """Inside, files are compared with their checksums, or (False) taken as they are."""
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def checksum(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; read once a process, as long as its size and its times of change stay."""
    stat = path.stat()
    state = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if state not in _known:
        hasher = xxhash.xxh3_128()
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
        _known[state] = hasher.hexdigest()
    return _known[state]


def changed_file(folder: Path, expected: Mapping[str, str]) -> str | None:
    """The first file (a name in the folder) whose content is not as expected; files that are not there are left to
    whoever needs them. None as well inside verifying(False). Raises Unreadable for one that may not be read."""
    if not _enabled:
        return None
    for name, wanted in expected.items():
        try:
            if (folder / name).is_file() and checksum(folder / name) != wanted:
                return name
        except OSError as error:
            raise Unreadable(f"{folder / name}: {cannot(error)}") from None
    return None


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON file holds, with its own checksum."""
    return {**content, SEAL: _seal(content)}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether what was read is what sealed() returned; also for a file from before there were seals."""
    return not _enabled or SEAL not in content or content[SEAL] == _seal(content)


def _seal(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != SEAL}
    return xxhash.xxh3_128(json.dumps(rest, sort_keys=True).encode()).hexdigest()


MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state"  # the folder in a checkpoint that only a resume needs


def write_manifest(checkpoint: Path, score: float | None) -> None:
    """Record size and checksum of every file of a checkpoint, and its score (lower is better)."""
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MANIFEST]
    names = {str(path.relative_to(checkpoint)): path for path in paths}
    content = {
        "score": score,
        "files": {name: path.stat().st_size for name, path in names.items()},
        "checksums": {name: checksum(path) for name, path in names.items()},
    }
    run_files.follow_umask(checkpoint)
    write_text_atomic(checkpoint / MANIFEST, json.dumps(sealed(content), indent=1))


def checkpoint_score(checkpoint: Path) -> float | None:
    """None as well for a checkpoint whose manifest is missing or unreadable."""
    return (if_readable(lambda: _read(checkpoint)) or {}).get("score")


def damage(checkpoint: Path) -> str | None:
    """Which file is missing or shorter than it was written, told from the sizes alone. None for whole checkpoints, for
    folders that tinychat did not write, and where just the trainer's state is gone, which a copy need not have."""
    try:
        found = _read(checkpoint)
    except Unreadable as error:
        return str(error)
    has_state = (checkpoint / TRAINER_STATE).exists()
    for name, size in found.get("files", {}).items():
        path = checkpoint / name
        if not has_state and Path(name).parts[0] == TRAINER_STATE:
            continue
        there = path.stat().st_size if path.is_file() else None
        if there != size:
            return f"{name} is missing" if there is None else f"{name} has {there} bytes, {size} were written"
    return None


def change(checkpoint: Path, wanted: Callable[[str], bool]) -> str | None:
    """Which of the files whose name is `wanted` has another content than was written; they are read as a whole. None
    where there is nothing to compare with, and for what is missing."""
    try:
        sums = _read(checkpoint).get("checksums") or {}
    except Unreadable as error:
        return str(error)
    name = changed_file(checkpoint, {name: value for name, value in sums.items() if wanted(name)})
    return None if name is None else f"{name} is not as it was written"


def _read(checkpoint: Path) -> dict[str, Any]:
    """Nothing for a folder that tinychat did not write. Raises Unreadable, also where it was changed."""
    kinds: dict[str, run_files.Kind] = {"files": dict, "checksums": (dict, type(None)), "score": (*NUMBER, type(None))}
    found = run_files.read_json(checkpoint / MANIFEST, kinds)
    if found is not None and not is_whole(found):
        raise Unreadable(f"{checkpoint / MANIFEST}: is not as it was written")
    return found or {}
