"""The typed configuration of a sweep: the `sweep:` part of a job. Defaults live in conf/sweep/ alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class SamplerKind(Enum):
    """How a sweep chooses the values of its next trial."""

    gp = "gp"  # Bayesian optimisation: a Gaussian process, expected improvement
    tpe = "tpe"  # tree-structured Parzen estimator
    nsgaii = "nsgaii"  # genetic, for several objectives
    random = "random"
    grid = "grid"  # all combinations of listed values


class PrunerKind(Enum):
    """Which trials a sweep ends early, by what they measured so far."""

    none = "none"
    median = "median"  # worse than the median of the trials before at the same progress
    hyperband = "hyperband"


class KeepCheckpoints(Enum):
    all = "all"
    best = "best"  # of the best trial so far (several objectives: of those on the front)


@dataclass
class SweepConfig:
    """A search: what is varied, what is wanted, how long. Its command is `python -m tinychat.train -m ...`."""

    name: str = MISSING
    study: str = MISSING  # folder under OUTPUTS/sweeps; the same name goes on with the same study
    storage: str | None = MISSING  # database of the study, as Optuna writes addresses; null: study.db in that folder
    sampler: SamplerKind = MISSING
    sampler_options: dict[str, Any] = field(default_factory=dict)  # further arguments of Optuna's sampler
    seed: int = MISSING  # of the sampler
    own_first: bool = MISSING  # the first trial has the values that a run without the sweep would have
    n_trials: int | None = MISSING  # trials in all, those of earlier starts included; null (grid): every combination
    objective: list[str] | None = MISSING  # final metrics of the stage; null: the one that the stage reports
    direction: list[str] | None = MISSING  # minimize or maximize, of each; null: as the metric is better
    pruner: PrunerKind = MISSING  # needs one objective that is measured during training (stage.eval_every)
    pruner_options: dict[str, Any] = field(default_factory=dict)  # further arguments of Optuna's pruner
    prune_on: list[str] = (
        MISSING  # alarms that end a trial of stage=ppo at once: kl entropy eos length clip sampler gold
    )
    max_failures: int = MISSING  # failed trials in a row after which the sweep gives up
    keep_checkpoints: KeepCheckpoints = MISSING
    register: str | None = MISSING  # name in MLflow's model registry for the winner; null: not registered
    quiet: bool = MISSING  # a trial's lines go to its run folder alone
    params: dict[str, str] = field(default_factory=dict)  # key -> what to search, in Hydra's words for sweeps
