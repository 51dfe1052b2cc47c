"""Which runs are meant by a run folder, a sweep, a study, an experiment or an MLflow run, and what their files say."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinychat.errors import UserError
from tinychat.runs import failures, parents, trial
from tinychat.runs import folders as runs
from tinychat.runtime.run_files import Unreadable, at_home, tell_once
from tinychat.runtime.terminal import masked
from tinychat.tracking.mlflow_run import flatten

SWEEPS = "sweeps"  # OUTPUTS/sweeps/STUDY is the folder of a study
ARTIFACTS = "mlartifacts"  # OUTPUTS/mlartifacts holds MLflow's copies of files of runs
FINISHED = "finished"
_MLFLOW_ID = re.compile(r"^[0-9a-f]{32}$")


@dataclass(frozen=True)
class Run:
    """A run, by what its folder holds."""

    folder: Path
    settings: dict[str, str]  # flat, as tracking.params.flatten writes them; parents resolved
    result: dict[str, Any]  # result.json; {} while there is none
    trial: dict[str, Any]  # trial.json; {} outside a sweep

    @property
    def stage(self) -> str:
        return self.settings.get("stage.name", "")

    @property
    def seed(self) -> str:
        return self.settings.get("seed", "")

    @property
    def name(self) -> str:
        """RUN_NAME/TIME"""
        return "/".join(self.folder.parts[-2:])

    @property
    def number(self) -> int | None:
        """Of the trial within its study."""
        return self.trial.get("number")

    @cached_property
    def state(self) -> str:
        """result.json's status (finished, failed, stopped, pruned), else running, failed or unfinished."""
        if self.result.get("status"):
            return str(self.result["status"])
        if runs.is_live(self.folder):
            return "running"
        return "failed" if self._rank_error else "unfinished"

    @property
    def finished(self) -> bool:
        return self.state == FINISHED

    @property
    def why(self) -> str:
        """The first line of the error that ended the run; "" without one."""
        # result.json has what rank 0 met, which may only be the echo of another rank's failure.
        return next(iter(str(self._rank_error or self.result.get("error") or "").strip().splitlines()), "")

    @cached_property
    def _rank_error(self) -> str | None:
        first = failures.cause(self.folder)
        return str(first["message"] or "a rank failed") if first else None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """result.json's metrics that were measured."""
        found = self.result.get("metrics") or {}
        return {name: float(value) for name, value in found.items() if value is not None}

    @property
    def minutes(self) -> float | None:
        return self.result.get("minutes")

    @property
    def mlflow_id(self) -> str:
        return str((runs.read_json(self.folder / "tracking.json") or {}).get("run_id") or "")


def read_run(folder: Path) -> Run:
    """Raises Unreadable for a folder whose config.yaml cannot be read."""
    settings = flatten(runs.read_config(folder))
    settings |= _parents(folder, settings)
    return Run(folder, settings, runs.read_result(folder) or {}, trial.read(folder) or {})


def _parents(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """What auto and null stood for, so that runs of different parents are not taken for seeds of one setting."""
    found = {}
    for name, path in parents.told(folder).items():
        key = parents.setting_of(name)
        if key and path and settings.get(key, "null") in ("null", *parents.AUTO):
            found[key] = str(path)
    return found


def find(names: Sequence[str], outputs: Path) -> list[Run]:
    """The runs that the names mean together, each once, in the order of the names and of their trials or times.

    Raises UserError for a name that means nothing, with the nearest that does.
    """
    folders = {folder.resolve(): folder for name in names for folder in _folders(name, outputs)}
    found = []
    for folder in folders.values():
        try:
            found.append(read_run(folder))
        except Unreadable as error:
            if len(folders) == 1:
                raise
            tell_once(f"{error}; this run is left out")
    if not found:
        raise UserError(f"{', '.join(names)}: none of the {len(folders)} runs has a {runs.CONFIG} that can be read")
    return found


def _folders(name: str, outputs: Path) -> list[Path]:
    if name.startswith("runs:/") or _MLFLOW_ID.match(name):
        return _of_mlflow(name.removeprefix("runs:/").split("/")[0], outputs)
    places = [at_home(name), outputs / name]
    if "/" not in name:  # an experiment before a folder that is called alike: a checkout has a folder tinychat
        places.reverse()
    for path in places:
        if path.is_dir() and (found := _of_folder(path, outputs)):
            return found
    if found := _trials(outputs, lambda trial: trial.get("study") == name):
        return found
    raise _unknown(name, outputs)


def _of_folder(path: Path, outputs: Path) -> list[Path]:
    """A run itself, the trials of a sweep's own folder, or all runs below an experiment's or a run name's folder."""
    if (path / runs.CONFIG).is_file():
        return [path]
    own = path.resolve()
    # OUTPUTS/sweeps/STUDY may lie beside another OUTPUTS than the one named, and may have been moved.
    for root in dict.fromkeys((outputs, own.parent.parent)):
        if found := _trials(root, lambda trial: trial.get("sweep_dir") == str(own)):
            return found
        if own.parent.name == SWEEPS and (found := _trials(root, lambda trial: trial.get("study") == own.name)):
            return found
    below = [file.parent for depth in (1, 2) for file in path.glob("/".join(["*"] * depth) + f"/{runs.CONFIG}")]
    return sorted(below, key=lambda folder: (runs.order_of(folder), folder))


def _trials(outputs: Path, wanted: Callable[[dict[str, Any]], bool]) -> list[Path]:
    found = [(one.get("number") or 0, folder) for folder, one in _all_trials(outputs) if wanted(one)]
    return [folder for _, folder in sorted(found)]


def _all_trials(outputs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in _each(outputs, trial.FILE):
        if (found := trial.read(path.parent)) and (path.parent / runs.CONFIG).exists():
            yield path.parent, found


def _each(outputs: Path, file: str) -> Iterator[Path]:
    """That file of every run folder OUTPUTS/EXPERIMENT/RUN_NAME/TIME."""
    return (path for path in outputs.glob(f"*/*/*/{file}") if path.parts[-4] != ARTIFACTS)


def _of_mlflow(run_id: str, outputs: Path) -> list[Path]:
    """By tracking.json of the run folders; else by the store, which a folder elsewhere may be known to."""
    from tinychat.tracking.store import find_run_folder, resolve_uri, run_tags_of

    own = find_run_folder(run_id, outputs)
    if own is not None and (own / runs.CONFIG).exists():
        return [own]
    uri = resolve_uri(None, outputs)
    tags = run_tags_of(run_id, uri)
    if study := tags.get("tinychat.study"):  # a sweep's parent
        if found := _trials(outputs, lambda trial: trial.get("study") == study):
            return found
        raise UserError(f"runs:/{run_id}: is study {study!r}, of which {outputs} has no trials; give --outputs")
    folder = Path(tags.get("run_dir", ""))
    if "run_dir" in tags and (folder / runs.CONFIG).is_file():
        return [folder]
    what = f"its run folder {folder} is not here" if "run_dir" in tags else "not a run of tinychat"
    raise UserError(f"runs:/{run_id}: {what} ({masked(uri)}); give the run folder")


def _unknown(name: str, outputs: Path) -> UserError:
    if not outputs.is_dir():
        return UserError(f"{name}: nothing of that name, and no folder {outputs}; say with --outputs where runs are")
    studies = sorted({str(trial["study"]) for _, trial in _all_trials(outputs) if trial.get("study")})
    experiments = sorted({path.parts[-4] for path in _each(outputs, runs.CONFIG)})
    run_names = sorted({"/".join(path.parts[-4:-2]) for path in _each(outputs, runs.CONFIG)})
    near = difflib.get_close_matches(name, [*studies, *experiments, *run_names], n=1, cutoff=0.5)
    there = [("studies", studies), ("experiments", experiments)]
    listed = "; ".join(f"{kind} {', '.join(found[:8])}" for kind, found in there if found) or "no runs"
    exists = Path(name).exists() or (outputs / name).exists()
    what = "has no runs below it" if exists else "no such run, study or experiment"
    hint = f", did you mean {near[0]}?" if near else ";"
    return UserError(f"{name}: {what}{hint} {outputs} has {listed}")
