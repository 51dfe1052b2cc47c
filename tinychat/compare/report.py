"""report.md and report.html of a comparison, with its curves, in a folder of its own."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinychat.compare.curves import MOST_GROUPS, draw
from tinychat.compare.groups import MINUTES, Comparison
from tinychat.compare.pairs import ItemPairs, SeedPairs
from tinychat.compare.table import (
    TextTable,
    groups_table,
    items_table,
    metric_name,
    pairs_notes,
    runs_table,
    seeds_table,
)
from tinychat.report.run import Link, render
from tinychat.runs import folders as runs
from tinychat.runtime.run_files import if_readable, read_text
from tinychat.tracking.vocabulary import METRICS

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
