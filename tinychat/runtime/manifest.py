"""manifest.json of a checkpoint: its score, and size and checksum of every file, so that damage is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinychat.runtime import run_files
from tinychat.runtime.checksums import changed_file, checksum, is_whole, sealed
from tinychat.runtime.run_files import NUMBER, Unreadable, if_readable, write_text_atomic

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
