"""What a run is worth in a few figures: at the head of its report, and in MLflow's table and description of it."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinychat.report.curves import Series, series_of
from tinychat.runs import folders
from tinychat.runtime.run_files import if_readable, read_text
from tinychat.tracking.base import MetricsLog
from tinychat.tracking.mlflow_run import HEADLINE, NOTE
from tinychat.tracking.vocabulary import SHARE, STDERR, headlines_of, is_metric, is_share, label_of


@dataclass
class Figure:
    """One of the few numbers that say what a run is worth, in plain words."""

    metric: str
    label: str
    value: str
    note: str = ""  # unit, bounds, where it began


def figures_of(stage: str, found: Mapping[str, Any], series: Mapping[str, Series]) -> list[Figure]:
    """Up to four figures of a stage: its metrics `found` at the end, with what was measured of the checkpoint that it
    began from, where step 0 was."""
    figures = []
    for name in headlines_of(stage, found):
        label, unit = label_of(name, stage)
        notes = [] if unit == SHARE else [unit]
        low, high = (found.get(f"{name}_{end}") for end in ("low", "high"))
        if low is not None and high is not None and unit == SHARE:
            notes.append(f"95 %: {100 * low:.1f} to {100 * high:.1f}")
        if (error := found.get(f"{name}{STDERR}")) is not None:
            notes.append(f"± {100 * error:.1f}" if unit == SHARE else f"± {error:.2g}")
        first = series.get(name, [])[:1]
        if first and first[0][0] == 0 and first[0][1] and len(series[name]) > 1:
            notes.append(f"{figure(name, first[0][1])} before")
        figures.append(Figure(name, label, figure(name, found[name]), "; ".join(note for note in notes if note)))
    return figures


def figure(metric: str, value: float) -> str:
    """A metric for people: 97.6 %, 3.292, 1,944,230"""
    if is_share(metric):
        return f"{100 * value:.1f} %"
    return format_value(value if float(value).is_integer() or not math.isfinite(value) else float(f"{value:.4g}"))


def format_value(value: Any) -> str:
    """12,345,678; 3.6857; 0.0003; yes; text as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:,.5g}"
    return str(value)


def measured(result: dict[str, Any], series: dict[str, Series]) -> dict[str, Any]:
    metrics = result.get("metrics")
    found = {key: value for key, value in result.items() if is_metric(key)}
    if isinstance(metrics, dict):
        found.update(metrics)
    if not found:
        found = {name: points[-1][1] for name, points in series.items() if not name.startswith(("train", "perf"))}
        found = {name: value for name, value in found.items() if not name.startswith("schedule")}
    return {name: value for name, value in found.items() if value is not None}


def tags_of(run_dir: Path) -> dict[str, str]:
    """What MLflow shows of a run that has ended or was killed: its headline, and a description in Markdown."""
    result = folders.read_result(run_dir) or {}
    stage = name_of((if_readable(lambda: folders.read_config(run_dir)) or {}).get("stage"))
    rows = MetricsLog(run_dir / "metrics.jsonl").read()
    series = series_of(rows)
    figures = figures_of(stage, measured(result, series), series)
    lines = [f"- {one.label} **{one.value}**{f' ({one.note})' if one.note else ''}" for one in figures]
    status, error = result.get("status"), str(result.get("error") or "").partition("\n")[0]
    if status == "finished":
        # The number first: the column of MLflow's table is some ten characters wide.
        headline = f"{figures[0].value} {figures[0].label}" if figures else status
    else:
        status = status or (f"killed at step {rows[-1].step}" if rows else "killed")
        headline = f"{status}: {error}" if error else status
        lines.insert(0, f"**{as_cell(status)}** {as_cell(error)}".strip() + "\n")
    commands = text_of(run_dir / "command.txt").strip().splitlines()
    lines.append(f"\n{as_fence(commands[-1], 'sh')}\n\nrun folder: {as_cell(str(run_dir))}" if commands else "")
    return {HEADLINE: headline, NOTE: "\n".join(lines).strip()}


def text_of(path: Path) -> str:
    return if_readable(lambda: read_text(path)) or ""


def name_of(group: Any) -> str:
    return str(group.get("name") or "") if isinstance(group, Mapping) else ""


def as_cell(text: str) -> str:
    """Text for a Markdown table: no markup of its own, one line."""
    escaped = html.escape(text, quote=False).replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
    return " ".join(escaped.replace("*", "\\*").replace("_", "\\_").split())


def as_fence(text: str, language: str = "") -> str:
    """A Markdown code block with a fence longer than any run of backticks in the text."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}{language}\n{text}\n{fence}"
