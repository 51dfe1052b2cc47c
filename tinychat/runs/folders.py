"""Run folders: how they are made, locked, found again, and which checkpoint in them is meant.

    outputs/EXPERIMENT/RUN_NAME/TIME/
        config.yaml  command.txt  log.txt  metrics.jsonl  result.json  report.md  checkpoints/step-000100/ ...

Imports no torch: the parent process uses it before anything heavy is loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tinychat.config.schema import Config
from tinychat.config.specs import Made, spec_of
from tinychat.errors import UserError
from tinychat.runtime import gguf, manifest, run_files
from tinychat.runtime.manifest import TRAINER_STATE as TRAINER_STATE
from tinychat.runtime.run_files import NUMBER, Unreadable, at_home, if_readable, tell_once
from tinychat.runtime.run_files import write_text_atomic as write_text_atomic

CONFIG = "config.yaml"
CREATED = "created.json"
COMMAND = "command.txt"
RESULT = "result.json"
ENDED_WELL = ("finished", "pruned")  # its status, where there is a result; pruned: a trial that a sweep gave up
LOCK = ".lock"  # held by rank 0 while it runs
START_LOCK = ".start.lock"  # held by the command, from before it writes to the folder until its ranks have ended
WORKING = ".working"
CHECKPOINTS = "checkpoints"
TABLES = "tables"
PICTURES = "pictures"
LINEAGE = "lineage.json"
MARKS = ("config.json", "adapter_config.json", "tokenizer.json", "vocab.json", "corpus.json", "word_judge.json")
BEST = "best"  # after a run folder: its checkpoint with the best score
LONGEST_NAME = 100  # characters of the name that a corpus gets from its sources
STARTED = ".started"
LOCK_ATTEMPTS = 5
STOP = ".stop"  # made to have the ranks save and stop, see tinychat.launch.guard
STEP_PATTERN = re.compile(r"^step-(\d{6,})$")
OUTPUTS = "OUTPUTS"  # stands for paths.outputs where a path is kept that must survive a move of all of it
# What may differ between a run and its continuation: where and how it runs, not what it computes.
NOT_IDENTITY = (
    "run_dir",
    "run_name",
    "resume",
    "resume_data",
    "tracker",
    "launch",
    "paths",
    "checkpoint",
    "sweep",
    "plan",
)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none, or (said once) none that can be read."""
    return if_readable(lambda: run_files.read_json(path))


def read_config(run_dir: Path) -> dict[str, Any]:
    """A run's resolved configuration. Raises Unreadable where there is no usable one."""
    found = run_files.read_yaml(run_dir / CONFIG)
    if found is None:
        raise Unreadable(f"{run_dir / CONFIG}: is missing")
    if not isinstance(found.get("stage"), dict):
        raise Unreadable(f"{run_dir / CONFIG}: names no stage, so it is cut short or no run's")
    return found


_RESULT_KINDS: dict[str, run_files.Kind] = {
    "status": (str, type(None)),
    "objective": (*NUMBER, type(None)),
    "objective_name": (str, type(None)),
    "metrics": (dict, type(None)),
    "checkpoint": (str, type(None)),
    "minutes": (*NUMBER, type(None)),
    "error": (str, type(None)),
    "facts": (dict, type(None)),
}


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """A run's result.json with `metrics` that are numbers (or null); None while there is none, or where it cannot be
    read, which is said once: such a run counts as one that has not finished."""

    def read() -> dict[str, Any] | None:
        found = run_files.read_json(run_dir / RESULT, _RESULT_KINDS)
        for name, value in ((found or {}).get("metrics") or {}).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, NUMBER)):
                raise Unreadable(f"{run_dir / RESULT}: metrics: {name} is no number")
        return found

    return if_readable(read)


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """Of a resolved configuration what decides what a run computes. Paths below its paths.outputs are written from
    there, so that outputs that were moved as a whole are the same."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    paths = config.get("paths")
    outputs = paths.get("outputs") if isinstance(paths, dict) else None
    return moved(kept, str(outputs), OUTPUTS) if outputs else kept


def moved(tree: Any, old: str, new: str) -> Any:
    """The same tree of mappings and lists, with every path in folder `old` as one in folder `new`."""
    if isinstance(tree, dict):
        return {key: moved(value, old, new) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [moved(value, old, new) for value in tree]
    folder = old.rstrip("/") + "/"
    return f"{new}/{tree.removeprefix(folder)}" if isinstance(tree, str) and tree.startswith(folder) else tree


def config_identity(config: dict[str, Any]) -> str:
    """Hash of everything in a resolved configuration that decides what a run computes."""
    return hashlib.sha256(json.dumps(deciding(config), sort_keys=True, default=str).encode()).hexdigest()[:16]


class RunLock:
    """An advisory lock on a run folder, held by the process that writes there; freed when that process ends."""

    def __init__(self, run_dir: Path, name: str = LOCK):
        self.path = run_dir / name
        try:
            self._file = open(self.path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 - held until release
        except (IsADirectoryError, PermissionError) as error:
            raise UserError(
                f"{self.path}: {error.strerror}; it is the lock of a run folder, which this process must hold: "
                "remove it, or choose another folder"
            ) from None
        if not _locked(self._file):
            self._file.seek(0)
            owner = " ".join(self._file.read(200).split()) or "another process"
            self._file.close()
            raise UserError(
                f"run folder {run_dir} is in use by {owner}; wait for it, stop it, or choose another folder"
            )
        with contextlib.suppress(OSError):  # on a full disk the folder is locked by a process without a name
            self._file.truncate(0)
            os.write(self._file.fileno(), f"process {os.getpid()}".encode())
        _held.add(self)

    def release(self) -> None:
        self._file.close()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    """A process that was forked and outlives this one must not keep the folder."""
    for lock in list(_held):
        lock.release()  # this process's copy alone


os.register_at_fork(after_in_child=_let_go_in_fork)


def _locked(file: TextIO) -> bool:
    """Take the lock of an open file. Tries for a moment: who asks whether a run is live holds it for an instant."""
    for attempt in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt + 1 < LOCK_ATTEMPTS:
                time.sleep(0.02)
    return False


def start_lock(run_dir: Path) -> RunLock:
    """The lock of a command that starts ranks. Raises UserError while another command, or what is left of its ranks,
    works in the folder."""
    lock = RunLock(run_dir, START_LOCK)
    try:
        if (run_dir / LOCK).exists():
            RunLock(run_dir).release()
    except UserError:
        lock.release()
        raise
    return lock


def is_live(run_dir: Path) -> bool:
    """Whether a running process holds one of the folder's locks."""
    return any(_is_held(run_dir / name) for name in (START_LOCK, LOCK))


def _is_held(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; a reader may look at another user's runs
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


@contextlib.contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """Marks a folder that several processes may work on at once (a sweep's) as worked on; see is_worked_on."""
    with open(folder / WORKING, "ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_worked_on(folder: Path) -> bool:
    """Whether any process is within working_on(folder)."""
    try:
        file = open(folder / WORKING, "rb")  # noqa: SIM115 - closed below
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def new_run_dir(outputs: Path, experiment: str, run_name: str) -> Path:
    """Make a folder of its own for a run; safe when several start in the same second."""
    parent = outputs / experiment / run_name
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1000):
        path = parent / (stamp if attempt == 0 else f"{stamp}-{attempt}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise UserError(f"could not make a new run folder under {parent}")


def default_run_name(config: Config) -> str:
    """STAGE-MODEL-DATA; stages without a model name their tokenizer, and a corpus its sources."""
    spec = spec_of(config)
    if spec.makes is Made.corpus:
        return f"{spec.name}-{'+'.join(config.stage.sources) or config.data.name}"[:LONGEST_NAME]
    if spec.makes is Made.word_judge:
        return f"{spec.name}-{config.data.name}"
    subject = config.model.name if spec.has_model else config.tokenizer.name
    return f"{config.stage.name}-{subject}-{config.data.name}"


def mark_created(run_dir: Path) -> None:
    """Give a new run of OUTPUTS/EXPERIMENT/RUN_NAME/TIME its place among those of its experiment: created.json, with a
    number one above all others' and the time in UTC. Names are in local time, and clocks are set back; numbers grow.
    """
    experiment = run_dir.absolute().parent.parent
    with folder_lock(experiment):
        last = max((order_of(path.parent)[0] for path in experiment.glob(f"*/*/{CREATED}")), default=0)
        content = {"number": last + 1, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write_text_atomic(run_dir / CREATED, json.dumps(content))


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One process at a time, without a file of its own: the folder itself is locked."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def order_of(run_dir: Path) -> tuple[int, str, str]:
    """What runs are sorted by, oldest first: (number, UTC time, name). Runs from before there were numbers come first,
    by the time in their names."""
    try:
        found = run_files.read_json(run_dir / CREATED, {"number": int, "time": str})
    except Unreadable as error:
        tell_once(f"{error}; this run counts as older than those with a number")
        found = None
    return (found["number"], found["time"], run_dir.name) if found else (0, "", run_dir.name)


def iter_runs(
    outputs: Path, experiment: str, skip: Callable[[Path], bool] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All runs of an experiment with their resolved configurations, newest first; without folders to `skip`.

    One whose configuration cannot be read is left out, which is said once: it must not stop every other run.
    """
    folders = [path.parent for path in (outputs / experiment).glob(f"*/*/{CONFIG}")]
    # When it was made decides: a resumed run does not become newer than one started after it.
    for folder in sorted(folders, key=order_of, reverse=True):
        if skip is not None and skip(folder):
            continue
        try:
            config = read_config(folder)
        except Unreadable as error:
            tell_once(f"{error}; this run is passed over")
            continue
        yield folder, config


def matching_runs(
    outputs: Path,
    experiment: str,
    wanted: Callable[[dict[str, Any]], bool],
    finished: bool,
    skip: Callable[[Path], bool] | None = None,
) -> Iterator[Path]:
    """The runs whose configuration is `wanted` and that have finished (or, finished=False, have not), newest first."""
    for folder, config in iter_runs(outputs, experiment, skip):
        try:
            if not wanted(config):
                continue
        except (KeyError, TypeError, AttributeError) as error:  # keys that every run has are missing or of another type
            tell_once(f"{folder / CONFIG}: no configuration of a run ({error!r}); this run is passed over")
            continue
        done = (read_result(folder) or {}).get("status") == "finished"
        if done == finished:
            yield folder


def newest_run(
    outputs: Path,
    experiment: str,
    wanted: Callable[[dict[str, Any]], bool],
    finished: bool,
    skip: Callable[[Path], bool] | None = None,
) -> Path | None:
    return next(matching_runs(outputs, experiment, wanted, finished, skip), None)


def remove_leftovers(run_dir: Path) -> None:
    """Remove what an earlier start, killed while it wrote or removed something, has left. The caller holds the lock."""
    run_files.remove_leftovers(run_dir)
    remove_half_checkpoints(run_dir)


def remove_half_checkpoints(run_dir: Path) -> None:
    for pattern in (".saving-*", ".removing-*"):
        for leftover in (run_dir / CHECKPOINTS).glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def checkpoint_step(path: Path) -> int | None:
    match = STEP_PATTERN.match(path.name)
    return int(match.group(1)) if match else None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first (a half-written one has a temporary name and is not listed)."""
    folder = run_dir / CHECKPOINTS
    there = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in there if checkpoint_step(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: checkpoint_step(path) or 0)


def resumable_checkpoints(run_dir: Path) -> list[Path]:
    """Those that hold a trainer's state, oldest first."""
    return [path for path in list_checkpoints(run_dir) if (path / TRAINER_STATE).is_dir()]


def resume_step(run_dir: Path) -> int | None:
    """The step a run that was started before goes on from (0: it saved none); None for one that starts now."""
    if not (run_dir / STARTED).exists():
        (run_dir / STARTED).touch()
        return None
    able = resumable_checkpoints(run_dir)
    return checkpoint_step(able[-1]) if able else 0


def best_checkpoints(run_dir: Path) -> list[Path]:
    """Those of a run that have a score (of the stage's own metric, on held-out data), the best first; of equal ones the
    later."""
    newest_first = reversed(list_checkpoints(run_dir))
    scored = [(score, path) for path in newest_first if (score := manifest.checkpoint_score(path)) is not None]
    return [path for _, path in sorted(scored, key=lambda pair: pair[0])]


def best_checkpoint(run_dir: Path) -> Path | None:
    return next(iter(best_checkpoints(run_dir)), None)


def means_best(path: Path) -> bool:
    """Whether a path is that of a run folder with /best after it."""
    path = at_home(path)
    return path.name == BEST and not path.exists() and path.parent.is_dir()


def _resolve_best(run_dir: Path) -> Path:
    best = best_checkpoint(run_dir)
    if best is None:
        raise UserError(
            f"checkpoint {run_dir / BEST}: no checkpoint of {run_dir} has a score (checkpoint.keep_best above 0 gives "
            f"them one); take its last one: {run_dir}"
        )
    verify_checkpoint(best)
    return best


class Unusable(UserError):
    """A checkpoint that is damaged or gone. The message says which, and what to take instead."""


def first_usable(folders: Iterable[Path], which: str = "") -> Path | None:
    """The checkpoint (which: "", the chosen one, or BEST) of the first of some run folders that has a whole one; runs
    where it is damaged, gone or closed to this user are passed over, which is said once. None where there are no runs.
    Raises UserError where none of them has a whole one."""
    problems: list[UserError] = []
    for folder in folders:
        try:
            checkpoint = resolve_checkpoint(str(folder / which))
            verify_contents(checkpoint)
        except (Unusable, Unreadable) as error:
            problems.append(error)
            continue
        for problem in problems:
            tell_once(f"{problem}; this run is passed over")
        return checkpoint
    if problems:
        raise problems[0]
    return None


def resolve_checkpoint(spec: str) -> Path:
    """The checkpoint folder that a path means: itself, or a run folder's chosen one (its result's, else the newest), or
    with /best after the run folder the one with the best score; of a GGUF file what is made of it.

    Raises UserError when there is none.
    """
    if gguf.is_gguf(spec):
        return gguf.folder_of(spec)
    path = at_home(spec)
    if means_best(path):
        return _resolve_best(path.parent)
    if problem := run_files.why_closed(path):
        raise Unusable(f"checkpoint {spec}: {problem}")
    if not path.exists():
        raise UserError(f"checkpoint {spec}: no such folder; give a checkpoint or run folder (see outputs/)")
    if any((path / name).is_file() for name in MARKS):
        verify_checkpoint(path)
        return path
    result = read_result(path)
    chosen = path / result["checkpoint"] if result and result.get("checkpoint") else None
    if chosen is not None and not chosen.is_dir():
        raise Unusable(f"checkpoint {chosen}, the one that {path} ended with, is gone{_instead(chosen)}")
    for candidate in [chosen] if chosen is not None else list_checkpoints(path)[-1:]:
        verify_checkpoint(candidate)
        return candidate
    raise Unusable(f"checkpoint {spec}: holds no checkpoint (no config.json, and no {CHECKPOINTS}/step-* below it)")


def verify_checkpoint(checkpoint: Path) -> None:
    """Raise Unusable when a file of a checkpoint is missing or shorter than it was written. Foreign folders pass, and
    those without the trainer's state, which a copy or an older checkpoint need not have."""
    if damage := manifest.damage(checkpoint):
        raise Unusable(f"checkpoint {checkpoint} is damaged: {damage}{_instead(checkpoint)}")


def verify_contents(checkpoint: Path, wanted: Callable[[str], bool] = lambda name: "/" not in name) -> None:
    """Raise Unusable when a file of a checkpoint has another content than was written: of those whose name in it is
    `wanted`, else of all but the trainer's state. Whoever opens files calls it; they are read as a whole for it."""
    if damage := manifest.change(checkpoint, wanted):
        raise Unusable(
            f"checkpoint {checkpoint} is damaged: {damage}{_instead(checkpoint)}; if you changed it on purpose, delete "
            f"{checkpoint / manifest.MANIFEST}"
        )


def _instead(checkpoint: Path) -> str:
    """For a message: another checkpoint of the run that is whole."""
    for other in reversed(list_checkpoints(checkpoint.parent.parent)):
        if other == checkpoint or manifest.damage(other) or manifest.change(other, lambda _name: True):
            continue
        resumes = checkpoint.exists() and (other / TRAINER_STATE).is_dir()
        how = " (remove the damaged folder to resume from there)" if resumes else ""
        return f"; use {other.name} beside it{how}"
    return ""
