"""What went wrong in a job of several processes: reports of ranks in the run folder, told once by the parent.

    error-rank1.json   {"rank", "time", "user", "echo", "message", "traceback"}

`user`: the message says all, no traceback is shown. `echo`: the rank failed because another did (its connection broke),
so this is told only where nobody knows more.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tinychat import run_files, runs

PATTERN = "error-rank*.json"
_KINDS: dict[str, run_files.Kind] = {
    "rank": (int, str),
    "time": run_files.NUMBER,
    "user": bool,
    "echo": bool,
    "message": str,
    "traceback": (str, type(None)),
}


def write(run_dir: Path, rank: int | str, message: str, traceback: str | None = None, echo: bool = False) -> None:
    """Report for a rank (or, as `node0`, for what starts ranks); without a traceback the message says all."""
    report = {
        "rank": rank,
        "time": time.time(),
        "user": traceback is None,
        "echo": echo,
        "message": message,
        "traceback": traceback,
    }
    runs.write_text_atomic(path_of(run_dir, rank), json.dumps(report))


def path_of(run_dir: Path, rank: int | str) -> Path:
    return run_dir / PATTERN.replace("*", str(rank))


def stamps(run_dir: Path) -> dict[str, int]:
    """The reports there are, by name, with the time of their last change."""
    found = {}
    for path in run_dir.glob(PATTERN):
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def cause(run_dir: Path) -> dict[str, Any] | None:
    """The report of the rank that failed first; None where none failed."""
    reports = [report for path in run_dir.glob(PATTERN) if (report := _read(path))]
    # Clocks of nodes differ, so what is known to follow from another failure comes last.
    return min(reports, key=lambda report: (report["echo"], not report["user"], report["time"]), default=None)


def _read(path: Path) -> dict[str, Any] | None:
    return run_files.if_readable(lambda: run_files.read_json(path, _KINDS))


def first(run_dir: Path) -> str | None:
    """What the rank that failed first had to say: one line where that says all, else its traceback with its rank."""
    told = cause(run_dir)
    if told is None:
        return None
    if told["user"] or not told["traceback"]:
        return told["message"]
    return f"rank {told['rank']} failed:\n{told['traceback'].rstrip()}"


def clear(run_dir: Path) -> None:
    for path in run_dir.glob(PATTERN):
        if path.is_dir():  # somebody's, and in the way of nothing
            continue
        path.unlink(missing_ok=True)
