"""Curves of groups of runs over each other: the mean over the seeds, and the band between the lowest and highest."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinychat.compare.groups import MINUTES, Comparison, Group
from tinychat.compare.settings import short_names, short_value
from tinychat.report.curves import Series, series_of, style_axes, title_of
from tinychat.tracking.metrics_log import MetricsLog

MOST_GROUPS = 8  # curves in one figure, the best
MOST_FIGURES = 6  # where the user names no metrics
# told apart in grey and by most of the colour-blind (after Okabe and Ito 2008)
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5b00", "#555555")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Band:
    """Steps (N,) that all n runs of a group cover, and there their mean, lowest and highest (N,)."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int


def band_of(series: Sequence[Series]) -> Band | None:
    """Over the runs that have at least two finite points. Between its points a run is taken to be straight, as runs
    need not be logged at the same steps. None where there is no such run, or they have no steps in common."""
    lines = [[(step, value) for step, value in points if math.isfinite(value)] for points in series]
    lines = [points for points in lines if len(points) > 1]
    if not lines:
        return None
    first, last = max(points[0][0] for points in lines), min(points[-1][0] for points in lines)
    steps = np.array(sorted({step for points in lines for step, _ in points if first <= step <= last}), np.float64)
    if len(steps) < 2:
        return None
    values = np.stack([np.interp(steps, *np.array(points, np.float64).T) for points in lines])
    return Band(steps, values.mean(0), values.min(0), values.max(0), len(lines))


def draw(found: Comparison, chosen: Sequence[str], folder: Path) -> list[tuple[str, str]]:
    """One PNG a metric; [(metric, file)]. chosen: metrics to draw; without them the compared one, train/loss and those
    beside, up to MOST_FIGURES. A metric that was logged once a run has no curve."""
    groups = [group for group in found.measured if group.finished][:MOST_GROUPS]
    logs = [[series_of(MetricsLog(run.folder / "metrics.jsonl").read()) for run in group.finished] for group in groups]
    wanted = list(chosen) or [found.metric, "train/loss", "rl/reward", "rl/kl", *found.further]
    pictures: list[tuple[str, str]] = []
    for metric in dict.fromkeys(wanted):
        bands = [band_of([log[metric] for log in own if metric in log]) for own in logs]
        if metric == MINUTES or not any(bands) or (not chosen and len(pictures) == MOST_FIGURES):
            continue
        file = f"{metric.replace('/', '-')}.png"
        try:
            _figure(metric, groups, bands, found.keys, folder / file)
        except Exception as error:  # a broken matplotlib costs the picture, not the report
            logger.warning("no %s: %s: %s", file, type(error).__name__, str(error).partition("\n")[0])
            continue
        pictures.append((metric, file))
    return pictures


def _figure(
    metric: str, groups: Sequence[Group], bands: Sequence[Band | None], keys: Sequence[str], path: Path
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for group, band, color in zip(groups, bands, _COLORS, strict=False):
        if band is None:
            continue
        marker = "o" if len(band.steps) <= 30 else None
        name = curve_label(group, keys)
        axes.plot(band.steps, band.mean, color=color, linewidth=1.5, marker=marker, markersize=3, label=name)
        if band.n > 1:
            axes.fill_between(band.steps, band.low, band.high, color=color, alpha=0.16, linewidth=0)
    stages = {run.stage for group in groups for run in group.runs}
    stage = stages.pop() if len(stages) == 1 else ""
    style_axes(axes, metric, stage)
    axes.set_title(f"{metric}: {title_of(metric, stage)}", fontsize=10, loc="left")
    legend = axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a path is no formula
    figure.savefig(path, facecolor="white")


def curve_label(group: Group, keys: Sequence[str]) -> str:
    """#1 lr=0.001 (3 seeds); of one trial: #1 trial 4: lr=...; without settings the run's name."""
    names = short_names(keys)
    said = "\n".join(f"{names[key]}={short_value(group.settings[key])}" for key in keys[:4])
    if len(group.finished) == 1:
        run = group.finished[0]
        trial = "" if run.number is None else f"trial {run.number}" + (": " if said else "")
        return f"#{group.place} " + (f"{trial}{said}" or run.name)
    seeds = len({run.seed for run in group.finished})
    return f"#{group.place} {said or 'all runs'} ({seeds} seeds)"
