"""curves.png: what was logged, one panel a quantity, over the optimizer steps."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinychat.runtime.run_files import said_of
from tinychat.tracking.base import Row
from tinychat.tracking.vocabulary import QUANTITIES, TECHNICAL, is_share, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = list[tuple[int, float]]  # (step, value), by step
logger = logging.getLogger(__name__)

# Doubles of other panels, and what only grows.
_NOT_DRAWN = {
    "data/tokens",
    "data/epoch",
    "eval/tokens",
    "perf/step_seconds",
    "perf/samples_per_s",
    "eval/response_ppl",
}
_SIZES = ("_rows", "_tokens")  # how much was measured says nothing about what was
_BOUNDS = ("_low", "_high")
_LOG_SCALE = {"ppl"}
_LINEAR = {"lr"}  # a warm-up from nothing
_MARKED = {"loss", "ppl", "grad_norm"}
_COLORS = {"train": "#3b76af", "eval": "#d1602c"}
_OTHER_COLORS = ("#4c956c", "#7b5ea7", "#8c6d31", "#5f6b75")
_FROM_ZERO = {"tokens_per_s", "memory_gb", "lr"}
_DECADES = 100.0  # highest / lowest value from which on an axis is logarithmic
_TELLING = 0.25  # spread of shares from which on their axis shows all of 0 to 1
_CLOSEST = 0.05  # least part of 0 to 1 that an axis of shares shows: what lies within is chance more often than not
_STEADY = 0.02  # relative range up to which a perf/ quantity is left to the table
_MANY_POINTS = 120  # from here on a running mean is drawn over the points
_MAX_PANELS = 12


def series_of(rows: Sequence[Row]) -> dict[str, Series]:
    """The points of every metric by step; the last one counts where a step was logged twice."""
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.metrics.items():
            points.setdefault(name, {})[row.step] = value
    return {name: sorted(values.items()) for name, values in points.items()}


def panels_of(series: dict[str, Series]) -> list[tuple[str, list[str]]]:
    """[(quantity, metric names)]: train/loss and eval/loss share a panel. One point, or a steady speed, has none."""
    panels: dict[str, list[str]] = {}
    for name in series:
        drawn = name not in _NOT_DRAWN and not name.endswith((*_BOUNDS, *_SIZES))
        if drawn and not _is_steady(name, series[name]):
            panels.setdefault(name.rpartition("/")[2], []).append(name)
    several = {key: names for key, names in panels.items() if max(_finite(series[name]) for name in names) > 1}
    return sorted(several.items(), key=lambda item: _place(item[0]))[:_MAX_PANELS]


def _place(quantity: str) -> tuple[int, int]:
    """As vocabulary.QUANTITIES has them, then those without a name of their own, then what is technical."""
    for part, names in ((0, QUANTITIES), (2, TECHNICAL)):
        if quantity in names:
            return part, list(names).index(quantity)
    return 1, 0


def _finite(points: Series) -> int:
    return sum(math.isfinite(value) for _, value in points)


def _is_steady(name: str, points: Series) -> bool:
    values = [value for _, value in points]
    return name.startswith("perf/") and max(values) - min(values) <= _STEADY * max(values)


def write_curves(rows: Sequence[Row], path: Path, stage: str = "", marks: Mapping[str, int] | None = None) -> bool:
    """Draw `rows` to a PNG; False where there is nothing to draw or matplotlib does not work.

    stage: whose units the quantities have. marks: {what changes: at which step}, a line across the training losses.
    """
    series = series_of(rows)
    panels = panels_of(series)
    return bool(panels) and save_picture(path, lambda: _draw(series, panels, stage, marks or {}))


def save_picture(path: Path, draw: Callable[[], Figure]) -> bool:
    """The figure as a PNG that is there whole or not at all; False where that failed, which is told."""
    whole = path.with_name(f".{path.name}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = draw()
        FigureCanvasAgg(figure)
        if layout := figure.get_layout_engine():  # saving would draw everything once more for it
            layout.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(whole, facecolor="white", format="png")
        os.replace(whole, path)
    except Exception as error:  # a broken matplotlib or a full disk costs the picture, not the report
        whole.unlink(missing_ok=True)
        logger.warning("no %s: %s: %s", path.name, type(error).__name__, said_of(error))
        return False
    return True


def _draw(
    series: dict[str, Series], panels: list[tuple[str, list[str]]], stage: str, marks: Mapping[str, int]
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = 1 if len(panels) == 1 else 2
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * lines), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    last = max(points[-1][0] for points in series.values())
    for index, (quantity, names) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, index + 1)
        _panel(axes, quantity, {name: series[name] for name in names}, stage)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        if quantity in _MARKED:
            mark(axes, {what: step for what, step in marks.items() if 0 < step < last})
    return figure


def mark(axes: Axes, marks: Mapping[str, int]) -> None:
    """A loss that jumps because other data begin would look like one that diverges."""
    for what, step in marks.items():
        axes.axvline(step, color="#555555", linewidth=1, linestyle=(0, (4, 3)))
        left = step > sum(axes.get_xlim()) / 2  # of the line there is more room
        text = axes.text(step, 0.97, f"{what} " if left else f" {what}", ha="right" if left else "left", va="top")
        text.set(fontsize=7.5, color="#555555", transform=axes.get_xaxis_transform())


def _panel(axes: Axes, quantity: str, metrics: dict[str, Series], stage: str) -> None:
    spare = iter(_OTHER_COLORS)
    for name, points in metrics.items():
        prefix = name.partition("/")[0]
        _line(axes, prefix, points, _COLORS.get(prefix) or next(spare, "#555555"))
    style_axes(axes, next(iter(metrics)), stage)
    if len(metrics) > 1:
        axes.legend(fontsize=8, frameon=False)


def title_of(metric: str, stage: str) -> str:
    """loss (nats per pair)"""
    label, unit = label_of(metric, stage)
    return f"{label} ({unit})" if unit else label


def style_axes(axes: Axes, metric: str, stage: str) -> None:
    """Title, steps, grid and scale of a panel of a metric of a stage; after its lines are drawn."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title_of(metric, stage), fontsize=10, loc="left")
    axes.set_xlabel("optimizer step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _scale(axes, metric)


def _line(axes: Axes, label: str, points: Series, color: str) -> None:
    steps = [step for step, _ in points]
    values = [value if math.isfinite(value) else math.nan for _, value in points]
    if len(points) < _MANY_POINTS or label == "schedule":
        marker = "o" if len(points) <= 30 else None
        axes.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=3, label=label)
        return
    window = max(len(points) // 40, 2)
    axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
    mean = _running_mean(values, window)
    axes.plot(steps, mean, color=color, linewidth=1.4, label=f"{label} (mean of {2 * window + 1} points)")


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of up to 2 * window + 1 points around each; fewer at the ends, the same number on both sides."""
    means = []
    for i in range(len(values)):
        half = min(window, i, len(values) - 1 - i)
        means.append(sum(values[i - half : i + half + 1]) / (2 * half + 1))
    return means


def _scale(axes: Axes, metric: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, ScalarFormatter

    quantity = metric.rpartition("/")[2]
    values = [float(y) for line in axes.get_lines() for y in line.get_ydata() if math.isfinite(float(y))]  # type: ignore[union-attr]
    share = is_share(metric)
    if share:
        axes.set_ylim(*share_limits(values))  # never logarithmic: these limits may lie below 0
    if not share and is_logarithmic(quantity, values):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        subs = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0) if high / low > 4 else tuple(range(1, 10))
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    elif axes.get_ylim()[1] >= 1000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        plain = ScalarFormatter(useOffset=False)
        plain.set_powerlimits((-6, 6))  # 0.0003, not 3 and a power of ten in the corner
        axes.yaxis.set_major_formatter(plain)
    if quantity in _FROM_ZERO:
        axes.set_ylim(bottom=0)


def is_logarithmic(quantity: str, values: Sequence[float]) -> bool:
    """Whether a quantity spans decades: on a linear axis all but its largest values would lie on the ground."""
    if quantity in _LINEAR or not values or min(values) <= 0:
        return False
    return quantity in _LOG_SCALE or max(values) / min(values) >= _DECADES


def share_limits(values: Sequence[float]) -> tuple[float, float]:
    """Of the axis of shares: all of 0 to 1 where they spread over a good part of it, else what lies around them."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low >= _TELLING or low < 0 or high > 1:
        return min(low, 0.0) - 0.02, max(high, 1.0) + 0.02
    room = max((high - low) * 0.1, (_CLOSEST - (high - low)) / 2)
    low, high = low - room, high + room
    shift = max(-low, 0.0) - max(high - 1, 0.0)
    return low + shift - 0.002, high + shift + 0.002
