"""The tables of a comparison as texts, for the terminal and the report alike."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tinychat.compare.groups import MINUTES, Comparison, Group, Stat
from tinychat.compare.pairs import ItemPairs, SeedPairs, told
from tinychat.compare.runs import Run
from tinychat.compare.settings import short_names, short_value
from tinychat.report.headline import format_value

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
