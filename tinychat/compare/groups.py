"""Runs compared: which settings tell them apart and how those are written, groups of seeds, a metric's mean and
spread, the order; and the best group against the others, over the seeds that both have and over the held-out items of
two single runs.
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinychat.compare.runs import Run
from tinychat.errors import UserError
from tinychat.evaluation.statistics import McNemarResult, PairedResult, mcnemar, paired
from tinychat.runs import folders
from tinychat.runs.folders import NOT_IDENTITY
from tinychat.tracking.vocabulary import METRICS, goal_of

MISSING = "-"  # a setting that a run does not have
_PARENT_ENDS = (".path", ".options.paths", "init_from", "stage.judge", "stage.second_judge", "stage.teacher", "seed")


def differing(found: Sequence[Run]) -> list[str]:
    """The settings in which the runs differ, apart from the seed and what runs.NOT_IDENTITY names.

    Of several stages: the stage, and those in which runs of one stage differ. Left out are settings that follow the
    seed (a parent or a data seed of its own for each) and those that a group's name tells (model.n_layer beside
    model.name). Swept keys come first.
    """
    stages = {run.stage: [other for other in found if other.stage == run.stage] for run in found}
    told = dict.fromkeys(["stage.name"] if len(stages) > 1 else [])
    for own in stages.values():
        told |= dict.fromkeys(_differing(own))
    swept = [key for run in found for key in (run.trial.get("values") or {})]
    rank = {key: place for place, key in enumerate(dict.fromkeys(["stage.name", *swept]))}
    return sorted(told, key=lambda key: rank.get(key, rank.get(key.removesuffix(".name"), len(rank))))


def _differing(found: Sequence[Run]) -> list[str]:
    """Of one stage."""
    keys = sorted({key for run in found for key in run.settings})
    values = {key: [run.settings.get(key, MISSING) for run in found] for key in keys}
    varied = [
        key for key in keys if key != "seed" and key.split(".")[0] not in NOT_IDENTITY and len(set(values[key])) > 1
    ]
    seeds = [run.seed for run in found]
    if len(set(seeds)) > 1:
        varied = [key for key in varied if not (key.endswith(_PARENT_ENDS) and _follows(values[key], seeds))]
    return [key for key in varied if not _told_by_name(key, values, varied)]


def _told_by_name(key: str, values: Mapping[str, list[str]], varied: Sequence[str]) -> bool:
    name = f"{key.split('.')[0]}.name"
    return key != name and name in varied and _follows(values[key], values[name])


def _follows(values: Sequence[str], leader: Sequence[str]) -> bool:
    """Whether the leader's value decides the other's."""
    return len(set(zip(leader, values, strict=True))) == len(set(leader))


def known_keys(by: Sequence[str], found: Sequence[Run]) -> list[str]:
    """Settings by their names, `lr` for stage.lr and `model` for model.name too. Raises UserError."""
    there = {key for run in found for key in run.settings}
    keys = []
    for key in by:
        full = next((other for other in (key, f"{key}.name", f"stage.{key}") if other in there), None)
        if full is None:
            near = difflib.get_close_matches(key, there, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "see a run's config.yaml"
            raise UserError(f"--by {key}: no run has such a setting; {hint}")
        keys.append(full)
    return keys


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """stage.lr -> lr, model.name -> model, where that is still unique."""
    plain = {key: key.removesuffix(".name").removesuffix(".path") for key in keys}
    whole = Counter(plain.values())
    plain = {key: name if whole[name] == 1 else key for key, name in plain.items()}
    ends = Counter(name.rpartition(".")[2] for name in plain.values())
    return {
        key: end if ends[end := name.rpartition(".")[2]] == 1 and end not in ("path", "name") else name
        for key, name in plain.items()
    }


def natural_order(value: str) -> tuple[int, float, str]:
    """Numbers in their order, then words."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def short_value(value: str) -> str:
    """A number with 4 digits; of a long path RUN_NAME/TIME or the last two parts."""
    text = value
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        return f"{number:.4g}" if "." in text or "e" in text else text
    if "/" in text and len(text) > 24:
        parts = [part for part in text.split("/") if part != "checkpoints" and not part.startswith("step-")]
        return "/".join(parts[-2:])
    return text


Goal = Literal["minimize", "maximize"]
MINUTES = "minutes"
# Shown beside the metric that is compared, the most telling first.
_KEY_METRICS = (
    "eval/objective eval/gold_reward eval/reward eval/kl eval/instruction_accuracy eval/safe_rate eval/over_refusal "
    "eval/rouge_l eval/reward_accuracy eval/safety_accuracy eval/response_loss eval/loss eval/ppl eval/bits_per_byte "
    "tokenizer/bytes_per_token"
).split()


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation over n seeds; std is nan for one."""

    mean: float
    std: float
    n: int


@dataclass
class Group:
    """Runs with the same settings; what they differ in is the seed."""

    settings: dict[str, str]  # the compared keys
    runs: list[Run]
    place: int = 0  # line of the table, from 1

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    def by_seed(self, metric: str) -> dict[str, float]:
        """The metric of the finished runs, {seed: value}; the mean where a seed ran more than once."""
        values: dict[str, list[float]] = {}
        for run in self.finished:
            value = run.minutes if metric == MINUTES else run.metrics.get(metric)
            if value is not None:
                values.setdefault(run.seed, []).append(value)
        return {seed: statistics.fmean(own) for seed, own in values.items()}

    def stat(self, metric: str) -> Stat | None:
        """Over the seeds; None where no finished run measured the metric."""
        values = list(self.by_seed(metric).values())
        if not values:
            return None
        mean = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values)
        spread = len(values) > 1 and math.isfinite(mean)
        return Stat(mean, statistics.stdev(values) if spread else math.nan, len(values))


@dataclass
class Comparison:
    """Everything that is shown, sorted."""

    metric: str
    goal: Goal
    keys: list[str]  # settings that tell the groups apart
    groups: list[Group]  # sorted; those without a value last
    further: list[str]  # metrics shown beside
    stages: list[str]
    studies: list[str]
    notes: list[str]  # what a reader should know, a sentence each

    @property
    def measured(self) -> list[Group]:
        """The groups with a finite mean of the metric."""
        return [group for group in self.groups if (stat := group.stat(self.metric)) and math.isfinite(stat.mean)]

    @property
    def best(self) -> Group | None:
        """Of the metric, however the groups are sorted."""
        sign = 1 if self.goal == "minimize" else -1
        return min(self.measured, key=lambda group: sign * group.stat(self.metric).mean, default=None)  # type: ignore[union-attr]


def compare(
    found: Sequence[Run],
    metrics: Sequence[str] = (),
    by: Sequence[str] = (),
    stage: str | None = None,
    sort: str | None = None,
    goal: Goal | None = None,
) -> Comparison:
    """metrics: the one compared, then those shown beside (none: the objective). by: settings that make the groups
    (none: those in which the runs differ). Raises UserError where there is nothing to compare."""
    notes: list[str] = []
    chosen = _of_stage(found, stage)
    if not any(run.finished for run in chosen):
        raise UserError(_none_finished(chosen))
    names = [_full_name(name, chosen) for name in metrics] or [_objective(chosen)]
    chosen = _with_metric(chosen, names[0], notes)
    keys = known_keys(by, chosen) if by else differing(chosen)
    groups = grouped(chosen, keys)
    direction = goal or _study_goal(chosen, names[0]) or goal_of(names[0])
    further = names[1:] or _further(groups, names[0], chosen)
    _sort(groups, names[0], direction, sort, keys)
    for place, group in enumerate(groups, 1):
        group.place = place
    studies = sorted({str(run.trial["study"]) for run in chosen if run.trial.get("study")})
    stages = sorted({run.stage for run in chosen})
    if len(stages) > 1:
        notes.append(
            f"The runs are of several stages ({', '.join(stages)}): groups are told apart by what differs within one."
        )
    if by and any(len(group.runs) > 1 for group in groups) and (hidden := _mixed(groups)):
        notes.append(f"Runs of one group differ in {', '.join(hidden[:4])} too, and are averaged all the same.")
    return Comparison(names[0], direction, keys, groups, further, stages, studies, notes)


def _of_stage(found: Sequence[Run], stage: str | None) -> list[Run]:
    if stage is None:
        return list(found)
    chosen = [run for run in found if run.stage == stage]
    if not chosen:
        raise UserError(f"--stage {stage}: none of the {len(found)} runs; there are {_counted(r.stage for r in found)}")
    return chosen


def _counted(words: Iterable[str]) -> str:
    """ "3 sft, 1 ppo" """
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def _none_finished(found: Sequence[Run]) -> str:
    told = f"none of the {len(found)} runs has finished ({_counted(run.state for run in found)})"
    why = next((f"; {run.name}: {run.why}" for run in found if run.why), "")
    return f"{told}{why}; nothing to compare yet"


def _objective(found: Sequence[Run]) -> str:
    """The first objective of the study, else that of the stage. Raises UserError for several."""
    stages = {run.stage for run in found}
    names = {str(name) for run in found if run.finished if (name := run.result.get("objective_name"))}
    studied = {str(run.trial["objective"][0]) for run in found if run.trial.get("objective")}
    if len(stages) == 1 and len(studied) == 1 and all(run.trial for run in found):
        names = studied
    if len(names) == len(stages) == 1:  # eval/loss of two stages is not one quantity
        return names.pop()
    finished = [run for run in found if run.finished]
    shared = [name for name in _KEY_METRICS if all(name in run.metrics for run in finished)]
    among = f"--metric, which all of them have for {', '.join(shared[:4])}" if shared else "--metric"
    what = f"of several stages ({_counted(run.stage for run in found)})" if len(stages) > 1 else "of several objectives"
    raise UserError(f"the runs are {what}; say which with --stage, or what to compare with {among}")


def _full_name(name: str, found: Sequence[Run]) -> str:
    """A metric as it is called, from its last name where that is unique ("ppl"). Raises UserError."""
    there = {other for run in found if run.finished for other in run.metrics}
    if name in there or name == MINUTES:
        return name
    if len(ends := [other for other in there if other.rpartition("/")[2] == name]) == 1:
        return ends[0]
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    listed = [other for other in [*_KEY_METRICS, *METRICS] if other in there and not other.endswith(("_low", "_high"))]
    listed = list(dict.fromkeys(listed))
    more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--metric {name}: no finished run has it; {hint}there are {', '.join(listed[:12])}{more}")


def _with_metric(found: list[Run], metric: str, notes: list[str]) -> list[Run]:
    """Without the finished runs that did not measure it: they are of another stage or were evaluated otherwise."""
    if metric == MINUTES:
        return found
    without = [run for run in found if run.finished and metric not in run.metrics]
    if without:
        notes.append(
            f"{len(without)} finished runs without {metric} are left out ({_counted(r.stage for r in without)})."
        )
    measured = {run.stage for run in found if run.finished and metric in run.metrics}
    return [run for run in found if run not in without and run.stage in measured]


def grouped(found: Sequence[Run], keys: Sequence[str]) -> list[Group]:
    """The runs by their values of the keys, in the order in which these come."""
    groups: dict[tuple[str, ...], Group] = {}
    for run in found:
        settings = {key: run.settings.get(key, MISSING) for key in keys}
        groups.setdefault(tuple(settings.values()), Group(settings, [])).runs.append(run)
    return list(groups.values())


def _mixed(groups: Sequence[Group]) -> list[str]:
    """Settings in which runs of one group differ."""
    return sorted({key for group in groups for key in differing(group.runs) if key not in group.settings})


def _study_goal(found: Sequence[Run], metric: str) -> Goal | None:
    for run in found:
        goals = dict(zip(run.trial.get("objective") or (), run.trial.get("directions") or (), strict=False))
        if goals.get(metric) in ("minimize", "maximize"):
            return goals[metric]  # type: ignore[return-value]
    return None


def _further(groups: Sequence[Group], metric: str, found: Sequence[Run]) -> list[str]:
    """The study's other objectives, then the key metrics, but those that few groups measured."""
    studied = [str(name) for run in found for name in run.trial.get("objective") or ()]
    shown = [name for name in dict.fromkeys([*studied, *_KEY_METRICS]) if name != metric]
    counts = {name: sum(group.stat(name) is not None for group in groups) for name in shown}
    return [name for name in shown if counts[name] * 2 > max(counts.values())]


def _sort(groups: list[Group], metric: str, goal: Goal, sort: str | None, keys: Sequence[str]) -> None:
    """Best first; by another metric in its own direction, by a setting upwards, in the order of its numbers."""
    if sort in (None, metric, metric.rpartition("/")[2]):
        _by_metric(groups, metric, goal)
        return
    key = next((k for k in keys if sort in (k, short_names(keys)[k])), None)
    if key is not None:
        groups.sort(key=lambda group: natural_order(group.settings[key]))
        return
    if sort != MINUTES:
        there = [*keys, MINUTES]
        try:
            sort = _full_name(str(sort), [run for group in groups for run in group.runs])
        except UserError:
            raise UserError(f"--sort {sort}: neither a metric nor one of {', '.join(there)}") from None
    _by_metric(groups, sort, "minimize" if sort == MINUTES else goal_of(sort))


def _by_metric(groups: list[Group], metric: str, goal: Goal) -> None:
    def rank(group: Group) -> tuple[int, float]:
        stat = group.stat(metric)
        if stat is None or math.isnan(stat.mean):
            return (2 if stat is None else 1), 0.0
        return 0, stat.mean if goal == "minimize" else -stat.mean

    groups.sort(key=rank)


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
