"""What a study has found so far: a row for each trial, the best of them, the command that repeats one; and
Optuna's own plots, as one page plots.html and a picture of each."""

from __future__ import annotations

import csv
import html
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tinychat.config.words import as_value, for_shell
from tinychat.runs import folders
from tinychat.runtime.terminal import masked
from tinychat.sweeps.study import LOST

PAGE = "plots.html"
logger = logging.getLogger(__name__)

Plot = Callable[[Any], Any]  # from optuna.visualization or optuna.visualization.matplotlib to a figure


def draw(study: optuna.Study, objective: Sequence[str], folder: Path) -> list[tuple[str, str]]:
    """Draw what the study has enough trials for; (title, picture within the folder) of each."""
    import matplotlib

    matplotlib.use("Agg")
    import optuna.visualization
    import optuna.visualization.matplotlib
    from matplotlib import pyplot

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    made: list[tuple[str, str]] = []
    pages: list[str] = []
    for name, title, plot in _plots(study, objective, len(complete)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experimental, and layouts that do not fit
                figure = plot(optuna.visualization)
                figure.update_layout(title=title)
                pages.append(figure.to_html(full_html=False, include_plotlyjs=not pages))
                axes = plot(optuna.visualization.matplotlib)
                picture = getattr(axes, "figure", None) or axes.flat[0].figure
                picture.set_size_inches(9, 5.5)
                picture.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
            made.append((title, f"{name}.png"))
        except Exception as error:  # importances of values that are all the same; a plot is no reason to fail
            logger.info("no plot of %s: %s", title, error)
        finally:
            pyplot.close("all")
    if pages:
        title = html.escape(study.study_name)
        head = f"<!doctype html><html><head><meta charset='utf-8'><title>{title}</title></head><body>"
        (folder / PAGE).write_text("\n".join([head, *pages, "</body></html>"]), encoding="utf-8")
    return made


def _plots(study: optuna.Study, objective: Sequence[str], complete: int) -> list[tuple[str, str, Plot]]:
    """(file name, title, plot) of those that make sense."""
    found: list[tuple[str, str, Plot]] = []
    several = len(objective) > 1
    for index, metric in enumerate(objective):
        if not complete:
            continue
        name = metric.replace("/", "_")
        options = {"target": _value(index), "target_name": metric} if several else {"target_name": metric}
        end = f"_{name}" if several else ""
        said = f" of {metric}" if several else ""
        found.append(
            (f"history{end}", f"Optimisation history{said}", _plot("plot_optimization_history", study, options))
        )
        if complete > 1 and any(len(trial.params) for trial in study.trials):
            found.append((f"importances{end}", f"Importance{said}", _plot("plot_param_importances", study, options)))
            found.append(
                (f"parallel{end}", f"Parallel coordinates{said}", _plot("plot_parallel_coordinate", study, options))
            )
            found.append((f"slices{end}", f"Each value{said}", _plot("plot_slice", study, options)))
    if several and len(objective) <= 3 and complete:
        front = _plot("plot_pareto_front", study, {"target_names": list(objective)})
        found.insert(0, ("pareto_front", "Pareto front", front))
    return found


def _value(index: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.values[index]


def _plot(function: str, study: optuna.Study, options: dict[str, Any]) -> Plot:
    return lambda library: getattr(library, function)(study, **options)


TABLE = "trials"
_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


@dataclass
class Row:
    """A trial as people read it."""

    number: int
    state: str
    values: dict[str, Any]
    objective: list[float] | None
    best: bool  # the best of all, or with several objectives on the front
    minutes: float | None
    run_dir: str
    error: str


def rows(study: optuna.Study, folder: Path) -> list[Row]:
    """All trials that are running or over, by number. folder: the sweep's, from which the study names run folders."""
    best = {trial.number for trial in best_trials(study)}
    return [
        Row(
            trial.number,
            "interrupted" if trial.user_attrs.get(LOST) else _WORDS[trial.state],
            trial.params,
            trial.values,
            trial.number in best,
            trial.user_attrs.get("minutes"),
            _here(folder, trial.user_attrs.get("run_dir")),
            trial.user_attrs.get("error", ""),
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.state is not TrialState.WAITING
    ]


def _here(folder: Path, run_dir: str | None) -> str:
    """A run folder as the study keeps it (`to_keep`), where it lies now."""
    return os.path.normpath(folder.absolute() / run_dir) if run_dir else ""


def to_keep(folder: Path, run_dir: Path) -> str:
    """A run folder, from the sweep's: outputs that are moved as a whole keep their studies."""
    return os.path.relpath(run_dir.absolute(), folder.absolute())


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The best complete trial, first of equals; with several objectives those that no other beats in all of them."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    if len(study.directions) > 1:
        return study.best_trials
    sign = -1 if study.direction is optuna.study.StudyDirection.MAXIMIZE else 1
    return [min(complete, key=lambda trial: (sign * trial.values[0], trial.number))]


def columns(objective: Sequence[str], keys: Sequence[str]) -> list[str]:
    return ["trial", "state", "best", *keys, *objective, "minutes", "run folder", "error"]


def cells(row: Row, objective: Sequence[str], keys: Sequence[str]) -> list[Any]:
    found: Sequence[float | None] = row.objective or [None] * len(objective)
    numbers = [None if value is None or not math.isfinite(value) else value for value in found]
    mark = "yes" if row.best else ""
    values = [row.values.get(key) for key in keys]
    return [row.number, row.state, mark, *values, *numbers, row.minutes, row.run_dir, row.error]


def write_table(folder: Path, found: Sequence[Row], objective: Sequence[str], keys: Sequence[str]) -> None:
    """trials.csv, trials.json and trials.html in the sweep's folder."""
    names, content = columns(objective, keys), [cells(row, objective, keys) for row in found]
    folders.write_text_atomic(folder / f"{TABLE}.json", json.dumps({"columns": names, "data": content}, indent=1))
    temporary = folder / f".{TABLE}.csv"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *content])
    temporary.replace(folder / f"{TABLE}.csv")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "\n".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in content)
    page = (
        f'<!doctype html><meta charset="utf-8"><title>Trials</title><table border="1"><tr>{head}</tr>\n{body}</table>\n'
    )
    folders.write_text_atomic(folder / f"{TABLE}.html", page)


def _cell(value: Any) -> str:
    return html.escape(shown(value))


def shown(value: Any) -> str:
    """Four digits of a number; a word as it is."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def command(fixed: Sequence[str], base: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The command that does what a trial did, without a sweep.

    fixed: overrides of all trials but those of the sweep, and the trial's choice of groups. base: the flat
    configuration with these alone. run: the trial's own, flat. What differs is said.
    """
    said = [
        f"{key}={_word(value)}"
        for key, value in run.items()
        if key.split(".")[0] not in folders.NOT_IDENTITY and base.get(key, ...) != value
    ]
    overwritten = {word.split("=")[0] for word in said}
    kept = [word for word in fixed if word.split("=")[0] not in overwritten]
    return for_shell(["python", "-m", "tinychat.train", *map(masked, [*kept, *said])])


def remove_checkpoints(found: Sequence[Row]) -> None:
    """Free the disk of trials that are over and neither the best nor on the front: no later trial makes them so."""
    for row in found:
        if row.run_dir and not row.best and row.state in ("complete", "pruned"):
            shutil.rmtree(Path(row.run_dir) / folders.CHECKPOINTS, ignore_errors=True)


def _word(value: Any) -> str:
    return as_value(value) if isinstance(value, str) else json.dumps(value)
