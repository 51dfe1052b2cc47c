"""stage=judge: a classifier of safe and unsafe replies, on training rows that no reward model sees."""

from __future__ import annotations

from tinychat.config.schema import Config
from tinychat.runs.context import Context, StageResult
from tinychat.stages import reward


def run(config: Config, context: Context) -> StageResult:
    return reward.run(config, context)
