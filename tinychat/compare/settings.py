"""Which settings tell runs apart, and how they are written in a table."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from tinychat.compare.runs import Run
from tinychat.errors import UserError
from tinychat.runs.folders import NOT_IDENTITY

MISSING = "-"  # a setting that a run does not have
_PARENT_ENDS = (".path", "init_from", "stage.judge", "seed")


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
