"""report.md and report.html: a run told from the files of its folder, nothing in it that was not measured."""

from __future__ import annotations

import base64
import functools
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tinychat.config.specs import SPECS
from tinychat.report.curves import Series, series_of, write_curves
from tinychat.report.headline import Figure, figures_of, format_value, measured, name_of, text_of
from tinychat.report.rollouts import write_rollouts
from tinychat.report.templates import kinds_of, render
from tinychat.runs import folders
from tinychat.runtime.run_files import Unreadable, if_readable, read_json, read_list, said_of
from tinychat.tracking.base import MetricsLog
from tinychat.tracking.vocabulary import is_metric, meaning_of

logger = logging.getLogger(__name__)
_SUMMED_UP = ("tokenizer", "data", "optim", "ds", "launch")  # config groups shown by their names
_SCALARS = ("precision", "device", "seed", "init_from")
MEASURED = "checkpoint measured"  # of result.json's facts, where a stage trains nothing
CURRICULUM = "curriculum"  # of result.json's facts: {what begins: at which step}
_NOT_SHOWN = {"metrics", "config"}  # of result.json and lineage.json: told elsewhere


@dataclass
class Table:
    """One table of the run folder's tables/, its first rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    left_out: int = 0

    @property
    def is_replies(self) -> bool:
        """What was said: shown with the samples."""
        return self.title.startswith("Replies")

    @property
    def kinds(self) -> list[str]:
        return kinds_of(self.columns, self.rows)


@dataclass(frozen=True)
class Link:
    """A run folder as the pages show it: its name leads to its report, by a way that holds where both are moved."""

    text: str
    address: str  # quoted; relative to the page. "": only the text

    @classmethod
    def to(cls, folder: Path, page_folder: Path) -> Link:
        """To the report of a run folder, or of the run that a checkpoint belongs to; else to the folder itself."""
        pages = (place / "report.html" for place in (folder, *folder.parents[:2]))
        report = next((page for page in pages if page.is_file()), folder)
        try:
            way = os.path.relpath(report.absolute(), page_folder.absolute())
        except ValueError:  # on another drive
            return cls(str(folder), "")
        # "./" before it: no folder's name can be taken for the scheme of an address
        return cls(str(folder), quote(f"./{way}", safe="/."))


@dataclass
class Report:
    """What the two templates show; an empty part is left out."""

    title: str
    subtitle: str = ""
    command: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    results: list[tuple[str, str, str]] = field(default_factory=list)  # metric, value, meaning
    summary: list[tuple[str, str, str, str, str, str]] = field(default_factory=list)  # metric, first ... points
    curves: bool = False
    pictures: list[tuple[str, str]] = field(default_factory=list)  # title, file within the run folder
    tables: list[Table] = field(default_factory=list)
    samples: list[tuple[str, str]] = field(default_factory=list)  # prompt, continuation
    lineage: list[tuple[str, str]] = field(default_factory=list)
    config: str = ""
    headline: list[Figure] = field(default_factory=list)
    changes: list[tuple[str, str, str, str]] = field(default_factory=list)  # metric, before, after, meaning
    rollouts: str = ""  # file within the run folder


def write_report(run_dir: Path) -> Path | None:
    """Write curves.png, report.md and report.html into `run_dir`, and rollouts.html where there are any; the path of
    report.html, None when that fails.

    Reads config.yaml, command.txt, metrics.jsonl, result.json, samples.json, tables/, pictures/, rollouts/ and
    lineage.json, each where it exists.
    """
    try:
        write_pages(run_dir, collect(run_dir))
    except OSError as error:
        logger.warning("no report in %s: %s", run_dir, said_of(error))
        return None
    return run_dir / "report.html"


def write_pages(folder: Path, report: Report) -> None:
    """report.md and report.html, which holds its pictures, from what is to be said. Raises OSError."""
    folders.write_text_atomic(folder / "report.md", render("report/report.md.j2", report))
    image = _base64(folder / "curves.png") if report.curves else ""
    pictures = [(title, _base64(folder / file)) for title, file in report.pictures]
    page = render("report/report.html.j2", report, image=image, pictures=pictures)
    folders.write_text_atomic(folder / "report.html", page)


def collect(run_dir: Path) -> Report:
    """Read the run folder, draw its curves and make the page of its rollouts."""
    config_text = text_of(run_dir / "config.yaml")
    config = if_readable(lambda: folders.read_config(run_dir)) or {}
    result = folders.read_result(run_dir) or {}
    lineage = folders.read_json(run_dir / folders.LINEAGE) or {}
    rows = MetricsLog(run_dir / "metrics.jsonl").read()
    series = series_of(rows)
    names = [name_of(config.get(group)) for group in ("stage", "model", "data")]
    told = result.get("facts")
    marks = told.get(CURRICULUM) if isinstance(told, dict) else None
    return Report(
        title=str(config.get("run_name") or " · ".join(name for name in names if name) or run_dir.name),
        subtitle=run_dir.name,
        command=text_of(run_dir / "command.txt").strip(),
        facts=_facts(config, result),
        results=[(name, format_value(value), meaning_of(name)) for name, value in measured(result, series).items()],
        summary=_summary(series),
        curves=write_curves(rows, run_dir / "curves.png", names[0], marks if isinstance(marks, dict) else {}),
        pictures=[
            (path.stem.replace("_", " ").capitalize(), f"{folders.PICTURES}/{path.name}")
            for path in sorted((run_dir / folders.PICTURES).glob("*.png"))
        ],
        tables=_tables(run_dir / folders.TABLES),
        samples=_samples(run_dir / "samples.json"),
        lineage=list(_flat({key: value for key, value in lineage.items() if key not in _NOT_SHOWN})),
        config=config_text.strip(),
        headline=figures_of(names[0], measured(result, series), series),
        changes=_changes(names[0], measured(result, series), series),
        rollouts=page.name if (page := write_rollouts(run_dir)) else "",
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _facts(config: dict[str, Any], result: dict[str, Any]) -> list[tuple[str, str]]:
    """What was run: the config's choices, then what result.json says beside its metrics."""
    facts = []
    for group in ("stage", "model", *_SUMMED_UP):
        name = name_of(config.get(group))
        path = config[group].get("path") if name else None
        if name and name != "none":
            facts.append((group, f"{name} ({path})" if path else name))
    facts += [(key.replace("_", " "), str(config[key])) for key in _SCALARS if config.get(key) is not None]
    told = dict(facts)
    shown = {k: v for k, v in result.items() if k not in _NOT_SHOWN and not is_metric(k) and k != "facts"}
    for key, value in _flat(shown | (result.get("facts") or {})):
        # what was measured (device: cuda) outweighs what was asked for (device: auto)
        told[key.replace("_", " ").replace(".", " ")] = value
    return list(told.items())


def _changes(stage: str, found: Mapping[str, Any], series: Mapping[str, Series]) -> list[tuple[str, str, str, str]]:
    """What a stage is judged by that was measured of the checkpoint that it began from too, with 95 % bounds."""
    start = {name: points[0][1] for name, points in series.items() if points[0][0] == 0}
    names = SPECS[stage].headlines if stage in SPECS else ()
    return [
        (name, with_bounds(name, start), with_bounds(name, found), meaning_of(name))
        for name in names
        if name in start and name in found and len(series[name]) > 1
    ]


def with_bounds(metric: str, found: Mapping[str, float | None]) -> str:
    """A metric with four digits, and its bounds in brackets where there are any; "" where it was not measured."""
    value = found.get(metric)
    if value is None:
        return ""
    low, high = (found.get(f"{metric}_{end}") for end in ("low", "high"))
    bounds = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return format_value(float(f"{value:.4g}")) + bounds


def _summary(series: dict[str, Series]) -> list[tuple[str, str, str, str, str, str]]:
    lines = []
    for name, points in series.items():
        values = [value for _, value in points]
        finite = [value for value in values if math.isfinite(value)] or [math.nan]
        cells = (values[0], values[-1], min(finite), max(finite))
        first, last, low, high = (format_value(value) for value in cells)
        lines.append((name, first, last, low, high, str(len(points))))
    return lines


def _tables(folder: Path) -> list[Table]:
    found = []
    for path in sorted(folder.glob("*.json")):
        content = if_readable(functools.partial(_table, path))
        if content and content["rows"]:
            rows = content["rows"][: content.get("shown")]
            cells = [[format_value(cell) if cell is not None else "" for cell in row] for row in rows]
            left_out = len(content["rows"]) - len(rows)
            found.append(Table(str(content["title"]), list(map(str, content["columns"])), cells, left_out))
    return found


def _table(path: Path) -> dict[str, Any]:
    """Raises Unreadable."""
    found = read_json(path, {"title": str, "columns": list, "rows": list, "shown": (int, type(None))}) or {"rows": []}
    if not all(isinstance(row, list) for row in found["rows"]):
        raise Unreadable(f"{path}: rows is no list of lists")
    return found


def _samples(path: Path) -> list[tuple[str, str]]:
    items = if_readable(lambda: read_list(path)) or []
    pairs = [(item.get("prompt"), item.get("continuation")) for item in items if isinstance(item, dict)]
    return [(str(prompt or ""), str(continuation)) for prompt, continuation in pairs if continuation is not None]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (`a.b`, text); null and empty values are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            if value:
                yield f"{prefix}{name}", ", ".join(_plain(item) for item in value)
        elif value is not None and value != "":
            yield f"{prefix}{name}", format_value(value)


def _plain(value: Any) -> str:
    if isinstance(value, dict) and "checkpoint" in value:  # its figures stand beside the others' in a table
        return str(value["checkpoint"])
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else format_value(value)
