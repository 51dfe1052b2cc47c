"""The best group against the others: over the seeds that both have, and over the held-out items of two single runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinychat.compare.groups import Comparison, Group
from tinychat.compare.runs import Run
from tinychat.evaluation.statistics import McNemarResult, PairedResult, mcnemar, paired
from tinychat.runs import folders

Items = dict[tuple[Any, ...], bool]  # a held-out item -> whether the run met it


@dataclass(frozen=True)
class SeedPairs:
    """The best group and another over the seeds that finished in both."""

    other: Group
    seeds: list[str]
    result: PairedResult | None  # None: fewer than two seeds are shared


@dataclass(frozen=True)
class ItemPairs:
    """The single run of the best group and that of another, over the same held-out items."""

    other: Group
    what: str  # one of VERDICTS
    result: McNemarResult


def seed_pairs(found: Comparison) -> list[SeedPairs]:
    """The best group against each other one that was measured, in the order of the table."""
    best = found.best
    if best is None:
        return []
    own = best.by_seed(found.metric)
    pairs = []
    for other in found.measured:
        if other is best:
            continue
        theirs = other.by_seed(found.metric)
        shared = [seed for seed in own if seed in theirs]
        result = paired([own[s] for s in shared], [theirs[s] for s in shared]) if len(shared) > 1 else None
        pairs.append(SeedPairs(other, shared, result))
    return pairs


def item_pairs(found: Comparison, most: int = 10) -> list[ItemPairs]:
    """Exact McNemar tests where both groups are one finished run each: the items of one evaluation are a sample then.

    most: other groups that are looked at, the first of the table.
    """
    best = found.best
    if best is None or len(best.finished) != 1:
        return []
    others = [group for group in found.measured if group is not best and len(group.finished) == 1][:most]
    pairs = []
    for what, read in VERDICTS.items():
        own = read(best.finished[0])
        for other in others if own else ():
            theirs = read(other.finished[0])
            shared = [item for item in own if item in theirs]
            if shared:
                result = mcnemar([own[item] for item in shared], [theirs[item] for item in shared])
                pairs.append(ItemPairs(other, what, result))
    return pairs


def _instructions(run: Run) -> Items:
    """Which instructions were met; {} where some have no checkable answer, as the table does not tell them apart."""
    if "eval/open_rows" in run.metrics or "eval/instruction_accuracy" not in run.metrics:
        return {}
    return _items(run, "predictions", ("prompt", "expected"), lambda row: row["score"] == 1)


def _safe(run: Run) -> Items:
    return _items(run, "safety", ("prompt", "category"), lambda row: bool(row["safe"]))


def _helpful(run: Run) -> Items:
    """Which benign requests were not refused."""
    return _items(
        run, "safety", ("prompt", "category"), lambda row: not row["refused"], lambda row: row["harmful"] == "no"
    )


def _items(
    run: Run,
    table: str,
    key: Sequence[str],
    met: Callable[[dict[str, Any]], bool],
    counts: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> Items:
    """The verdicts of a table of the run folder; an item that occurs twice is two. {} where there is none."""
    content = folders.read_json(run.folder / folders.TABLES / f"{table}.json") or {}
    items: Items = {}
    seen: dict[tuple[Any, ...], int] = {}
    try:
        for cells in content.get("rows") or []:
            row = dict(zip(content["columns"], cells, strict=True))
            if counts(row):
                item = tuple(str(row[name]) for name in key)
                seen[item] = seen.get(item, 0) + 1
                nth = (*item, seen[item])
                items[nth] = met(row)
    except (KeyError, TypeError, ValueError):  # a table of another version
        return {}
    return items


VERDICTS: dict[str, Callable[[Run], Items]] = {
    "instructions met": _instructions,
    "safe replies": _safe,
    "benign requests answered": _helpful,
}


def told(p: float) -> str:
    """A p value in three digits; <0.0001; undefined."""
    if math.isnan(p):
        return "undefined"
    return "<0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.01 else f"{p:.3f}"
