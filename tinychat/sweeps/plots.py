"""Optuna's own plots of a study: one page plots.html that can be looked into, and a picture of each."""

from __future__ import annotations

import html
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

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
