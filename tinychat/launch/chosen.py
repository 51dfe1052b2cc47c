"""What a run took where its configuration said auto or nothing: a line of the log for each, with when it is from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tinychat.config.schema import Config, Device, Precision, RewardKind, TokenizerKind
from tinychat.config.stages import TrainLoop
from tinychat.engine.base import resolve_precision
from tinychat.engine.schedule import warmup_of
from tinychat.runs import folders, parents
from tinychat.runtime.world import World

_WITHOUT_MODEL = ("tokenizer", "corpus")


def choices(config: Config, found: Mapping[str, str | None], world: World) -> Iterator[str]:
    """Lines for the log of a run. found: its parents (tinychat.runs.parents)."""
    for key, path in _parents(config, found):
        yield f"{key} took {_from(path)}" if path else f"{key} found none"
    stage = config.stage
    if stage.name not in _WITHOUT_MODEL:
        if config.device is Device.auto:
            yield f"device=auto took {world.device}"
        if config.precision is Precision.auto:
            name = str(resolve_precision(config.precision, world.device)).removeprefix("torch.")
            yield f"precision=auto took {name}"
    if isinstance(stage, TrainLoop) and warmup_of(stage) != stage.warmup_steps:
        yield (
            f"stage.warmup_steps={stage.warmup_steps} is more than stage.max_steps={stage.max_steps}: "
            f"the warm-up takes {warmup_of(stage)} steps"
        )


def _parents(config: Config, found: Mapping[str, str | None]) -> Iterator[tuple[str, str | None]]:
    """(setting, what it stands for) of those that name no folder."""
    if config.init_from in parents.AUTO and found.get("init_from"):
        yield f"init_from={config.init_from}", found["init_from"]
    if config.tokenizer.kind is TokenizerKind.bpe and config.tokenizer.path is None and found.get("tokenizer"):
        yield "tokenizer.path=null", found["tokenizer"]
    judge = getattr(config.stage, "judge", None)
    if judge in parents.AUTO:
        yield f"stage.judge={judge}", found.get("judge")
    if config.stage.name == "ppo":
        for name, part in config.reward.parts.items():
            if part.kind is RewardKind.model and (part.path is None or part.path in parents.AUTO):
                yield f"reward.parts.{name}.path={part.path or 'null'}", found.get(f"reward.{name}")


def _from(spec: str) -> str:
    """A checkpoint with the time at which its run ended."""
    path = Path(spec)
    run_dir = next((folder for folder in path.parents if (folder / folders.RESULT).is_file()), None)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    if run_dir is None:
        return str(shown)
    ended = time.localtime((run_dir / folders.RESULT).stat().st_mtime)
    return f"{shown}, of a run that ended {time.strftime('%Y-%m-%d %H:%M', ended)}"
