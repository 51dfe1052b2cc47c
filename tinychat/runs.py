"""Run folders: how they are made, locked, found again, and which checkpoint in them is meant.

    outputs/EXPERIMENT/RUN_NAME/TIME/
        config.yaml  command.txt  log.txt  metrics.jsonl  result.json  report.md  checkpoints/step-000100/ ...

Imports no torch: the parent process uses it before anything heavy is loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinychat.errors import UserError
from tinychat.schema import Config

CONFIG = "config.yaml"
COMMAND = "command.txt"
RESULT = "result.json"
ENDED_WELL = ("finished", "pruned")  # its status, where there is a result; pruned: a trial that a sweep gave up
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
TABLES = "tables"
PICTURES = "pictures"
LINEAGE = "lineage.json"
MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state"
STARTED = ".started"
STOP = ".stop"  # made to have the ranks save and stop, see tinychat.guard
STEP_PATTERN = re.compile(r"^step-(\d{6,})$")
# What may differ between a run and its continuation: where and how it runs, not what it computes.
NOT_IDENTITY = ("run_dir", "run_name", "resume", "tracker", "launch", "paths", "checkpoint", "sweep", "plan")


def write_text_atomic(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's content, or None where it is missing or unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def config_identity(config: dict[str, Any]) -> str:
    """Hash of everything in a resolved configuration that decides what a run computes."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


class RunLock:
    """An advisory lock on a run folder, held by the process that writes there; freed when that process ends."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / LOCK
        self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - held until release
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(
                f"run folder {run_dir} is in use by {owner}; wait for it, stop it, or choose another folder"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def is_live(run_dir: Path) -> bool:
    """Whether a running process holds the folder's lock."""
    if not (run_dir / LOCK).exists():
        return False
    with open(run_dir / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
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
    """STAGE-MODEL-DATA; stages without a model name their tokenizer."""
    subject = config.tokenizer.name if config.stage.name in ("tokenizer", "corpus") else config.model.name
    return f"{config.stage.name}-{subject}-{config.data.name}"


def iter_runs(
    outputs: Path, experiment: str, skip: Callable[[Path], bool] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All runs of an experiment with their resolved configurations, newest first; without folders to `skip`."""
    from omegaconf import OmegaConf

    folders = [path.parent for path in (outputs / experiment).glob(f"*/*/{CONFIG}")]
    # The folder's own time stamp decides (a resumed run does not become newer than one started after it).
    for folder in sorted(folders, key=lambda path: (path.name, path.stat().st_mtime), reverse=True):
        if skip is not None and skip(folder):
            continue
        try:
            config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
        except Exception:  # a run folder somebody edited must not stop every other run
            continue
        if isinstance(config, dict):
            yield folder, config  # type: ignore[misc]


def newest_run(
    outputs: Path,
    experiment: str,
    wanted: Callable[[dict[str, Any]], bool],
    finished: bool,
    skip: Callable[[Path], bool] | None = None,
) -> Path | None:
    """The newest run whose configuration is `wanted` and that has finished (or, finished=False, has not)."""
    for folder, config in iter_runs(outputs, experiment, skip):
        if not wanted(config):
            continue
        result = read_json(folder / RESULT)
        done = result is not None and result.get("status") == "finished"
        if done == finished:
            return folder
    return None


def checkpoint_step(path: Path) -> int | None:
    match = STEP_PATTERN.match(path.name)
    return int(match.group(1)) if match else None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first (a half-written one has a temporary name and is not listed)."""
    folder = run_dir / CHECKPOINTS
    found = [path for path in folder.iterdir() if checkpoint_step(path) is not None] if folder.is_dir() else []
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


def resolve_checkpoint(spec: str) -> Path:
    """The checkpoint folder that a path means: itself, or a run folder's chosen one (its result's, else the newest).

    Raises UserError when there is none.
    """
    path = Path(spec).expanduser()
    if not path.exists():
        raise UserError(f"checkpoint {spec}: no such folder; give a checkpoint or run folder (see outputs/)")
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json", "tokenizer.json", "vocab.json")):
        verify_checkpoint(path)
        return path
    result = read_json(path / RESULT)
    chosen = path / result["checkpoint"] if result and result.get("checkpoint") else None
    candidates = [chosen] if chosen is not None and chosen.is_dir() else list_checkpoints(path)[-1:]
    for candidate in candidates:
        verify_checkpoint(candidate)
        return candidate
    raise UserError(f"checkpoint {spec}: holds no checkpoint (no config.json, and no {CHECKPOINTS}/step-* below it)")


def write_manifest(checkpoint: Path, score: float | None, without: str | None = None) -> None:
    """Record the size of every file of a checkpoint (leaving out one folder), and its score (lower is better)."""
    files = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST and path.relative_to(checkpoint).parts[0] != without
    }
    write_text_atomic(checkpoint / MANIFEST, json.dumps({"score": score, "files": files}, indent=1))


def checkpoint_score(checkpoint: Path) -> float | None:
    return (read_json(checkpoint / MANIFEST) or {}).get("score")


def verify_checkpoint(checkpoint: Path) -> None:
    """Raise UserError when a file of a checkpoint is missing or shorter than it was written (foreign folders pass)."""
    manifest = read_json(checkpoint / MANIFEST)
    for name, size in (manifest or {}).get("files", {}).items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, {size} were written"
            others = [other.name for other in list_checkpoints(checkpoint.parent.parent) if other != checkpoint]
            hint = f"; use {others[-1]} beside it (remove the damaged folder to resume from there)" if others else ""
            raise UserError(f"checkpoint {checkpoint} is damaged: {name} {state}{hint}")
