"""What went wrong in a job of several processes: reports of ranks in the run folder, told once by the parent.

    error-rank1.json   {"rank", "start", "time", "user", "echo", "message", "traceback"}

`start`: the start of the job that it belongs to; others are no concern of this one's ranks. `user`: the message says
all, no traceback is shown. `echo`: the rank failed because another did (its connection broke), so this is told only
where nobody knows more.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinychat.runs import folders
from tinychat.runtime import run_files
from tinychat.runtime.terminal import masked

PATTERN = "error-rank*.json"
START = "TINYCHAT_START"  # variable: the name of the start that a process belongs to
START_FILE = ".start"  # holds the name of the latest; for ranks on nodes that were started by a command of their own
_KINDS: dict[str, run_files.Kind] = {
    "rank": (int, str),
    "time": run_files.NUMBER,
    "user": bool,
    "echo": bool,
    "message": str,
    "traceback": (str, type(None)),
}


def begin(run_dir: Path) -> str:
    """Name a new start of the job, and forget what earlier ones have reported."""
    for path in run_dir.glob(PATTERN):
        if not path.is_dir():  # somebody's, and in the way of nothing
            path.unlink(missing_ok=True)
    name = uuid.uuid4().hex
    folders.write_text_atomic(run_dir / START_FILE, name)
    return name


def start_of(run_dir: Path) -> str | None:
    """The start that this process belongs to or, where it is of none, the latest; None before the first."""
    try:
        return os.environ.get(START) or (run_dir / START_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def write(run_dir: Path, rank: int | str, message: str, traceback: str | None = None, echo: bool = False) -> None:
    """Report for a rank (or, as `node0`, for what starts ranks); without a traceback the message says all."""
    report = {
        "rank": rank,
        "start": start_of(run_dir),
        "time": time.time(),
        "user": traceback is None,
        "echo": echo,
        "message": masked(message),
        "traceback": None if traceback is None else masked(traceback),
    }
    try:
        folders.write_text_atomic(path_of(run_dir, rank), json.dumps(report))
    except OSError as error:  # the parent cannot be told
        print(f"{run_files.said_of(error)}; rank {rank} failed: {traceback or message}", file=sys.stderr, flush=True)


def path_of(run_dir: Path, rank: int | str) -> Path:
    return run_dir / PATTERN.replace("*", str(rank))


def _reports(run_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The reports of this start; what cannot be read is left out, said once."""
    start = start_of(run_dir)
    for path in run_dir.glob(PATTERN):
        report = run_files.if_readable(functools.partial(run_files.read_json, path, _KINDS))
        if report is not None and report.get("start") == start:
            yield path, report


def stamps(run_dir: Path) -> dict[str, int]:
    """The reports of this start, by name, with the time of their last change."""
    found = {}
    for path, _ in _reports(run_dir):
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def cause(run_dir: Path) -> dict[str, Any] | None:
    """The report of the rank that failed first; None where none failed."""
    reports = [report for _, report in _reports(run_dir)]
    # Clocks of nodes differ, so what is known to follow from another failure comes last.
    return min(reports, key=lambda report: (report["echo"], not report["user"], report["time"]), default=None)


def first(run_dir: Path) -> str | None:
    """What the rank that failed first had to say: one line where that says all, else its traceback with its rank."""
    told = cause(run_dir)
    if told is None:
        return None
    if told["user"] or not told.get("traceback"):
        return told["message"]
    return f"rank {told['rank']} failed:\n{told['traceback'].rstrip()}"
