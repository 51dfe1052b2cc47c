"""A sweep from its first trial to its report: ask the study, run the trial, tell the study, until all are taken. A
running trial is watched: a sign of life in the study, what it measured so far, an early end where that is hopeless."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import Trial, TrialState
from optuna.trial import Trial as Asked

from tinychat.config.explain import explain
from tinychat.config.schema import KeepCheckpoints, PrunerKind
from tinychat.errors import UserError
from tinychat.launch import job
from tinychat.runs import folders, trial
from tinychat.runtime.run_files import said_of
from tinychat.runtime.terminal import say
from tinychat.sweeps import results
from tinychat.sweeps.ending import Ending
from tinychat.sweeps.prepare import facts_of, prepare
from tinychat.sweeps.space import described, overrides_of
from tinychat.sweeps.study import HEARTBEAT_SECONDS, SharedStudy
from tinychat.tracking import MetricsLog

LOOK_SECONDS = 0.5
logger = logging.getLogger(__name__)


class Watch:
    """A context manager around a trial's run. `begin` is told the run folder once there is one."""

    def __init__(self, study: SharedStudy, asked: Trial, metric: str | None):
        """metric: the objective that is compared with other trials' during training; None: nothing is."""
        self._study, self._trial, self._metric = study, asked, metric
        self._folder: Path | None = None
        self._steps = 1
        self._told: set[int] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trial-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def begin(self, run_dir: Path, max_steps: int) -> None:
        self._steps, self._folder = max_steps, run_dir

    def _run(self) -> None:
        beat = time.monotonic()
        while not self._done.wait(LOOK_SECONDS):
            try:
                if time.monotonic() - beat > HEARTBEAT_SECONDS:
                    self._study.storage.record_heartbeat(self._trial._trial_id)
                    beat = time.monotonic()
                self._look()
            except Exception as error:  # a database that is busy: the trial goes on, the next look tries again
                logger.debug("trial %d: %s", self._trial.number, error)

    def _look(self) -> None:
        """Report what is new, and ask the trial to stop where the pruner says so."""
        if self._folder is None or self._metric is None:
            return
        for row in MetricsLog(self._folder / "metrics.jsonl").read():
            value, percent = row.metrics.get(self._metric), progress(row.step, self._steps)
            if value is None or not math.isfinite(value) or not 0 < percent < 100 or percent in self._told:
                continue
            self._trial.report(value, percent)
            self._told.add(percent)
            if self._trial.should_prune() and not (self._folder / folders.RESULT).exists():
                why = f"{self._metric} {value:.4g} at {percent} % is no match for the other trials at that point"
                trial.ask_to_stop(self._folder, why)


def progress(step: int, steps: int) -> int:
    """How much of a trial is done, in per cent: what trials of different lengths are compared by."""
    return round(100 * step / max(steps, 1))


LONGEST_ERROR = 4000  # characters kept in the study


class Sweep:
    """One process that works on a study, alone or beside others."""

    def __init__(self, master: DictConfig, context: HydraContext, task: TaskFunction):
        self._master, self._context, self._task = master, context, task
        self._error: Exception | None = None  # of the trial that runs
        self._max_steps = 1
        self._errors: list[str] = []  # of this process's trials
        self._failed_in_row = 0

    def run(self, arguments: list[str]) -> None:
        """The whole sweep. Raises UserError before the first trial for what cannot work, JobFailed where trials failed
        (in a search: all, or too many in a row), Stopped or KeyboardInterrupt when it is stopped."""
        self.plan = plan = prepare(self._master, self._context, arguments)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._job, config=self._master
        )
        config = plan.config
        if config.launch.dry_run or not config.launch.wait or config.plan is not False:
            self._start_only()
            return
        facts = facts_of(self._master, plan.space, plan.config)
        _writable(plan.folder)
        points, space = plan.points, plan.space.distributions
        first = None
        if plan.settings.own_first and points is None:
            own = {key: OmegaConf.select(self._master, key.lstrip("+")) for key in space}
            first = plan.space.nearest(own)
            if first is None:
                say(f"sweep.own_first: the run's own values are not in the space, the first trial is another: {own}")
        self.study = SharedStudy(plan.settings, plan.folder, space, plan.directions, points, facts, first)
        self._introduce()
        self.ending = Ending(plan, self.study, self._context, self._master)
        with folders.working_on(plan.folder):
            self._run_trials()
        if self._errors and (plan.plain or not results.best_trials(self.study.study)):
            raise job.JobFailed(self._errors[0])

    def _run_trials(self) -> None:
        parent = self.ending.open_parent()
        status = "KILLED"
        try:
            while claimed := self.study.claim():
                self._trial(*claimed, parent)
            status = "FINISHED"
        except job.JobFailed:
            status = "FAILED"
            raise
        finally:
            self.ending.finish(status)

    def _start_only(self) -> None:
        """Jobs whose end this command does not see (launch.wait=false) or which are only shown (dry_run, plan)."""
        if not self.plan.plain and not self.plan.config.launch.wait:
            raise UserError("launch.wait=false: a search needs the result of each trial; leave it out")
        points = self.plan.points if self.plan.points is not None else self.plan.space.probes()[:1]
        jobs = [[*self.plan.space.fixed, *overrides_of(values)] for values in points]
        for number, overrides in enumerate(jobs):
            self._launcher.launch([overrides], initial_job_idx=number)
            if self._error is not None:
                raise self._error

    def _introduce(self) -> None:
        plan, wanted = self.plan, self.study.n_trials
        what = ", ".join(f"{way} {name}" for way, name in zip(plan.directions, plan.objective, strict=True))
        how = "all combinations" if plan.points is not None else plan.settings.sampler.value
        done = self.study.counted()
        say(f"sweep {plan.settings.study} in {plan.folder}: {how}, {what}")
        if (
            self.study.new
            and not plan.plain
            and (lost := _trials_of(plan.settings.study, Path(plan.config.paths.outputs)))
        ):
            say(
                f"  its database had no such study, so a new one begins; the {lost} run folders of earlier trials of "
                "that name stay, and are not counted"
            )
        for name, distribution in plan.space.distributions.items():
            if not plan.plain:
                say(f"  {name}: {described(distribution)}")
        say(f"  {done} of {wanted} trials done or running, {max(0, (wanted or 0) - done)} to go")

    def _trial(self, asked: Asked, values: dict[str, Any], parent: str | None) -> None:
        """Run one trial to its end and record it."""
        plan, began = self.plan, time.monotonic()
        one = trial.Trial(
            plan.settings.study,
            asked.number,
            values,
            plan.objective,
            plan.directions,
            plan.folder.absolute(),
            plan.plain,
            plan.settings.quiet,
            list(plan.settings.prune_on),
        )
        metric = plan.objective[0] if plan.settings.pruner is not PrunerKind.none else None
        try:
            with Watch(self.study, asked, metric) as watch:
                one.on_start = lambda folder: self._started(asked, folder, watch)
                tracked = [f"tracker.parent={parent}"] if parent else []
                self._launch(one, [*plan.space.fixed, *overrides_of(values), *tracked])
        except (job.Stopped, KeyboardInterrupt) as stop:
            self.study.give_back(asked, f"interrupted: {stop or 'Ctrl-C'}")
            say(f"trial {asked.number} interrupted; the same command goes on with it")
            raise
        state, found, facts = self._outcome(one)
        facts["minutes"] = round((time.monotonic() - began) / 60, 3)
        self.study.finish(asked, state, found, facts)
        self._told(asked.number, values)
        self._clean()
        if state is TrialState.FAIL:
            self._failed_in_row += 1
            self._errors.append(facts["error"])
            if self._failed_in_row >= plan.settings.max_failures:
                raise job.JobFailed(
                    f"{self._failed_in_row} trials in a row failed (sweep.max_failures={plan.settings.max_failures}), "
                    f"the last: {facts['error']}"
                )
        else:
            self._failed_in_row = 0

    def _launch(self, one: trial.Trial, overrides: Sequence[str]) -> None:
        self._error = None
        trial.expect(one)
        try:
            self._launcher.launch([list(overrides)], initial_job_idx=one.number)
        except Exception as error:  # this combination of values is no configuration
            self._error = error
        finally:
            trial.expect(None)

    def _job(self, node: DictConfig) -> Any:
        """What Hydra's launcher calls: the job, whose error is kept for the study."""
        self._max_steps = OmegaConf.select(node, "stage.max_steps", default=1)
        try:
            return self._task(node)
        except Exception as error:
            self._error = error
            return None

    def _started(self, asked: Asked, folder: Path, watch: Watch) -> None:
        watch.begin(folder, self._max_steps)
        asked.set_user_attr("run_dir", results.to_keep(self.plan.folder, folder))
        if self.plan.settings.quiet:
            say(f"trial {asked.number} runs in {folder}")

    def _outcome(self, one: trial.Trial) -> tuple[TrialState, list[float] | None, dict[str, Any]]:
        """How the trial ended, its objective, and what to keep with it."""
        if self._error is not None:
            return TrialState.FAIL, None, {"error": _line(self._error)[:LONGEST_ERROR]}
        result = (folders.read_result(one.run_dir) if one.run_dir else None) or {}
        metrics = result.get("metrics") or {}
        if self.plan.plain and result.get("objective") is not None:
            found = [result["objective"]]  # stages may differ from job to job
        else:
            found = [metrics.get(name) for name in one.objective]
        lacking = [name for name, value in zip(one.objective, found, strict=True) if value is None]
        wrong = [f"{name} is {value}" for name, value in zip(one.objective, found, strict=True) if not _finite(value)]
        if result.get("status") == "pruned":
            values = None if wrong else [float(value) for value in found]
            return TrialState.PRUNED, values, {"error": result.get("error") or ""}
        if lacking:
            has = ", ".join(sorted(name for name in metrics if not name.endswith(("_low", "_high")))) or "nothing"
            return TrialState.FAIL, None, {"error": f"the run did not measure {', '.join(lacking)}; it has {has}"}
        if wrong:
            return TrialState.FAIL, None, {"error": "; ".join(wrong)}
        return TrialState.COMPLETE, [float(value) for value in found], {}

    def _told(self, number: int, values: dict[str, Any]) -> None:
        """The trial's line, the table in the folder, and the parent run's curve."""
        found = results.rows(self.study.study, self.plan.folder)
        row = next(row for row in found if row.number == number)
        names, best = self.plan.objective, [one for one in found if one.best]
        parts = [f"trial {number}", row.state]
        if row.objective:
            parts += [f"{name} {results.shown(value)}" for name, value in zip(names, row.objective, strict=True)]
        if len(names) > 1:
            parts.append(f"{len(best)} on the front")
        elif best:
            parts.append(f"best {results.shown(best[0].objective[0])} (trial {best[0].number})")  # type: ignore[index]
        parts += [f"{row.minutes:.1f} min", " ".join(overrides_of({k: results.shown(v) for k, v in values.items()}))]
        if row.error:
            parts.append(row.error.strip().splitlines()[-1])
        say(" | ".join(part for part in parts if part))
        self.ending.trial_done(number, found)

    def _clean(self) -> None:
        """Remove the checkpoints of trials that are no candidates any more."""
        if self.plan.settings.keep_checkpoints is KeepCheckpoints.best:
            results.remove_checkpoints(results.rows(self.study.study, self.plan.folder))


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UserError(f"{said_of(error, folder)}; choose another folder with paths.outputs=") from None


def _trials_of(study: str, outputs: Path) -> int:
    """How many run folders say that they are a trial of this study."""
    found = (trial.read(path.parent) for path in outputs.glob(f"*/*/*/{trial.FILE}"))
    return sum(one is not None and one["study"] == study for one in found)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _line(error: Exception) -> str:
    known = (HydraException, OmegaConfBaseException)
    return explain(error) if isinstance(error, known) else str(error) or type(error).__name__
