"""One study in a database, worked on by any number of processes: who takes which trial, and what became of it.

A trial counts towards `n_trials` when it is complete, pruned, failed by itself, or running in a process that lives.
One whose process was killed or interrupted does not count: its values are tried again, once.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from tinychat.config.schema import SweepConfig
from tinychat.errors import UserError
from tinychat.runtime.terminal import masked
from tinychat.sweeps.space import make_pruner, make_sampler
from tinychat.tracking.store import sqlite_path, sqlite_uri

DATABASE = "study.db"
HEARTBEAT_SECONDS = 15  # a running trial says so this often,
GRACE_SECONDS = 90  # and is taken for dead after so long a silence
LOCK_SECONDS = 60  # a database that another process holds for longer is an error
LOST = "lost"  # attribute: ended with its process, does not count


def storage_url(settings: SweepConfig, folder: Path) -> str:
    return settings.storage or sqlite_uri(folder / DATABASE)


@contextlib.contextmanager
def readable(url: str) -> Iterator[None]:
    """What a database says becomes a UserError."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, ImportError, RuntimeError) as error:
        cause = getattr(error, "orig", None) or error
        line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise UserError(
            f"the study's database {masked(url)}: {line}; close what holds it or name another with sweep.storage="
        ) from None


def _check_sqlite(url: str) -> None:
    """A file that is locked, no database, or in a folder that cannot be written says so at once."""
    path = sqlite_path(url)
    if path is None:
        return
    if not path.parent.is_dir():
        raise sqlite3.OperationalError(f"no folder {path.parent}")
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.rollback()


class SharedStudy:
    """An Optuna study with the rules above. Trials are asked for under a lock on the sweep's folder."""

    def __init__(
        self,
        settings: SweepConfig,
        folder: Path,
        distributions: dict[str, BaseDistribution],
        directions: Sequence[str],
        points: Sequence[dict[str, Any]] | None,
        facts: dict[str, Any],
        first: dict[str, Any] | None = None,
    ):
        """points: the combinations of a grid, else None. facts: what must be the same in all trials of the study.
        first: values that a new study tries before it searches.

        Raises UserError where the database cannot be used or holds a study of another kind.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.settings, self.folder, self.url = settings, folder, storage_url(settings, folder)
        self.distributions, self.points = distributions, points
        self.n_trials = settings.n_trials if points is None else min(settings.n_trials or len(points), len(points))
        self._lock = FileLock(folder / ".lock")
        pruner = make_pruner(settings)
        make_sampler(settings, 0)  # wrong options are told here
        with self._locked():
            _check_sqlite(self.url)
            connect = {"connect_args": {"timeout": LOCK_SECONDS}} if sqlite_path(self.url) else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.storage = RDBStorage(
                    self.url, connect, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
                )
            self.study = self._open(list(directions), pruner, facts, first)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with readable(self.url), self._lock:
            yield

    def _open(
        self, directions: list[str], pruner: Any, facts: dict[str, Any], first: dict[str, Any] | None
    ) -> optuna.Study:
        name, text = self.settings.study, json.dumps(facts, sort_keys=True, default=str)
        names = [
            summary.study_name for summary in optuna.get_all_study_summaries(self.storage, include_best_trial=False)
        ]
        self.new = name not in names
        if self.new:
            made = {"storage": self.storage, "study_name": name, "pruner": pruner}
            study = optuna.create_study(directions=directions, **made)  # type: ignore[arg-type]
            study.set_user_attr("facts", text)
            if first is not None:
                study.enqueue_trial(first)
            return study
        study = optuna.load_study(storage=self.storage, study_name=name, pruner=pruner)
        had = [direction.name.lower() for direction in study.directions]
        other = f"; go on with those, or choose another study with sweep.study=NAME (now {name})"
        if had != directions:
            raise UserError(f"sweep.direction={directions}: the study has {had}{other}")
        old, new = json.loads(study.user_attrs.get("facts", "{}")), json.loads(text)
        changed = [
            f"{key}={old.get(key)} there, {new.get(key)} now" for key in {**old, **new} if old.get(key) != new.get(key)
        ]
        if changed:
            raise UserError(f"the study was made with other settings: {'; '.join(changed[:5])}{other}")
        for trial in study.get_trials(deepcopy=False):
            for key, before in trial.distributions.items():
                now = self.distributions.get(key)
                listed = isinstance(before, CategoricalDistribution) or isinstance(now, CategoricalDistribution)
                if now is None or (listed and now != before):
                    found = "not searched" if now is None else str(getattr(now, "choices", now))
                    raise UserError(f"search space: {key} is {found} now, the study has {before}{other}")
        return study

    def trials(self) -> list[FrozenTrial]:
        """All that are running or over, by number."""
        with readable(self.url):
            return [t for t in self.study.get_trials(deepcopy=False) if t.state is not TrialState.WAITING]

    def counted(self) -> int:
        return sum(counts(trial) for trial in self.trials())

    def claim(self) -> tuple[Trial, dict[str, Any]] | None:
        """The next trial and its values, now this process's; None when all that are wanted are taken."""
        with self._locked():
            self._recover()
            trials = self.study.get_trials(deepcopy=False)
            if sum(counts(trial) for trial in trials) >= (self.n_trials or 0):
                return None
            if self.points is not None and not any(trial.state is TrialState.WAITING for trial in trials):
                taken = [trial.params for trial in trials if counts(trial)]
                self.study.enqueue_trial(next(point for point in self.points if point not in taken))
            self.study.sampler = make_sampler(self.settings, len(trials))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial = self.study.ask()
            me = {"where": _where(), "pid": os.getpid(), "started": psutil.Process().create_time()}
            trial.set_user_attr("worker", me)
            self.storage.record_heartbeat(trial._trial_id)
            values = {name: trial._suggest(name, distribution) for name, distribution in self.distributions.items()}
            earlier = [t.number for t in self.study.get_trials(deepcopy=False) if counts(t) and t.number < trial.number]
            if len(earlier) >= (self.n_trials or 0):  # a machine with another disk was faster
                self._lose(trial._trial_id, "not needed", again=None)
                return None
            return trial, values

    def finish(self, trial: Trial, state: TrialState, values: Sequence[float] | None, facts: dict[str, Any]) -> None:
        """Record how a trial ended. facts: attributes to keep with it (run folder, minutes, error)."""
        with self._locked():
            if trial._trial_id in [t._trial_id for t in self.study.get_trials(deepcopy=False) if t.state.is_finished()]:
                return  # taken for dead, by a clock that jumped or a machine that slept
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            if state is TrialState.PRUNED and values is not None and len(values) == 1:
                last = max(trial.storage.get_trial(trial._trial_id).intermediate_values, default=-1)
                trial.report(values[0], last + 1)  # the last value is a pruned trial's own
            self.study.tell(trial, values if state is TrialState.COMPLETE else None, state)

    def give_back(self, trial: Trial, why: str) -> None:
        """The trial was interrupted: it does not count, and its values are tried again."""
        with self._locked():
            self._lose(trial._trial_id, why, again=trial.params)

    def _recover(self) -> None:
        """Trials whose process is gone are given back."""
        stale = set(self.storage._get_stale_trial_ids(self.study._study_id))
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _dead(trial, trial._trial_id in stale):
                again = None if trial.user_attrs.get("again") else trial.params
                self._lose(trial._trial_id, "its process was killed", again)

    def _lose(self, trial_id: int, why: str, again: dict[str, Any] | None) -> None:
        for name, value in ((LOST, True), ("error", why)):
            self.storage.set_trial_user_attr(trial_id, name, value)
        self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        if again and again.keys() == self.distributions.keys():
            self.study.enqueue_trial(again, user_attrs={"again": True})


def counts(trial: FrozenTrial) -> bool:
    """Whether the trial is one of the n_trials."""
    return trial.state is not TrialState.WAITING and not trial.user_attrs.get(LOST)


def _where() -> str:
    """This machine since it was started, and this container: where a process number means what it says."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {boot.read_text().strip()} {os.readlink(space)}"
    return socket.gethostname()


def _dead(trial: FrozenTrial, stale: bool) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is None:  # killed between asking and signing
        age = datetime.datetime.now() - (trial.datetime_start or datetime.datetime.now())
        return age.total_seconds() > GRACE_SECONDS
    if worker["where"] != _where():
        return stale
    try:
        process = psutil.Process(worker["pid"])
        return abs(process.create_time() - worker["started"]) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
