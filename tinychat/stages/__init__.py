"""The stages: one file each, whose `run(config, context)` reads from top to bottom. Here is what a stage gets beside
its configuration (where it runs, where it writes, and when to stop), and what it hands back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tinychat.runs import failures, trial
from tinychat.runtime import process
from tinychat.runtime.process import Interrupted
from tinychat.runtime.world import World
from tinychat.tracking import Tracker

if TYPE_CHECKING:
    from tinychat.data.preferences.prompts import PromptBatches
    from tinychat.engine import Batch, Engine, LossFn, StepStats
    from tinychat.rl.rewards import Rewards
    from tinychat.stages.policy import Sampler


@dataclass
class StopFlag:
    """Set by a signal that asks to stop. A patient stage looks at it between steps and saves; others end at once."""

    run_dir: Path
    speaks: bool = True
    patient: bool = True
    signal_number: int = 0

    @contextlib.contextmanager
    def listening(self, insist: bool) -> Iterator[StopFlag]:
        """Take these signals over; with `insist`, a second Ctrl-C ends even a patient stage at once."""

        def stop(number: int, _frame: Any) -> None:
            if failures.stamps(self.run_dir):
                os._exit(1)  # another rank has failed: nothing more can be computed together
            again, self.signal_number = self.signal_number > 0, self.signal_number or number
            if not self.patient or (again and insist and number == signal.SIGINT):
                raise Interrupted(signal.Signals(number).name)
            if self.speaks and not again:
                print(f"\n{signal.Signals(number).name}: saving, then stopping", file=sys.stderr, flush=True)

        with process.handling(stop):
            yield self


@dataclass
class StageResult:
    """What a stage hands back."""

    metrics: dict[str, float] = field(default_factory=dict)
    objective: str | None = None  # name of the metric that sweeps look at
    checkpoint: Path | None = None
    stopped: bool = False  # ended early because of a signal, everything saved
    facts: dict[str, Any] = field(default_factory=dict)  # for the report: parameters, tokens, device


class Examiner(Protocol):
    """Looks at a stage while it makes its first step as it always does (tinychat.doctor)."""

    def ask(self, checks: Mapping[str, Callable[[], float | None]]) -> None:
        """Call what would refuse the training by UserError, each for itself."""

    def replies(self, sampler: Sampler, prompts: PromptBatches, rewards: Rewards, group: int) -> None:
        """Look at what rollouts are made of, before the first. group: replies to each prompt."""

    def train_step(self, engine: Engine, tokenizer: Any, micro_batches: Sequence[Batch], loss_fn: LossFn) -> StepStats:
        """In place of engine.train_step."""


@dataclass
class Context:
    """One rank's surroundings during a stage."""

    run_dir: Path
    world: World
    tracker: Tracker | None  # rank 0 alone has one
    parents: dict[str, str | None]  # see tinychat.runs.parents
    stop: StopFlag
    examiner: Examiner | None = None
    pruned: str | None = None  # why this trial of a sweep is given up
    pruning: bool = False  # the same on every rank, from the last should_stop() on

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of a step; every rank may call, rank 0 writes."""
        if self.tracker is not None:
            self.tracker.log_metrics(step, metrics)

    def check(self, checks: Mapping[str, Callable[[], float | None]]) -> dict[str, float | None]:
        """What each of them finds, by its name; {} where an examiner takes note instead. Raises UserError as the first
        that refuses to train."""
        if self.examiner is not None:
            self.examiner.ask(checks)
            return {}
        return {name: check() for name, check in checks.items()}

    def should_stop(self) -> bool:
        """Whether any rank was told to stop. A collective: every rank calls it at the same step."""
        if self.world.is_main and self.pruned is None:
            self.pruned = trial.asked_to_stop(self.run_dir)
        found = self.world.max(2.0 if self.stop.signal_number > 0 else float(self.pruned is not None))
        self.pruning = found == 1.0
        return found > 0

    def give_up(self, alarms: Mapping[str, str]) -> bool:
        """Told of alarms (name -> sentence): whether this is a trial of a sweep that ends with one of these."""
        fatal = ((trial.read(self.run_dir) or {}).get("prune_on") or []) if alarms else []
        self.pruned = self.pruned or next((text for name, text in alarms.items() if name in fatal), None)
        return self.pruned is not None
