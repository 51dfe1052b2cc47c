"""What a sweep leaves behind: its MLflow run, table, plots and report, and the winner in the model registry."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from tinychat.config.schema import TrackerKind
from tinychat.launch.job import flatten
from tinychat.report.run import Report, Table, write_pages
from tinychat.runs import folders
from tinychat.runtime.run_files import Unreadable, if_readable, read_text
from tinychat.runtime.terminal import masked, say
from tinychat.sweeps import results
from tinychat.sweeps.prepare import Plan, without_hydra
from tinychat.sweeps.results import Row
from tinychat.sweeps.space import described
from tinychat.sweeps.study import SharedStudy, counts
from tinychat.tracking import METRICS, resolve_uri, run_tags
from tinychat.tracking.mlflow_run import HEADLINE, NOTE
from tinychat.tracking.mlflow_tracker import SweepRun

logger = logging.getLogger(__name__)
SHOWN = 10  # trials of a front on the terminal


class Ending:
    """Written as far as it goes after every trial, and whole when a process has no more to do."""

    def __init__(self, plan: Plan, study: SharedStudy, context: HydraContext, master: DictConfig):
        self._plan, self._study, self._context, self._master = plan, study, context, master
        self._keys = list(plan.space.distributions)
        config = plan.config
        self._parent: SweepRun | None = None
        # With tracker.parent=ID on the command line the trials are that run's.
        if config.tracker.kind is TrackerKind.mlflow and config.tracker.parent is None:
            outputs = Path(config.paths.outputs)
            uri = resolve_uri(config.tracker.uri, outputs)
            self._parent = SweepRun(plan.folder, outputs, config.experiment_name, plan.settings.study, uri)

    def open_parent(self) -> str | None:
        """The id of the MLflow run that the trials are shown under; None without one."""
        if self._parent is None:
            return None
        plan, config = self._plan, self._plan.config
        what = {
            "study": plan.settings.study,
            "sampler": plan.settings.sampler.value,
            "pruner": plan.settings.pruner.value,
            "n_trials": self._study.n_trials,
            "objective": plan.objective,
            "direction": plan.directions,
            "space": {name: described(distribution) for name, distribution in plan.space.distributions.items()},
            "fixed": plan.space.fixed,
        }
        tags = run_tags(config.stage.name, config.model.name, config.data.name)
        return self._parent.open(what, {**tags, "tinychat.study": plan.settings.study})

    def trial_done(self, number: int, found: Sequence[Row]) -> None:
        """The table, and a point of the parent's curve: the best so far."""
        results.write_table(self._plan.folder, found, self._plan.objective, self._keys)
        if self._parent is None:
            return
        best = [row for row in found if row.best]
        over = sum(row.state not in ("running", "interrupted") for row in found)
        metrics = {"sweep/trials": float(over)}
        if len(self._plan.objective) > 1:
            metrics["sweep/front"] = float(len(best))
        elif best and best[0].objective:
            metrics[self._plan.objective[0]] = best[0].objective[0]
        self._parent.point(number, metrics)

    def finish(self, status: str) -> None:
        """Report, plots, registry. A failure here must not hide what the sweep did."""
        try:
            with folders.folder_lock(self._plan.folder):
                self._finish(status)
        except Exception as error:
            logger.warning("report of the sweep: %s: %s", type(error).__name__, error)

    def _finish(self, status: str) -> None:
        plan, study = self._plan, self._study
        found = results.rows(study.study, plan.folder)
        results.write_table(plan.folder, found, plan.objective, self._keys)
        best = [row for row in found if row.best]
        command = self._command(best[0]) if best else ""
        pictures = results.draw(study.study, plan.objective, plan.folder)
        write_pages(plan.folder, self._report(found, best, command, pictures))
        running = sum(trial.state is TrialState.RUNNING and counts(trial) for trial in study.trials())
        ended = None if running else status
        version = self._register(best[0]) if best and ended == "FINISHED" and len(plan.objective) == 1 else None
        self._send(ended, best, command, pictures, version)
        self._say(found, best, command, running, version)

    def _command(self, row: Row) -> str:
        """The command that repeats a trial without its sweep."""
        plan = self._plan
        fixed = [word for word in plan.space.fixed if not word.startswith(("sweep=", "sweep.", "+sweep"))]
        groups = {key: value for key, value in row.values.items() if self._context.config_loader.get_group_options(key)}
        words = [*fixed, *(f"{key}={value}" for key, value in groups.items())]
        base = self._context.config_loader.load_sweep_config(self._master, words)
        flat = flatten(OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(without_hydra(base), resolve=True))))
        try:
            own = flatten(folders.read_config(Path(row.run_dir)))
        except Unreadable:  # the run folder is gone
            return ""
        return results.command(words, flat, own)

    def _report(self, found: Sequence[Row], best: Sequence[Row], command: str, pictures: list) -> Report:
        plan, settings = self._plan, self._plan.settings
        states = [row.state for row in found]
        facts = [
            ("trials", ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))),
            ("sampler", "every combination" if plan.points is not None else settings.sampler.value),
            ("pruner", settings.pruner.value),
            *((f"search {name}", described(space)) for name, space in plan.space.distributions.items()),
            ("command line", " ".join(map(masked, plan.space.fixed))),
            ("study", self._study.url),
            ("plots to look into", results.PAGE if pictures else "none yet"),
        ]
        scores = []
        for row in best[:20]:
            for name, value in zip(plan.objective, row.objective or [], strict=False):
                scores.append((f"{name} of trial {row.number}", results.shown(value), METRICS.get(name, "")))
        if len(best) == 1:
            facts += [(f"best {name}", results.shown(value)) for name, value in best[0].values.items()]
            facts.append(("best run folder", best[0].run_dir))
        names = results.columns(plan.objective, self._keys)
        lines = [[results.shown(cell) for cell in results.cells(row, plan.objective, self._keys)] for row in found]
        for line in lines:
            line[-1] = line[-1].strip().splitlines()[-1] if line[-1].strip() else ""
        table = Table("Trials", names, lines)
        title = f"{'Multirun' if plan.plain else 'Sweep'} {settings.study}"
        return Report(title, ", ".join(plan.objective), command, facts, scores, pictures=pictures, tables=[table])

    def _register(self, row: Row) -> str | None:
        """The version of the winner in the model registry; None where there is none to make."""
        name, folder = self._plan.settings.register, Path(row.run_dir)
        result = folders.read_result(folder) or {}
        if self._parent is None or not name or not result.get("checkpoint"):
            return None
        tags = {"tinychat.study": self._plan.settings.study, "tinychat.trial": row.number}
        said = {f"sweep.{key}": value for key, value in row.values.items()}
        return self._parent.register(name, folder, folder / result["checkpoint"], {**tags, **said})

    def _send(self, status: Any, best: Sequence[Row], command: str, pictures: list, version: str | None) -> None:
        if self._parent is None:
            return
        plan, folder = self._plan, self._plan.folder
        tags: dict[str, Any] = {"best.command": command, NOTE: _note(folder), HEADLINE: headline(plan.objective, best)}
        if len(plan.objective) == 1 and best:
            tags |= {"best.trial": best[0].number, "best.value": best[0].objective[0]}  # type: ignore[index]
            tags |= {f"best.{key}": value for key, value in best[0].values.items()}
        elif best:
            tags["best.trials"] = [row.number for row in best]
        if version:
            tags["best.model"] = f"models:/{plan.settings.register}/{version}"
        names = ["report.md", "report.html", results.PAGE, *(file for _, file in pictures)]
        names += [f"{results.TABLE}.{end}" for end in ("csv", "html")]
        files = [folder / name for name in names if (folder / name).exists()]
        table = folders.read_json(folder / f"{results.TABLE}.json") or {"columns": [], "data": []}
        self._parent.close(status, tags, files, table)

    def _say(self, found: Sequence[Row], best: Sequence[Row], command: str, running: int, version: str | None) -> None:
        plan, lines = self._plan, []
        for row in best[:SHOWN]:
            scores = zip(plan.objective, row.objective or [], strict=False)
            said = ", ".join(f"{name} {results.shown(value)}" for name, value in scores)
            lines.append(
                f"{'best' if len(plan.objective) == 1 else 'front'}: {said} (trial {row.number}, {row.run_dir})"
            )
        if len(best) > SHOWN:
            lines.append(f"and {len(best) - SHOWN} more on the front, in {plan.folder / results.TABLE}.csv")
        if command:
            lines += [f"trial {best[0].number} again:"] * (len(plan.objective) > 1) + [f"  {command}"]
        if version:
            lines.append(f"registered: models:/{plan.settings.register}/{version}")
        if running:
            lines.append(f"{running} trials still run in other processes; the last of them completes the report")
        lines.append(f"report: {plan.folder / 'report.html'}")
        say("\n".join(lines))


def headline(objective: Sequence[str], best: Sequence[Row]) -> str:
    """What MLflow's table says of a sweep: its best value; of several objectives how many trials none beats."""
    if not best:
        return "no trial is complete"
    if len(objective) > 1:
        return f"{len(best)} on the front"
    return f"{results.shown(best[0].objective[0] if best[0].objective else None)} {objective[0]}"


def _note(folder: Path) -> str:
    """The report for MLflow's description, without its pictures."""
    text = if_readable(lambda: read_text(folder / "report.md")) or ""
    return "\n".join(line for line in text.splitlines() if not line.startswith("!["))
