"""Several runs of one command: searches of hyperparameters (sweep=) and plain multiruns (-m)."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """All multiruns: `sweep=NAME` searches, without it every combination of the command line's lists runs."""

    def __init__(self, **_: Any) -> None:
        """Takes no options of Hydra's; those of a sweep are in conf/sweep/."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from tinychat.sweeps.run import Sweep

        Sweep(self._config, self._context, self._task).run(arguments)
