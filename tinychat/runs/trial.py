"""One trial of a sweep, seen from its run folder: what it is (trial.json), and how it is asked to stop early.

The sweep says in its own process which trial it starts next; `launch.run_job` calls `begin` when the run folder is
known. The ranks only read files, so it does not matter how and where they were started.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinychat.runs import folders
from tinychat.runtime import run_files

FILE = "trial.json"
STOP = ".prune"  # holds the reason
_KINDS: dict[str, run_files.Kind] = {
    "study": str,
    "number": int,
    "values": (dict, type(None)),
    "objective": (list, type(None)),
    "directions": (list, type(None)),
    "sweep_dir": (str, type(None)),
    "plain": (bool, type(None)),
    "prune_on": (list, type(None)),
}
OUTPUT = "output.txt"  # what the trial's processes say, where the terminal is the sweep's


@dataclass
class Trial:
    """What a sweep knows of a trial before it runs."""

    study: str
    number: int
    values: dict[str, Any]  # key of the configuration -> value
    objective: list[str]  # metrics
    directions: list[str]  # minimize or maximize, of each
    sweep_dir: Path
    plain: bool = False  # of a multirun that searches nothing: an ordinary run, whose checkpoint `auto` may take
    quiet: bool = False  # output goes to the run folder, not to the terminal
    prune_on: list[str] = field(default_factory=list)  # alarms of tinychat.stages.rollouts that end it
    on_start: Callable[[Path], None] | None = None
    run_dir: Path | None = None  # once it is known


_current: list[Trial] = []  # at most one: what the next run_job of this process belongs to


def expect(trial: Trial | None) -> None:
    """The next run of this process is this trial (None: of no sweep)."""
    _current[:] = [trial] if trial else []


def begin(run_dir: Path) -> None:
    """Mark the folder as the expected trial's, if there is one."""
    if not _current:
        return
    trial = _current[0]
    trial.run_dir = run_dir
    content = {
        "study": trial.study,
        "number": trial.number,
        "values": trial.values,
        "objective": trial.objective,
        "directions": trial.directions,
        "sweep_dir": os.path.relpath(trial.sweep_dir, run_dir.absolute()),  # outputs may be moved as a whole
        "plain": trial.plain,
        "prune_on": trial.prune_on,
    }
    folders.write_text_atomic(run_dir / FILE, json.dumps(content, indent=1))
    (run_dir / STOP).unlink(missing_ok=True)
    if trial.on_start:
        trial.on_start(run_dir)


def output_file(run_dir: Path) -> Path | None:
    """Where the processes of this run write what they say; None: to the terminal."""
    return run_dir / OUTPUT if _current and _current[0].quiet else None


def read(run_dir: Path) -> dict[str, Any] | None:
    """The trial of a run folder, its sweep_dir where that lies now; None for a run that is none, or whose file cannot
    be read (which is said once)."""
    found = run_files.if_readable(lambda: run_files.read_json(run_dir / FILE, _KINDS))
    if found and found.get("sweep_dir"):
        found["sweep_dir"] = str((run_dir / found["sweep_dir"]).resolve())
    return found


def of_search(run_dir: Path) -> bool:
    """Whether a run is a trial among others that are worse or better, and not one that was asked for."""
    if not (run_dir / FILE).exists():
        return False
    found = read(run_dir)
    return found is None or not found.get("plain")  # what cannot be read is no run to build on unasked


def tags(run_dir: Path) -> dict[str, str]:
    """What tells an MLflow run of a trial from others: study, number, swept values."""
    found = read(run_dir)
    if not found:
        return {}
    values = {f"sweep.{name}": str(value) for name, value in (found.get("values") or {}).items()}
    return {"tinychat.study": found["study"], "tinychat.trial": str(found["number"]), **values}


def title(run_dir: Path, name: str) -> str:
    """What a run is called where many are listed: a trial's number comes first, as long names are cut."""
    found = read(run_dir)
    return f"trial {found['number']} {name}" if found else name


def ask_to_stop(run_dir: Path, reason: str) -> None:
    """Have the run end after its current step; it writes its result as a pruned trial's."""
    folders.write_text_atomic(run_dir / STOP, reason)


def asked_to_stop(run_dir: Path) -> str | None:
    """The reason, where somebody asked."""
    return run_files.if_readable(lambda: run_files.read_text(run_dir / STOP))
