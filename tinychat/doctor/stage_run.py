"""A stage run up to the end of its first step: no tracker, no run folder, no locks."""

from __future__ import annotations

import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinychat.config import plugins
from tinychat.config.schema import Config
from tinychat.launch.worker import function_of
from tinychat.runs import folders, parents
from tinychat.runtime.manifest import verifying
from tinychat.runtime.process import keep_freed_memory
from tinychat.runtime.world import World, answering, seed_everything
from tinychat.stages import Context, Examiner, StageResult, StopFlag

PARENTS = "parents.json"
TRAIN_ROWS, HELD_OUT_ROWS = 2_000, 200  # read at most: what the first step is made of, and what a stage insists on


class Enough(Exception):
    """What was looked for has been seen: the stage ends here."""


def in_brief(config: Config, scratch: Path) -> Config:
    """The same first step, without evaluations, of as few rows as it needs; what it writes goes into a folder."""
    stage, data = config.stage, config.data
    left_out = {key: value for key, value in (("eval_first", False), ("eval_every", 0)) if hasattr(stage, key)}
    train = max(TRAIN_ROWS, 4 * stage.batch_size)
    most = {"max_docs": train, "max_rows": train, "max_val_docs": HELD_OUT_ROWS, "max_val_rows": HELD_OUT_ROWS}
    fewer = {key: number if (own := getattr(data, key)) is None else min(own, number) for key, number in most.items()}
    return replace(
        config,
        stage=replace(stage, **left_out),
        data=replace(data, **fewer),
        paths=replace(config.paths, outputs=str(scratch), cache=str(scratch / "cache")),
    )


def run_stage(
    config: Config, folder: Path, world: World, found: dict[str, str | None], examiner: Examiner
) -> StageResult | None:
    """One step of the stage under the examiner's eyes; None where that one has seen enough. found: its parents. Raises
    UserError as the stage does."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, folder)
    logging.getLogger("tinychat").setLevel(logging.WARNING if world.is_main else logging.ERROR)
    if world.device.type == "cpu":
        keep_freed_memory()
    plugins.VERIFIERS.use(config.data.verifiers, "data.verifiers")
    # As if it had been told to stop: it saves after its first step, and ends.
    stop = StopFlag(folder, speaks=False, signal_number=signal.SIGTERM)
    config = parents.with_corpus(config, found)
    context = Context(folder, world, None, found, stop, examiner)
    seed_everything(config.seed)
    try:
        with answering(config.launch.timeout_minutes), verifying(config.checkpoint.verify):
            return function_of(config)(config, context)
    except Enough:
        return None


def write_config(config: Config, folder: Path) -> None:
    """As a run folder has it."""
    (folder / folders.CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def divisor(size: int) -> int | None:
    """The largest number below `size` that divides it; None: there is none."""
    return next((part for part in range(size // 2, 0, -1) if size % part == 0), None)


def other_split(config: Config) -> Config | None:
    """The same with smaller micro-batches; None where a batch is one sequence."""
    stage: Any = config.stage
    size = divisor(stage.per_forward(1))
    return None if size is None else replace(config, stage=replace(stage, micro_batch_size=size))
