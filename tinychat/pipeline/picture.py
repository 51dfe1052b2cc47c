"""recipe.png: a whole recipe in one picture, what its stages learnt and how the policies answer the same prompts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinychat.config.specs import SPECS
from tinychat.report.curves import Series, mark, save_picture, series_of, style_axes, title_of
from tinychat.report.headline import figures_of
from tinychat.report.run import CURRICULUM
from tinychat.runs import folders
from tinychat.tracking.base import MetricsLog
from tinychat.tracking.vocabulary import label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "recipe.png"
_COLORS = ("#3b76af", "#d1602c")
_COLUMNS = 3
_WIDTH, _PANEL_HEIGHT = 9.6, 2.1  # inches
_ROWS = 3  # prompts: the first ones of the recipe
_LINE = 0.155  # inches between two lines of the table
_TITLE_SIZES = (9.0, 8.5, 8.0)  # points: of a title the largest in which it is no wider than its panel
_LETTERS = 36  # of a line of a cell at most
_ALL_LETTERS = 144  # of a line of all cells of a row
_LONGEST = 4  # lines of a cell; what is longer ends in an ellipsis
_GREY = "#555555"


@dataclass
class Panel:
    """Curves of a step that stand together."""

    name: str  # of the step
    stage: str
    curves: dict[str, Series]
    logged: dict[str, Series]  # all of the stage, bounds among them
    headline: str  # what its step has reached; "" but in the first panel of a step
    marks: dict[str, int]  # what begins: at which step


def write_picture(
    path: Path, runs: Mapping[str, tuple[str, Path]], policies: Sequence[str], samples: Sequence[Mapping[str, str]]
) -> bool:
    """Draw a recipe to a PNG; False where there is nothing to draw or matplotlib does not work.

    runs: step -> its stage and the folder of its finished run. policies: whose replies the samples have.
    samples: [{"prompt": text, POLICY: reply, ...}], of which the first three are shown.
    """
    panels = panels_of(runs)
    rows = [[row["prompt"], *(row[name] for name in policies)] for row in samples[:_ROWS]]
    if not panels and not rows:
        return False
    return save_picture(path, lambda: _draw(panels, ["prompt", *policies] if rows else [], rows))


def panels_of(runs: Mapping[str, tuple[str, Path]]) -> list[Panel]:
    """In the order of the steps, without those that have no curve."""
    found: list[Panel] = []
    for step, (stage, run) in runs.items():
        series = series_of(MetricsLog(run / "metrics.jsonl").read())
        for choices in SPECS[stage].panels:
            curves = ({name: series[name] for name in names if name in series} for names in choices)
            chosen = next((one for one in curves if any(len(points) > 1 for points in one.values())), None)
            if chosen is None:
                continue
            first = not any(panel.name == step for panel in found)
            last = {name: points[-1][1] for name, points in series.items()}
            figures = figures_of(stage, last, {}) if first else []
            figures = sorted(figures, key=lambda figure: figure.metric not in chosen)[:1]  # its curves' own first
            facts = (folders.read_result(run) or {}).get("facts")
            marks = facts.get(CURRICULUM) if isinstance(facts, dict) else None
            reached = "".join(f"{figure.label}: {figure.value}" for figure in figures)
            found.append(Panel(step, stage, chosen, series, reached, marks if isinstance(marks, dict) else {}))
    return found


def _draw(panels: Sequence[Panel], head: list[str], rows: list[list[str]]) -> Figure:
    from matplotlib.figure import Figure

    letters = min(_LETTERS, _ALL_LETTERS // max(1, len(head)))
    cells = [[_wrapped(cell, letters) for cell in row] for row in rows]
    table = _LINE * (sum(max(map(len, row)) + 0.9 for row in cells) + 2.2) if rows else 0.0
    lines = -(-len(panels) // _COLUMNS)
    height = _PANEL_HEIGHT * lines + table
    figure = Figure(figsize=(_WIDTH, height), dpi=130)
    if panels:
        grid = figure.add_gridspec(lines, _COLUMNS, left=0.055, right=0.985, wspace=0.22, hspace=0.62)
        grid.update(top=1 - 0.3 / height, bottom=(table + 0.42) / height)
        for index, panel in enumerate(panels):
            _panel(figure.add_subplot(grid[divmod(index, _COLUMNS)]), panel)
    if rows:
        _table(figure, head, cells, table, height)
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    """Its curves, with the 95 % bounds of what was measured with them."""
    for (name, points), color in zip(panel.curves.items(), _COLORS, strict=False):
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        if not finite:
            continue
        size = 2.2 if len(points) > 1 else 5.0  # what was measured once, at the end
        line = "-" if len(points) > 1 else "none"
        steps, values = zip(*finite, strict=True)
        label = _label(name, panel)
        axes.plot(steps, values, color=color, linewidth=1.4, linestyle=line, marker="o", markersize=size, label=label)
        low, high = (dict(panel.logged.get(name + end, ())) for end in ("_low", "_high"))
        for step in steps:
            if step in low and step in high:
                axes.plot([step, step], [low[step], high[step]], color=color, linewidth=1.0, alpha=0.6)
    style_axes(axes, next(iter(panel.curves)), panel.stage)
    mark(axes, panel.marks)
    titles = dict.fromkeys(title_of(name, panel.stage) for name in panel.curves)
    what = next(iter(titles)) if len(titles) == 1 else ", ".join(label_of(n, panel.stage)[0] for n in panel.curves)
    title = SPECS[panel.stage].title if panel.name == panel.stage else panel.name
    _set_title(axes, f"{title}: {what}", title if len(panel.curves) > 1 else "")
    if len(panel.curves) > 1 or panel.headline:
        shown = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
        legend = axes.legend(
            handles=shown, title=panel.headline or None, title_fontsize=8, fontsize=7.5, frameon=False, labelspacing=0.2
        )
        legend.get_title().set_fontweight("bold")


def _set_title(axes: Axes, text: str, shorter: str) -> None:
    """Above a panel, no wider than it; where it is so even in the smallest letters, the shorter text, if there is one:
    the legend says the rest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(axes.figure).get_renderer()  # type: ignore[arg-type]
    for size in _TITLE_SIZES:
        title = axes.set_title(text, fontsize=size, loc="left")
        if title.get_window_extent(renderer).width <= axes.get_window_extent(renderer).width:
            return
    if shorter:
        axes.set_title(shorter, fontsize=_TITLE_SIZES[0], loc="left")


def _label(metric: str, panel: Panel) -> str:
    """In the legend: of one quantity where it was measured, else the quantity; a single curve is not in it."""
    if len(panel.curves) == 1:
        return "_"
    quantities = {name: label_of(name, panel.stage)[0] for name in panel.curves}
    one = len(set(quantities.values())) == 1
    return {"train": "training", "eval": "held out"}[metric.partition("/")[0]] if one else quantities[metric]


def _wrapped(text: str, letters: int) -> list[str]:
    flat = " ".join(text.split())
    return textwrap.wrap(flat, letters, max_lines=_LONGEST, placeholder=" …") or ["(no reply)"]


def _table(
    figure: Figure, head: Sequence[str], cells: Sequence[Sequence[list[str]]], room: float, height: float
) -> None:
    """Below the panels, in the lowest `room` inches of `height`: a column for the prompts and for each policy."""
    from matplotlib.lines import Line2D

    left, right = 0.02, 0.985
    width = (right - left) / max(len(head), 1)
    top = room - 0.9 * _LINE
    for column, name in enumerate(head):
        figure.text(left + column * width, top / height, name, fontsize=9, fontweight="bold", va="top")
    top -= 1.3 * _LINE
    for row in cells:
        figure.add_artist(Line2D([left, right], [(top + 0.28 * _LINE) / height] * 2, color="#d0d0d0", linewidth=0.7))
        for column, lines in enumerate(row):
            color = _GREY if column == 0 else "black"
            for number, line in enumerate(lines):
                at = (top - (number + 0.15) * _LINE) / height
                text = figure.text(left + column * width, at, line, fontsize=7.8, va="top", color=color)
                text.set_parse_math(False)
        top -= _LINE * (max(map(len, row)) + 0.9)
