"""A comparison shown: its tables (for the terminal too), curves of groups over each other (the mean over the seeds
and the band between the lowest and highest), and report.md and report.html in a folder of its own."""

from __future__ import annotations

import base64
import functools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinychat.compare.groups import (
    MINUTES,
    Comparison,
    Group,
    ItemPairs,
    SeedPairs,
    Stat,
    short_names,
    short_value,
    told,
)
from tinychat.compare.runs import Run
from tinychat.report.curves import Series, save_picture, series_of, style_axes, title_of
from tinychat.report.headline import format_value
from tinychat.report.run import Link
from tinychat.report.templates import render
from tinychat.runs import folders as runs
from tinychat.runtime.run_files import if_readable, read_text
from tinychat.tracking.base import MetricsLog
from tinychat.tracking.vocabulary import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "-"


@dataclass(frozen=True)
class TextTable:
    """Cells as they are shown; `numbers` are the columns that stand on the right."""

    columns: list[str]
    rows: list[list[str]]
    numbers: frozenset[int] = frozenset()


def groups_table(
    found: Comparison, groups: Sequence[Group], most_metrics: int, most_settings: int | None = None
) -> TextTable:
    """A line for each group: its number, what it is, seeds, the metric, further ones, minutes, status."""
    keys, names = found.keys[:most_settings], short_names(found.keys)
    metrics = [found.metric, *found.further[:most_metrics]]
    numbered = any(run.number is not None for group in found.groups for run in group.runs)
    columns = ["#", *(["trial"] if numbered else []), *(names[key] for key in keys)]
    columns += ["run"] if not keys and not numbered else []
    first = len(columns)
    columns += ["seeds", *(metric_name(metric) for metric in metrics), *([] if MINUTES in metrics else [MINUTES])]
    rows = []
    for group in groups:
        cells = [str(group.place), *([_numbers(group.runs)] if numbered else [])]
        cells += [short_value(group.settings[key]) for key in keys]
        cells += [", ".join(run.name for run in group.runs)] if not keys and not numbered else []
        cells += [_seeds(group, found.metric), *(with_spread(group.stat(metric)) for metric in metrics)]
        cells += [] if MINUTES in metrics else [_minutes(group)]
        rows.append([*cells, _status(group)])
    return TextTable([*columns, "status"], rows, frozenset({0, *range(first, len(columns))}))


def metric_name(metric: str) -> str:
    """eval/objective -> objective; of another kind than eval/ the whole name"""
    return metric.removeprefix("eval/")


def with_spread(stat: Stat | None) -> str:
    """ "0.5123 ± 0.0045", with two digits of the spread; for one seed the value alone."""
    if stat is None:
        return NONE
    if not math.isfinite(stat.std) or stat.std == 0:
        value = format_value(float(f"{stat.mean:.5g}")) if math.isfinite(stat.mean) else str(stat.mean)
        return value if stat.n == 1 or math.isnan(stat.std) else f"{value} ± 0"
    digits = min(max(1 - math.floor(math.log10(stat.std)), 0), 8)
    return f"{stat.mean:,.{digits}f} ± {stat.std:,.{digits}f}"


def _numbers(found: Sequence[Run]) -> str:
    """Of trials: 0, 2-4"""
    numbers = sorted(run.number for run in found if run.number is not None)
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans) or NONE


def _seeds(group: Group, metric: str) -> str:
    """How many seeds count; with the runs where some ran twice."""
    seeds, done = len(group.by_seed(metric)), len(group.finished)
    return f"{seeds} ({done} runs)" if done > seeds > 0 else str(seeds)


def _minutes(group: Group) -> str:
    known = [run.minutes for run in group.finished if run.minutes is not None]
    return f"{statistics.fmean(known):.2f}" if known else NONE


def _status(group: Group) -> str:
    """finished; of several kinds "2 finished, 1 failed" """
    states = Counter(run.state for run in group.runs)
    return next(iter(states)) if len(states) == 1 else ", ".join(f"{n} {state}" for state, n in states.items())


def seeds_table(found: Comparison, pairs: Sequence[SeedPairs]) -> TextTable:
    """The best group minus each other one that shares at least two seeds."""
    columns = ["groups", "seeds", "difference", "95 % from", "to", "p (paired t)", "p (sign flips)"]
    rows = []
    for pair in pairs:
        if (result := pair.result) is not None:
            bounds = [NONE if math.isnan(bound) else _signed(bound) for bound in (result.low, result.high)]
            numbers = [str(result.n), _signed(result.difference), *bounds, told(result.p_t), told(result.p_flip)]
            rows.append([_versus(found, pair.other), *numbers])
    return TextTable(columns, rows, frozenset(range(1, len(columns))))


def items_table(found: Comparison, pairs: Sequence[ItemPairs]) -> TextTable:
    """The best run against other single runs on the same held-out items."""
    columns = ["groups", "what", "items", "best alone", "other alone", "difference (points)", "p (McNemar)"]
    rows = []
    for pair in pairs:
        r = pair.result
        numbers = [f"{r.n:,}", str(r.first_only), str(r.second_only), f"{100 * r.difference:+.2f}", told(r.p)]
        rows.append([_versus(found, pair.other), pair.what, *numbers])
    return TextTable(columns, rows, frozenset(range(2, len(columns))))


def _versus(found: Comparison, other: Group) -> str:
    """ "#1 - #3", lines of the table of groups; the best first."""
    return f"#{found.best.place if found.best else 0} - #{other.place}"


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def pairs_notes(found: Comparison, pairs: Sequence[SeedPairs]) -> list[str]:
    """What the tests are of, and where there are none."""
    tested = [pair.result for pair in pairs if pair.result is not None]
    untested = len(pairs) - len(tested)
    notes = []
    if tested:
        notes.append("Difference: best minus other, over the seeds that finished in both.")
        fewest = min(tested, key=lambda result: result.n)
        if fewest.n <= 5:
            notes.append(f"With {fewest.n} seeds the sign-flip p cannot be below {fewest.smallest_p_flip:.3g}.")
        if len(tested) > 1:
            limit = f"{0.05 / len(tested):.2g}"
            notes.append(
                f"{len(tested)} comparisons with a winner picked afterwards: ask for p below {limit}, not 0.05."
            )
    if untested:
        who = "No group shares" if not tested else f"{untested} other groups do not share"
        what = "a difference of one pair says nothing about chance. Run each setting with the same seeds, seed=1,2,3"
        notes.append(f"{who} two seeds with the best, so there is no test: {what}.")
    return notes


def runs_table(found: Comparison) -> TextTable:
    """Every run with its state, and the error where it has one."""
    ordered = [run for group in found.groups for run in group.runs]
    columns = ["run", "trial", "stage", "seed", "state", metric_name(found.metric), MINUTES, "MLflow run", "error"]
    rows = []
    for run in ordered:
        value = run.minutes if found.metric == MINUTES else run.metrics.get(found.metric)
        numbers = [NONE if x is None else format_value(float(f"{x:.5g}")) for x in (value, run.minutes)]
        number = NONE if run.number is None else str(run.number)
        rows.append([str(run.folder), number, run.stage, run.seed, run.state, *numbers, run.mlflow_id or NONE, run.why])
    keep = [i for i in range(len(columns)) if any(row[i] not in (NONE, "") for row in rows)]
    cut = [[row[i] for i in keep] for row in rows]
    numbers_at = frozenset(place for place, i in enumerate(keep) if columns[i] in (metric_name(found.metric), MINUTES))
    return TextTable([columns[i] for i in keep], cut, numbers_at)


MOST_GROUPS = 8  # curves in one figure, the best
MOST_FIGURES = 6  # where the user names no metrics
# told apart in grey and by most of the colour-blind (after Okabe and Ito 2008)
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5b00", "#555555")


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
        drawn = functools.partial(_figure, metric, groups, bands, found.keys)
        if save_picture(folder / file, drawn):
            pictures.append((metric, file))
    return pictures


def _figure(metric: str, groups: Sequence[Group], bands: Sequence[Band | None], keys: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=130, layout="constrained")
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
    return figure


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


MOST_METRICS = 5  # beside the compared one


@dataclass
class CompareReport:
    """What the two templates show; an empty part is left out."""

    title: str
    subtitle: str
    command: str
    notes: list[str]
    groups: TextTable
    best: tuple[str, str]  # folder and command of the best group's first run; "" without one
    curves: list[tuple[str, str]]  # metric, file in the folder
    curves_note: str
    seeds: TextTable
    seeds_notes: list[str]
    items: TextTable
    runs: TextTable
    links: dict[str, Link] = field(default_factory=dict)  # of the run folders in the tables, by their text
    images: dict[str, str] = field(default_factory=dict)  # file -> PNG in base64


def headline(found: Comparison) -> str:
    """Of the terminal and the report: what is compared, and which end of it is good."""
    n = sum(len(group.runs) for group in found.groups)
    goal = "less is better" if found.goal == "minimize" else "more is better"
    what = "minutes of a run" if found.metric == MINUTES else METRICS.get(found.metric, "")
    meaning = f" ({what})" if what else ""
    n_groups = len(found.groups)
    what_there_is = f"{n} run{'s' * (n != 1)} of {n_groups} setting{'s' * (n_groups != 1)}"
    return f"{what_there_is} by {metric_name(found.metric)}{meaning}; {goal}"


def write(
    found: Comparison,
    seeds: Sequence[SeedPairs],
    items: Sequence[ItemPairs],
    folder: Path,
    title: str,
    command: str,
    drawn: Sequence[str] = (),
) -> Path:
    """Write report.md, report.html and a PNG for each metric drawn into the folder, over an earlier comparison's; the
    path of report.html. Raises OSError where that cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = draw(found, drawn, folder)
    report = CompareReport(
        title=f"Comparison of {title}",
        subtitle=f"{headline(found)}.",
        command=command,
        notes=found.notes,
        groups=groups_table(found, found.groups, MOST_METRICS),
        best=_best(found),
        curves=curves,
        curves_note=_curves_note(found, [metric for metric, _ in curves]),
        seeds=seeds_table(found, seeds),
        seeds_notes=pairs_notes(found, seeds),
        items=items_table(found, items),
        runs=runs_table(found),
        links={str(run.folder): Link.to(run.folder, folder) for group in found.groups for run in group.runs},
        images={file: base64.b64encode((folder / file).read_bytes()).decode() for _, file in curves},
    )
    for template, name in (("compare/compare.md.j2", "report.md"), ("compare/compare.html.j2", "report.html")):
        runs.write_text_atomic(folder / name, render(template, report))
    return folder / "report.html"


def _best(found: Comparison) -> tuple[str, str]:
    if found.best is None:
        return "", ""
    run = found.best.finished[0]
    commands = (if_readable(lambda: read_text(run.folder / runs.COMMAND)) or "").splitlines()
    return str(run.folder), next(iter(commands), "")


def _curves_note(found: Comparison, drawn: Sequence[str]) -> str:
    notes = []
    if any(len(group.finished) > 1 for group in found.measured):
        notes.append("Lines: mean over the seeds; bands: lowest to highest.")
    if len(found.measured) > MOST_GROUPS:
        notes.append(f"The first {MOST_GROUPS} groups of the table are drawn.")
    if found.metric not in drawn and found.metric != MINUTES:
        notes.append(f"{found.metric} was logged only once in a run, so it has no curve.")
    return " ".join(notes)
